"""A page for every registered method, made when the site is built from its docstring, card, picture and evidence."""

import hashlib
import inspect
import io
import json
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import typer
from docstrings import escape, prose, signature
from mkdocs.structure.files import File

import omnimix
from omnimix.cli import show
from omnimix.cli.methods import _needs, span
from omnimix.compare import pictures
from omnimix.compare.report import samples
from omnimix.core import registry
from omnimix.core.registry import Info

TABLE = "<!-- generated: methods -->"
GALLERY = "<!-- generated: gallery -->"
PICTURES = os.environ.get("OMNIMIX_DOCS_PICTURES", "1") != "0"
"""Pictures take half a second each where they are new; tests of the pages do without."""


def names() -> list[str]:
    """Our own methods, not those of plug-ins that happen to be installed."""
    return [name for name in registry.methods() if registry.info(name).package == "omnimix"]


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    evidence = Path(config.config_file_path).parent / "evidence"
    for section in config.nav:
        if "Methods" in section:
            section["Methods"].append({"Gallery": "methods/gallery.md"})
            many = [{title: f"evidence/{name}.md"} for name, title in comparisons(evidence).items()]
            section["Methods"] += [{"Comparisons": many}] if many else []
            section["Methods"].append({"By name": [{name: f"methods/{name}.md"} for name in names()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Make the pages and their pictures."""
    root = Path(config.config_file_path).parent
    for name in comparisons(root / "evidence"):
        text = comparison(root / "evidence" / name)
        files.append(File.generated(config, f"evidence/{name}.md", content=text))
    _drawn.clear()
    for name in names():
        drawn, said = (
            picture(name, root / "build" / "pictures") if PICTURES else (None, "Pictures were left out of this build.")
        )
        if drawn:
            _drawn[name] = said
            files.append(File.generated(config, f"methods/{name}.png", content=drawn))
        text = page(registry.info(name), root / "evidence", said, bool(drawn))
        files.append(File.generated(config, f"methods/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    if TABLE in markdown:
        markdown = markdown.replace(TABLE, table(Path(config.config_file_path).parent / "evidence"))
    return markdown.replace(GALLERY, gallery()) if GALLERY in markdown else markdown


_drawn: dict[str, str] = {}
"""What was said about the pictures of this build."""


def gallery() -> str:
    """The pictures of all methods that have one, those on images first."""
    by_input = sorted(_drawn, key=lambda name: ("image" not in registry.info(name).inputs, name))
    parts = []
    for name in by_input:
        parts += [f"## [{name}]({name}.md)", escape(registry.info(name).summary), f"![{name}]({name}.png)"]
    return "\n\n".join(parts) or "Pictures were left out of this build."


def comparisons(evidence: Path) -> dict[str, str]:
    """Folders of evidence that compare many methods, with their titles."""
    found = {}
    for readme in sorted(evidence.glob("*/README.md")):
        whole = all((readme.parent / name).is_file() for name in ("tables.md", "result.json"))
        if whole and readme.parent.name not in names():
            found[readme.parent.name] = readme.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return found


def comparison(folder: Path) -> str:
    """The page of such a folder."""
    text = (folder / "README.md").read_text(encoding="utf-8").strip().replace("](tables.md)", "](#all-numbers)")
    made, tables = provenance(folder), (folder / "tables.md").read_text(encoding="utf-8").strip()
    return "\n\n".join([text, made, "## All numbers", tables]) + "\n"


def provenance(folder: Path) -> str:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    torch, commit = result.get("machine", {}).get("torch", "?"), result.get("commit", "unknown")[:7]
    return f"Made with torch {torch}, omnimix at commit `{commit}`."


def table(evidence: Path) -> str:
    """All methods, for `filter.js` to filter."""
    lines = ["| method | what it does | tasks | needs | cost | evidence |", "|---|---|---|---|---|---|"]
    for name in names():
        card = registry.info(name)
        kind = "yes" if (evidence / name / "README.md").is_file() else "as an arm" if name in _arms(evidence) else ""
        found = f"[{kind}]({name}.md#evidence)" if kind else "not yet"
        needs = ", ".join(_needs(card)) or "nothing else"
        cells = [f"[{name}]({name}.md)", escape(card.summary), ", ".join(card.tasks), needs, f"{card.cost:g}", found]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(card: Info, evidence: Path, said: str, drawn: bool) -> str:
    """The page of a method."""
    module = inspect.getmodule(card.factory)
    assert module is not None
    # several methods may share a file: the module's text is about all of them, the factory's about this one
    about = inspect.cleandoc(module.__doc__ or "")
    parts = [
        f"# {card.name}",
        "" if card.summary.lower() in " ".join(about.split()).lower() else escape(card.summary),
        facts(card, evidence),
        "## Method",
        prose(about),
        f"![What {card.name} does]({card.name}.png)\n\n{escape(said)}" if drawn else escape(said),
        "## Parameters",
        prose((inspect.getdoc(card.factory) or "").partition("\n\n")[2]),
        parameters(card),
    ]
    for name in omnimix.__all__:
        function = getattr(omnimix, name)
        if inspect.isfunction(function) and function is not card.factory and function.__module__ == module.__name__:
            parts += [f"## As a function: `omnimix.{name}`", signature(name, function), prose(function.__doc__)]
    parts += ["## Evidence", *shown(card.name, evidence)]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(card: Info, evidence: Path) -> str:
    """The card as a table."""
    package = Path(inspect.getsourcefile(omnimix) or "").parent
    file = Path(inspect.getsourcefile(card.factory) or "").relative_to(package.parent).as_posix()
    rows = {
        "Paper": escape(card.paper),
        "Tasks": ", ".join(card.tasks),
        "Inputs": ", ".join({"any": "any tensors", "image": "images, signals, volumes"}.get(i, i) for i in card.inputs),
        "Needs": ", ".join(_needs(card)) or "nothing beside batches",
        "Cost": f"{card.cost:g} × the gradient evaluations of a plain step" + step_time(card.name, evidence),
        "In a loop": f'`omnimix.create("{card.name}")`',
        "In a comparison": f"`omnimix compare --data ... --methods erm,{card.name}`",
        "File": f"`src/{file}`",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])


def step_time(name: str, evidence: Path) -> str:
    """What `benchmarks/step_time.py` measured, as the end of a sentence; "" where it did not."""
    path = evidence / "step-time" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"methods": {}}
    if name not in result["methods"]:
        return ""
    done, row = result["settings"], result["methods"][name]
    where = f"{row['network']}, batch {done['batch']}, 3 x 32 x 32, {done['device']}"
    spread = f"quartiles {row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}"
    return f"; a step that mixes took {row['ratio']:.2f} × the time of a plain one ({spread}; {where})"


def parameters(card: Info) -> str:
    """Defaults, and from where `--tune` draws."""
    if not card.parameters:
        return "It has none."
    lines = ["| parameter | default | `--tune` draws |", "|---|---|---|"]
    for name, default in card.parameters.items():
        value = "required" if default is inspect.Parameter.empty else f"`{_short(default)}`"
        lines.append(f"| `{name}` | {value} | {span(card.search[name]) if name in card.search else ''} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value) if not callable(value) else getattr(value, "__name__", repr(value))


def picture(name: str, kept: Path) -> tuple[bytes | None, str]:
    """What `omnimix show` draws of a method, and what it says about it.

    kept: a folder of pictures from earlier builds, each named by the code that made it.
    """
    digest = hashlib.sha256()
    for module in (registry.info(name).factory, show, pictures, samples):
        digest.update(Path(inspect.getsourcefile(module) or "").read_bytes())
    path = kept / f"{name}-{digest.hexdigest()[:12]}.png"
    text = path.with_suffix(".txt")
    if not text.exists():
        kept.mkdir(parents=True, exist_ok=True)
        text.write_text(_draw(name, path), encoding="utf-8")
    return path.read_bytes() if path.exists() else None, text.read_text(encoding="utf-8")


def _draw(name: str, path: Path) -> str:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as out:
        try:
            show.show(name, out=path)
        except typer.Exit:
            return f"No picture: {' '.join(out.getvalue().split()).removeprefix('omnimix: ')}."
    said = " ".join(out.getvalue().split()).partition("Picture:")[0]
    return f"`omnimix show {name}`: {said.strip().removeprefix(f'{name}: ').rstrip('.')}."


def shown(name: str, evidence: Path) -> list[str]:
    """What its evidence folder says, and where else it was an arm."""
    folder, parts = evidence / name, list[str]()
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\A#[^\n]*\n", "", text).strip().replace("](tables.md)", "](#all-numbers)")
        parts.append(re.sub(r"^(#+) ", r"##\1 ", text, flags=re.MULTILINE))
        tables = (folder / "tables.md").read_text(encoding="utf-8").strip()
        parts += [provenance(folder), "### All numbers", tables]
    else:
        parts.append(f"There is no folder `evidence/{name}` yet: we have not looked for a published effect of its own.")
    arms, many = _arms(evidence).get(name, ()), comparisons(evidence)
    pages = {other: f"../evidence/{other}.md" if other in many else f"{other}.md#evidence" for other in arms}
    others = [f"[{many.get(other, other)}]({page})" for other, page in pages.items() if other != name]
    if others:
        also = "also " if len(parts) > 1 else ""
        parts.append(f"It is {also}an arm in the evidence for {', '.join(others)}.")
    return parts


@cache
def _arms(evidence: Path) -> dict[str, list[str]]:
    """By method, the evidence folders in whose tables it is an arm."""
    found: dict[str, list[str]] = {}
    for path in sorted(evidence.glob("*/result.json")):
        outcomes = json.loads(path.read_text(encoding="utf-8")).get("outcomes", {}).values()
        for name in {arm.partition(":")[0] for outcome in outcomes for arm in outcome["arms"]} & set(names()):
            if path.parent.name in (*names(), *comparisons(evidence)):
                found.setdefault(name, []).append(path.parent.name)
    return found
