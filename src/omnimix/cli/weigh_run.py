"""`omnimix weigh run` trains proxies on given mixtures, `omnimix weigh online` one whose mixture changes on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .console import console, progress, user_errors
from .weigh import weigh

if TYPE_CHECKING:
    import numpy as np

    from ..compare.store import Failure, Run
    from ..corpora.proxy import Packed, Training

DOCUMENTS, NETWORK, RUNNING = "Documents", "Network and budget", "Running"
"""Panels of the help."""

Documents = Annotated[
    list[Path],
    typer.Option(
        help="Files or folders: .jsonl(.gz), .parquet, .arrow; give it again for more.", rich_help_panel=DOCUMENTS
    ),
]
Domain = Annotated[str, typer.Option(help="The column of a document's domain.", rich_help_panel=DOCUMENTS)]
Text = Annotated[str, typer.Option(help="The column of its text.", rich_help_panel=DOCUMENTS)]
Tokens = Annotated[
    str | None, typer.Option(help="In place of --text: the column of its token ids.", rich_help_panel=DOCUMENTS)
]
Tokenizer = Annotated[
    str, typer.Option(help="bytes, bpe:VOCABULARY (learned here), or a tokenizer.json.", rich_help_panel=DOCUMENTS)
]
Vocabulary = Annotated[
    int | None, typer.Option(help="With --tokens: the number of token ids.", rich_help_panel=DOCUMENTS)
]
HeldOut = Annotated[
    str, typer.Option(help="Parts to hold out, and their shares of the documents.", rich_help_panel=DOCUMENTS)
]
Steps = Annotated[int, typer.Option(help="Optimiser steps of a run.", rich_help_panel=NETWORK)]
Batch = Annotated[int, typer.Option(help="Sequences of a step.", rich_help_panel=NETWORK)]
Context = Annotated[int, typer.Option(help="Tokens of a sequence.", rich_help_panel=NETWORK)]
Width = Annotated[int, typer.Option(help="Width of the transformer.", rich_help_panel=NETWORK)]
Layers = Annotated[int, typer.Option(help="Its layers.", rich_help_panel=NETWORK)]
Heads = Annotated[int, typer.Option(help="Its heads of attention.", rich_help_panel=NETWORK)]
Rate = Annotated[float, typer.Option("--lr", help="The highest learning rate.", rich_help_panel=NETWORK)]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed, bf16-true or 64-true.", rich_help_panel=NETWORK)]
Measure = Annotated[
    int | None,
    typer.Option(help="Held-out sequences of a domain to measure on. Default: all.", rich_help_panel=NETWORK),
]
Out = Annotated[Path, typer.Option(help="The folder of tokens, runs and results.", rich_help_panel=RUNNING)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.", rich_help_panel=RUNNING)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.", rich_help_panel=RUNNING)]


@weigh.command("run")
def run(
    documents: Documents,
    mixtures: Annotated[Path, typer.Option(help="The mixtures to train on, as `weigh design` writes them (CSV).")],
    out: Out = Path("omnimix-out/weigh"),
    domain: Domain = "domain",
    text: Text = "text",
    tokens: Tokens = None,
    tokenizer: Tokenizer = "bytes",
    vocabulary: Vocabulary = None,
    held_out: HeldOut = "valid=0.1,test=0.1",
    steps: Steps = 200,
    batch: Batch = 16,
    context: Context = 128,
    width: Width = 64,
    layers: Layers = 2,
    heads: Heads = 4,
    lr: Rate = 3e-3,
    precision: Precision = "32-true",
    measure: Measure = None,
    one_domain: Annotated[
        bool, typer.Option("--one-domain", help="Draw each batch from one domain only.", rich_help_panel=NETWORK)
    ] = False,
    seeds: Annotated[
        str, typer.Option(help="Runs of each mixture (5: seeds 0 to 4), or which seeds (3,5).", rich_help_panel=RUNNING)
    ] = "1",
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time. Default: one a core, or one on a GPU.", rich_help_panel=RUNNING)
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu or auto.", rich_help_panel=RUNNING)] = "cpu",
    engine: Annotated[
        str, typer.Option(help="What computes: local (processes), or ray (a cluster).", rich_help_panel=RUNNING)
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.", rich_help_panel=RUNNING)] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small language model on every mixture and measure its held-out loss on every domain.

    Writes mixtures.csv and losses-valid.csv for `omnimix weigh fit`. A command that was stopped continues where it was.
    """
    messages = console(stderr=True)
    kept = "nothing has run yet"
    with user_errors():
        from ..compare.proxies import run_proxies
        from ..compare.spec import parse_seeds
        from ..corpora import Mixture
        from ..corpora.weigh.run_table import read_mixtures

        names, rows = read_mixtures(mixtures)
        asked = [Mixture(dict(zip(names, row.tolist(), strict=True))) for row in rows.values()]
        packed = _packed(messages, quiet, documents, out, domain, text, tokens, tokenizer, vocabulary, held_out)
        training = _training(
            steps=steps, batch=batch, context=context, width=width, layers=layers, heads=heads, lr=lr,
            precision=precision, measure=measure, one_domain=one_domain, accelerator=accelerator,
        )  # fmt: skip

        @contextmanager
        def watch(todo: int, found: int, fractions: np.ndarray) -> Iterator[Callable[[Run | Failure], None]]:
            nonlocal kept
            ended, kept = 0, f"{found} of {found + todo} runs are kept"
            if found and not quiet:
                messages.print(f"{found} of {found + todo} runs are in the store already")
            with _bar(lambda: float(fractions.sum()), todo, messages, quiet) as tell:

                def note(outcome: Run | Failure) -> None:
                    nonlocal ended, kept
                    ended += 1
                    kept = f"{found + ended} of {found + todo} runs are kept"
                    if hasattr(outcome, "error"):
                        messages.print(f"failed: {outcome.error}", markup=False)
                        tell("failed")
                    else:
                        tell(f"loss {outcome.metrics['valid']:.4f} in {outcome.seconds:.1f} s")

                yield note

        try:
            parts = tuple(part for part in packed.parts if part != "train")
            made, runs, failed = run_proxies(
                packed, asked, training, out, seeds=parse_seeds(seeds), parts=parts, workers=jobs, engine=engine,
                address=address, watch=watch,
            )  # fmt: skip
        except KeyboardInterrupt:
            typer.echo(f"omnimix: stopped; {kept}; the same command continues from there", err=True)
            raise typer.Exit(130) from None
    done = [job for job in made if job.key in runs]
    result: dict[str, Any] = {
        "runs": len(done),
        "failed": [{"index": job.index, "error": failed[job.key].error} for job in made if job.key in failed],
        "domains": list(packed.domains),
        "tokens": sum(runs[job.key].extras["tokens"] for job in done),
        "flops": sum(runs[job.key].extras["flops"] for job in done),
        "seconds": sum(runs[job.key].seconds for job in done),
        "unmeasured": {
            part: [
                name for name, count in zip(packed.domains, packed.sequences(part, context), strict=True) if not count
            ]
            for part in parts
        },
        "mixtures": str(out / "mixtures.csv"),
        "losses": {part: str(out / f"losses-{part}.csv") for part in parts},
    }
    for part, lacking in result["unmeasured"].items():
        if lacking:
            messages.print(f"note: part {part} holds no documents of {', '.join(lacking)}; means are over the others")
    if as_json:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    elif not quiet:
        console(stderr=False).print(
            f"{len(done)} runs, {result['tokens']:.3g} tokens, {result['flops']:.3g} FLOPs. Fit them:\n"
            f"  omnimix weigh fit --mixtures {result['mixtures']} --losses {out / 'losses-valid.csv'} "
            "--target loss/mean",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if failed:
        raise typer.Exit(1)


@weigh.command("online")
def online(
    documents: Documents,
    method: Annotated[
        str, typer.Option(help="doremi, doge, r-and-b, odm or group-dro, with settings: doge:mu=0.05.")
    ] = "doremi",
    target: Annotated[
        str, typer.Option(help="What the model is for, as code=1,law=3 (doge, r-and-b). Default: all domains alike.")
    ] = "",
    out: Out = Path("omnimix-out/weigh"),
    domain: Domain = "domain",
    text: Text = "text",
    tokens: Tokens = None,
    tokenizer: Tokenizer = "bytes",
    vocabulary: Vocabulary = None,
    held_out: HeldOut = "valid=0.1,test=0.1",
    steps: Steps = 200,
    batch: Batch = 32,
    context: Context = 128,
    width: Width = 64,
    layers: Layers = 2,
    heads: Heads = 4,
    lr: Rate = 3e-3,
    precision: Precision = "32-true",
    measure: Measure = None,
    seed: Annotated[int, typer.Option(help="Of initial weights and draws.", rich_help_panel=RUNNING)] = 0,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu or auto.", rich_help_panel=RUNNING)] = "cpu",
    devices: Annotated[int, typer.Option(help="Devices (CPU: processes) of the run.", rich_help_panel=RUNNING)] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small language model whose mixture is learned on the way, and write the mixture that it found.

    A command that was stopped continues where it was. Writes METHOD.json, a mixture that `omnimix weigh export` reads.
    """
    messages = console(stderr=True)
    with user_errors():
        from ..compare.spec import Spec
        from ..corpora.weigh.online import METHODS, weigh_online

        spec = Spec.parse(method)
        if spec.name not in METHODS:
            raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {spec.name!r}")
        packed = _packed(messages, quiet, documents, out, domain, text, tokens, tokenizer, vocabulary, held_out)
        training = _training(
            steps=steps, batch=batch, context=context, width=width, layers=layers, heads=heads, lr=lr,
            precision=precision, measure=measure, accelerator=accelerator, devices=devices,
        )  # fmt: skip
        reached = 0.0

        def tell(share: float) -> None:
            nonlocal reached
            reached = share

        with _bar(lambda: reached, 1, messages, quiet) as ended:
            found = weigh_online(
                packed, training, spec.name, target=_shares("--target", target) or None, seed=seed,
                parts=tuple(part for part in packed.parts if part != "train"), folder=out / "checkpoints",
                progress=tell, **dict(spec.parameters),
            )  # fmt: skip
            ended(f"{spec.name} in {found.seconds:.1f} s")
        file = out / f"{spec.name}.json"
        found.mixture.save(file)
    losses = {  # NaN, which JSON has not, where a part lacks a domain
        part: {name: loss if isfinite(loss) else None for name, loss in by_domain.items()}
        for part, by_domain in found.trained.losses.items()
    }
    facts = {
        "method": str(spec), "weights": found.mixture.weights, "losses": losses,
        "path": [{"step": step, "weights": weights} for step, weights in found.trained.path],
        "epochs": found.trained.epochs, "tokens": found.tokens, "flops": found.flops, "seconds": found.seconds,
        "mixture": str(file),
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(facts, allow_nan=False) + "\n")
    elif not quiet:
        screen = console(stderr=False)
        table = Table("domain", "tokens", "weight", "held-out loss")
        part = next(iter(found.trained.losses))
        sizes = packed.tokens()
        for name, weight in sorted(found.mixture.weights.items(), key=lambda pair: -pair[1]):
            table.add_row(
                name,
                f"{sizes[name] / sum(sizes.values()):.4f}",
                f"{weight:.4f}",
                f"{found.trained.losses[part][name]:.4f}",
            )
        screen.print(table)
        screen.print(f"{found.tokens:.3g} tokens, {found.flops:.3g} FLOPs; the mixture is in {file}", markup=False)


def _packed(
    messages: Console,
    quiet: bool,
    documents: list[Path],
    out: Path,
    domain: str,
    text: str,
    tokens: str | None,
    tokenizer: str,
    vocabulary: int | None,
    held_out: str,
) -> Packed:
    from ..corpora.proxy import Columns, pack

    folder = out / "tokens"
    if not quiet and not (folder / "packed.json").exists():
        messages.print("reading and packing the documents", markup=False)
    columns = Columns(domain, None if tokens is not None else text, tokens)
    return pack(
        documents, folder, columns=columns, tokenizer=tokenizer, vocabulary=vocabulary,
        held_out=_shares("--held-out", held_out),
    )  # fmt: skip


def _training(**given: Any) -> Training:
    from ..corpora.proxy import Training

    return Training(**given)


def _shares(option: str, text: str) -> dict[str, float]:
    """`a=0.1,b=2` as a dict."""
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"{option} must be names and numbers, as a=0.1,b=0.2, got {part!r}")
    return found


@contextmanager
def _bar(share: Callable[[], float], total: int, out: Console, quiet: bool) -> Iterator[Callable[[str], None]]:
    if quiet:
        yield lambda text: None
        return
    with progress(share, total, out) as tell:
        yield tell
