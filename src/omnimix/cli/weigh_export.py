"""`omnimix weigh export`: a mixture as the file that a trainer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import console, user_errors
from .weigh import AsJson, _print, weigh


@weigh.command()
def export(
    mixture: Annotated[Path, typer.Argument(help="A mixture (JSON), as `weigh propose` writes it.")],
    to: Annotated[
        str,
        typer.Option(
            help="megatron, nemo, hf, streaming, litdata, torchtitan, axolotl, llama-factory, doremi, regmix or "
            "weborganizer."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; new.")],
    paths: Annotated[Path | None, typer.Option(help="JSON: where each domain's data lie, by name.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="JSON: mean tokens of a document, by domain.")] = None,
    sizes: Annotated[Path | None, typer.Option(help="axolotl: JSON with the documents of each domain.")] = None,
    phase: Annotated[int | None, typer.Option(help="Which phase of a schedule: 0, 1, ...", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Write a mixture for a trainer, its weights in the unit that the trainer counts in."""
    with user_errors():
        from ..core.checks import one_of
        from ..corpora import Mixture
        from ..corpora.export import EXPORTERS
        from ..corpora.export import export as written
        from ..corpora.export.finetuning import Axolotl

        kind = EXPORTERS[one_of("--to", to, tuple(EXPORTERS))]
        if out.exists():
            raise ValueError(f"--out {out} exists already: name a new file")
        if sizes is not None and kind is not Axolotl:
            raise ValueError(f"--sizes is for axolotl alone, not for {to}")
        exporter = Axolotl(_numbers(sizes)) if kind is Axolotl else kind()
        found = written(exporter, Mixture.load(mixture), paths=_strings(paths), tokens=_numbers(tokens), phase=phase)
        out.write_text(found.text, encoding="utf-8")
    facts = {"out": str(out), "format": to, "unit": found.unit, "dropped": list(found.dropped)}
    if as_json:
        _print(facts)
        return
    typer.echo(f"{out}: weights in {found.unit}, for {to}")
    if found.dropped:
        console(stderr=True).print(f"left out, with weight 0: {', '.join(found.dropped)}", markup=False)


def _object(path: Path | None) -> dict[str, object] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object with a value for each domain")
    return found


def _numbers(path: Path | None) -> dict[str, float] | None:
    found = _object(path)
    if found is None:
        return None
    for domain, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{path}: {domain!r} must have a number > 0, got {value!r}")
    return {domain: float(value) for domain, value in found.items()}  # type: ignore[arg-type]


def _strings(path: Path | None) -> dict[str, str] | None:
    found = _object(path)
    return None if found is None else {domain: str(value) for domain, value in found.items()}
