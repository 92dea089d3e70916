"""Every block of code in the README and in docs/ runs, and the site builds without a warning.

Blocks of a page run in order in an empty folder: `python` in one namespace, `sh` line by line through the command line
of this process. A block ```text title="prints"``` is what the block before it prints. What does not run is in one of
the two tables below, with the reason.
"""

import io
import re
import runpy
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

SHELL = {
    "pip install": "changes the environment",
    "make demo": "installs, and takes minutes; its two comparisons are planned below",
    "make test": "would run this test",
}
"""Commands that are not ours, by how they begin."""

PLANNED = {
    "full budget": [
        "--data mine.csv --target price --methods erm,mixup:alpha=0.2,c-mixup --seeds 10",
        "--data flats.csv --target price --seeds 10",
        "--data sensor.csv --target strain --methods erm,mixup,c-mixup,regmix-regression --seeds 10",
        "--data sensor.csv --target strain --methods erm,c-mixup:place=input,c-mixup:place=hidden,c-mixup:alpha=0.5 "
        "--seeds 10",
        "--data sensor.csv --target strain --methods erm,mixup,c-mixup --tune 8 --seeds 10",
        "--data wine.csv --target target --methods erm,mixup:alpha=1,mixup:alpha=8,mixup:alpha=32 --seeds 10",
        "--data wine.csv --target target --methods erm,mixup:alpha=8,early-stopped-mixup:alpha=8:stop=0.5 "
        "--selection last --seeds 10",
        "--data digits --label-noise 0.4 --methods erm,mixup:alpha=1,mixup:alpha=32,manifold-mixup --seeds 5",
        "--data leaves.csv --target species --domain site --protocol domains "
        "--methods erm,mixup,lisa,selective-mixup --controls --seeds 5",
        "--data leaves.csv --target species --domain site --protocol domains --methods erm,lisa "
        "--selection leave-one-domain-out --tune 4 --seeds 3",
        "--data photos --methods erm,mixup,cutmix,fmix,regmixup --batch 8 --seeds 5",
        "--data airfoil --protocol c-mixup --methods erm,mixup,manifold-mixup,c-mixup --seeds 10",
        "--data wine --methods erm,mixup,manifold-mixup --tune 16 --seeds 10",
        "--data wine --methods erm,regmixup --equal-compute --seeds 10",
        "--data wine --methods erm,mixup --seeds 10 --jobs 1",
        "--data wine --methods erm,mixup,regmixup --evaluations 2000 --seeds 10",
        "--data airfoil,no2,diabetes --methods erm,mixup,manifold-mixup,c-mixup --seeds 10 --out tables",
    ],
    "a large network": ["--data photos --net timm:resnet18 --methods erm,cutmix --batch 8 --epochs 10 --seeds 3"],
    "starts a cluster; tests/compare/test_ray.py does": [
        "--data wine --methods erm,mixup --seeds 10 --engine ray",
        "--data wine --methods erm,mixup --seeds 10 --engine ray --address auto --jobs 64",
    ],
}
"""Comparisons that are not trained here, by reason. Their options are parsed, the data loaded, and all runs planned."""

NEEDS = {
    "docs/tasks/images.md": ("torchvision", "timm"),
    "docs/tasks/domains.md": ("PIL",),
    "docs/tasks/trainers.md": ("lightning", "transformers", "accelerate"),
}
BEFORE = {
    "README.md": "open('mine.csv', 'w').write('a,price\\n' + '\\n'.join(f'{i},{i * i}.5' for i in range(40)))",
}
AFTER = {"README.md": "from omnimix.testing import check_method\ncheck_method('gentle-mix')"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, one process, and a registry that forgets what a page registers."""
    from omnimix.core import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_methods", dict(registry._all()))
    monkeypatch.setattr("omnimix.compare.run.default_workers", lambda plan: 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_run(page, here):
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module, reason=f"{page} needs {module}")
    namespace, printed = {"__name__": "page"}, ""
    exec(BEFORE.get(page, ""), namespace)
    with torch.random.fork_rng():
        for language, title, code in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            if language == "python":
                with redirect_stdout(io.StringIO()) as out:
                    exec(compile(code, page, "exec"), namespace)
                printed = out.getvalue()
            elif language == "sh":
                for command in commands(code):
                    run(command)
            elif "prints" in title:
                assert printed.strip() == code.strip()
            else:
                assert language in ("text", "toml"), f"{page}: who checks a block of {language}?"
        exec(AFTER.get(page, ""), namespace)


def commands(code):
    lines = code.replace("\\\n", " ").splitlines()
    found = (shlex.split(line, comments=True) for line in lines)
    return [command for command in found if command]


def planned():
    return [f"omnimix compare {options}" for some in PLANNED.values() for options in some]


def run(command):
    """Run one line of a shell, or plan it."""
    text = shlex.join(command)
    if any(text.startswith(start) for start in SHELL):
        return
    if command[:2] == ["python", "-m"]:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr("sys.argv", command[2:])
            with pytest.raises(SystemExit) as end:
                runpy.run_module(command[2], run_name="__main__")
        assert not end.value.code, end.value.code
        return
    assert command[0] == "omnimix", f"{text!r} is not run: say why in SHELL"
    with pytest.MonkeyPatch.context() as patch:
        if text in planned():
            patch.setattr("omnimix.compare.run.compare", only_plan)
            patch.setattr("omnimix.compare.suite.compare_suite", only_plan)
        result = CliRunner().invoke(app(), command[1:])
    assert result.exit_code == 0, f"{text}\n{result.output}"


def app():
    from omnimix.cli import load

    return load()


def only_plan(asked, out=None, **how):
    import typer

    from omnimix.compare.run import make_plan

    for settings in asked if isinstance(asked, list) else [asked]:
        _, _, jobs = make_plan(settings)
        assert jobs
    raise typer.Exit(0)


def test_what_is_not_run_is_still_in_a_page():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert [command for command in planned() if command not in text] == []
    assert [start for start in SHELL if start not in text] == []


def test_the_demo_is_planned(here, tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"bin/omnimix (compare .*)|\$\(BIN\)/omnimix (compare .*)", makefile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnimix.compare.run.compare", only_plan)
        for parts in found:
            line = "".join(parts).replace("$(OUT)", str(tmp_path))
            result = CliRunner().invoke(app(), shlex.split(line))
            assert result.exit_code == 0, result.output
    assert len(found) >= 2


def test_the_page_on_plugins_shows_the_example():
    page = (ROOT / "docs" / "plugin.md").read_text(encoding="utf-8")
    example = ROOT / "examples" / "plugin"
    code, toml = (next(c for kind, _, c in BLOCK.findall(page) if kind == which) for which in ("python", "toml"))
    assert (example / "src" / "omnimix_noise.py").read_text(encoding="utf-8").endswith(code)
    assert toml in (example / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `mkdocs build --strict` does, without the pictures."""
    pytest.importorskip("mkdocs", reason='the site needs pip install ".[docs]"')
    pytest.importorskip("material", reason='the site needs pip install ".[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIMIX_DOCS_PICTURES", "0")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def test_every_method_has_a_page(site):
    from html import unescape

    from omnimix.core import registry

    ours = [name for name in registry.methods() if registry.info(name).package == "omnimix"]
    overview = (site / "methods" / "index.html").read_text(encoding="utf-8")
    for name in ours:
        card, page = registry.info(name), unescape((site / "methods" / f"{name}.html").read_text(encoding="utf-8"))
        assert f'href="{name}.html"' in overview
        assert card.paper.split(",")[0] in page
        assert all(f"<code>{parameter}</code>" in page for parameter in card.parameters), name
        folder = ROOT / "evidence" / name
        if (folder / "README.md").is_file():
            row = (folder / "tables.md").read_text(encoding="utf-8").splitlines()[-1]
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert all(f">{cell}</td>" in page for cell in cells), name
        else:
            assert "we have not looked for a published effect" in page


def test_the_reference_is_complete(site):
    import omnimix as om

    page = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in om.__all__ if f">omnimix.{name}<" not in page] == []
    page = (site / "command-line.html").read_text(encoding="utf-8")
    help_text = CliRunner().invoke(app(), ["compare", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"(--[a-z][a-z-]+) ", help_text)) - {"--help"}
    assert len(options) > 15
    assert [option for option in sorted(options) if f"<code>{option}</code>" not in page] == []


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*stylesheet[^>]*(?:https?:)?//"
    )
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []
