"""`omnimix weigh select`: the documents of a training set, as many of every domain as a mixture says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .console import console, user_errors
from .weigh import _print, weigh
from .weigh_annotate import AsJson, Data, Quiet, _bar, _folder

if TYPE_CHECKING:
    from ..corpora import Mixture


@weigh.command()
def select(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the chosen documents.")],
    mixture: Annotated[Path, typer.Option(help="A mixture (JSON), as propose writes it, or CSV: domain, weight.")],
    budget: Annotated[float, typer.Option(help="How many tokens (or documents) to choose.")],
    unit: Annotated[str | None, typer.Option(help="tokens or documents. Default: the mixture's; CSV: tokens.")] = None,
    domain: Annotated[str, typer.Option(help="The column of the domain.")] = "domain",
    tokens: Annotated[str | None, typer.Option(help="Column of a document's tokens. Default: bytes of text.")] = None,
    text: Annotated[str, typer.Option(help="The column of the text.")] = "text",
    score: Annotated[str | None, typer.Option(help="Column of quality: highest first. Default: any documents.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="tau: take score / tau + Gumbel noise; small: the best, inf: any.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Column of ids, on which chance hangs. Default: file and row.")
    ] = None,
    shortage: Annotated[
        str, typer.Option(help="What a domain lacks: redistribute to the others, repeat its documents, or raise.")
    ] = "redistribute",
    keep: Annotated[str | None, typer.Option(help="Columns to keep, with commas: its id alone. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 42,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choose documents so that domains have the shares of a mixture; within a domain the best ones, or any.

    Every file again, with the chosen rows alone. A command that was stopped continues; memory does not grow.
    """
    with user_errors():
        from ..corpora.selection import Fields, select_shards

        _folder(out)
        share = [0.0]
        kept = None if keep is None else [name.strip() for name in keep.split(",") if name.strip()]
        with _bar(lambda: share[0], 1, console(stderr=True), quiet or not console(stderr=True).is_terminal):
            found = select_shards(
                data, _mixture(mixture, unit), budget, out, fields=Fields(domain, tokens, text, score, id_),
                tau=temperature, seed=seed, shortage=shortage, keep=kept,
                progress=lambda done: share.__setitem__(0, done),
            )  # fmt: skip
    names = ("unit", "budget", "selected", "documents", "without weight", "short", "domains")
    facts: dict[str, Any] = {"out": str(out), "manifest": str(out / "manifest.json")} | {n: found[n] for n in names}
    if as_json:
        _print(facts)
        return
    table = Table("domain", "weight", "share", found["unit"], "documents", "available")
    for name, row in sorted(found["domains"].items(), key=lambda item: -item[1]["weight"]):
        table.add_row(
            name + (" (short)" if name in found["short"] else ""), f"{row['weight']:.4f}", f"{row['share']:.4f}",
            str(row["selected"]), str(row["documents"]), str(row["available"]),
        )  # fmt: skip
    screen = console(stderr=False)
    screen.print(table)
    screen.print(
        f"{found['documents']} documents, {found['selected']} of {budget:g} {found['unit']}: {out}", markup=False,
        soft_wrap=True,
    )  # fmt: skip
    if found["without weight"]:
        screen.print(f"{found['without weight']} documents are of domains without a weight", markup=False)


def _mixture(file: Path, unit: str | None) -> Mixture:
    from ..core.checks import one_of
    from ..corpora import Mixture
    from ..corpora.weigh.run_table import read_sizes

    if unit is not None:
        one_of("--unit", unit, ("tokens", "documents"))
    if file.suffix == ".csv":
        return Mixture(read_sizes(file), unit=unit or "tokens")
    mixture = Mixture.load(file)
    if unit not in (None, mixture.unit):
        raise ValueError(
            f"{file} is in {mixture.unit}, not in {unit}: convert it by Mixture.to_unit, or leave --unit out"
        )
    return mixture
