"""`omnimix weigh`: which mixture of domains a language model should be trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .console import app, console, user_errors

if TYPE_CHECKING:
    from ..corpora.weigh.run_table import RunTable
    from ..corpora.weigh.study import How, Study

weigh = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Find the mixture of domains for a language model, from runs on small models.",
)  # fmt: skip
app.add_typer(weigh, name="weigh")
"""The verbs of `weigh`; cli/weigh_run.py and cli/weigh_export.py add theirs by `@weigh.command()`."""

Mixtures = Annotated[Path, typer.Option(help="CSV: index (or run), and a column a domain with its weight.")]
Losses = Annotated[Path, typer.Option(help="CSV: index (or run), and a column a validation loss.")]
TestMixtures = Annotated[list[Path] | None, typer.Option(help="Mixtures of other runs; may be given several times.")]
TestLosses = Annotated[list[Path] | None, typer.Option(help="Their losses, in the same order.")]
Target = Annotated[str, typer.Option(help="Loss column to lower; average: the mean of all; all: each.")]
RegressorOption = Annotated[
    str, typer.Option(help="lightgbm, ols, ridge, mixing-law, bimix or transfer-law, with parameters: ridge:alpha=0.1.")
]
Sizes = Annotated[Path | None, typer.Option(help="CSV: domain and what it holds (tokens), or its share.")]
Proposer = Annotated[
    str | None,
    typer.Option(
        help="simulate, convex, slsqp or kl-search, this one with parameters: kl-search:iterations=15:pull=0.2:"
        "upsampling=6.5. Default by regressor."
    ),
]
Candidates = Annotated[int, typer.Option(help="Mixtures that are simulated; kl-search: in every round.", min=1)]
Top = Annotated[int, typer.Option(help="How many of the best simulated mixtures are averaged.", min=1)]
Kl = Annotated[
    float | None,
    typer.Option(help="Strength of staying near the sizes' shares. Default: convex 0, kl-search 0.002.", min=0.0),
]
Budget = Annotated[float | None, typer.Option(help="Tokens of the large run, in the unit of the sizes.")]
MaxEpochs = Annotated[
    float | None, typer.Option(help="How often a domain may be gone through; needs sizes and budget.")
]
Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="Let a domain have more weight than in any fitted run.")
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn at random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@weigh.command()
def design(
    sizes: Annotated[Path, typer.Option(help="CSV: domain and what it holds (tokens), or its share.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file of mixtures to write; new.")],
    runs: Annotated[int, typer.Option(help="How many mixtures.", min=1)] = 512,
    kind: Annotated[
        str, typer.Option(help="dirichlet, sobol, grid, or perturbations (for the transfer law).")
    ] = "dirichlet",
    temperature: Annotated[float, typer.Option(help="dirichlet: T of share^(1/T); 1 keeps the shares.")] = 2.0,
    strength: Annotated[str, typer.Option(help="dirichlet: smallest and largest concentration.")] = "0.1,5",
    cap: Annotated[float, typer.Option(help="No weight above this times the domain's reference.")] = 15.0,
    reference: Annotated[str, typer.Option(help="share, as RegMix; or prior, tempered, as WebOrganizer.")] = "share",
    apart: Annotated[
        float, typer.Option(help="Least difference of two mixtures in their most different weight.")
    ] = 0.0,
    minimum: Annotated[float, typer.Option(help="Smallest weight beside 0, and the step of all.")] = 2e-4,
    base: Annotated[float, typer.Option(help="perturbations: tokens of every domain in the base run.")] = 1.0,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Draw the mixtures that small models are to be trained on."""
    with user_errors():
        import torch

        from ..corpora.weigh.design import MixtureDesign
        from ..corpora.weigh.dmo import perturbations
        from ..corpora.weigh.run_table import read_sizes, write_mixtures

        if out.exists():
            raise ValueError(f"--out {out} exists already: name a new file")
        shares = read_sizes(sizes)
        if kind == "perturbations":
            weights = perturbations(list(shares), base)
        else:
            low, high = _two(strength)
            plan = MixtureDesign(
                shares, kind=kind, temperature=temperature, strength=(low, high), cap=cap, reference=reference,
                minimum=minimum, apart=apart,
            )  # fmt: skip
            weights = plan.draw(runs, torch.Generator().manual_seed(seed))
        write_mixtures(out, list(shares), weights)
    facts = {"out": str(out), "runs": len(weights), "domains": list(shares), "kind": kind, "seed": seed}
    if as_json:
        _print({**facts, "mean": dict(zip(shares, weights.mean(0).tolist(), strict=True))})
    else:
        typer.echo(f"{len(weights)} mixtures of {len(shares)} domains: {out}")


@weigh.command()
def fit(
    mixtures: Mixtures,
    losses: Losses,
    target: Target,
    regressor: RegressorOption = "lightgbm",
    test_mixtures: TestMixtures = None,
    test_losses: TestLosses = None,
    sizes: Sizes = None,
    proposer: Proposer = None,
    candidates: Candidates = 100_000,
    top: Top = 128,
    kl: Kl = None,
    budget: Budget = None,
    max_epochs: MaxEpochs = None,
    extrapolate: Extrapolate = False,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Fit the losses of finished runs, test the fit on other runs, and propose a mixture.

    Prints an object; with --target all an array of them.
    """
    with user_errors():
        table, tests = _tables(mixtures, losses, test_mixtures, test_losses, regressor)
        how = _how(table, sizes, proposer, candidates, top, kl, budget, max_epochs, extrapolate, seed)
        studies = _studies(table, tests, target, [regressor], how)
    if as_json:
        found = [one.to_dict() for one in studies]
        _print(found if target == "all" else found[0])
        return
    for one in studies:
        _show_tests(one)
        _show_weights(one)
    _show_invariance(studies, tests)


@weigh.command()
def propose(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the mixture to write; new.")] = None,
    mixtures: Annotated[Path | None, typer.Option(help="CSV of mixtures, as for fit.")] = None,
    losses: Annotated[Path | None, typer.Option(help="CSV of losses, as for fit.")] = None,
    target: Annotated[str | None, typer.Option(help="Loss column to lower; average: the mean of all.")] = None,
    regressor: RegressorOption = "lightgbm",
    heuristic: Annotated[
        str | None, typer.Option(help="Without runs, from sizes: uniform, proportional, temperature or unimax.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="temperature: T of size^(1/T).")] = 2.0,
    sizes: Sizes = None,
    proposer: Proposer = None,
    candidates: Candidates = 100_000,
    top: Top = 128,
    kl: Kl = None,
    budget: Budget = None,
    max_epochs: MaxEpochs = None,
    extrapolate: Extrapolate = False,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Propose a mixture, from runs or from sizes alone, and write it as JSON."""
    with user_errors():
        if out is not None and out.exists():
            raise ValueError(f"--out {out} exists already: name a new file")
        if heuristic is not None:
            mixture, predicted = _heuristic(heuristic, sizes, temperature, budget, max_epochs), None
        else:
            if mixtures is None or losses is None or target is None or target == "all":
                raise ValueError("--mixtures, --losses and one --target are needed (or --heuristic and --sizes)")
            table, _ = _tables(mixtures, losses, None, None, regressor)
            how = _how(table, sizes, proposer, candidates, top, kl, budget, max_epochs, extrapolate, seed)
            found = _studies(table, [], target, [regressor], how)[0]
            mixture, predicted = found.proposal, found.predicted
        if out is not None:
            mixture.save(out)
    if as_json:
        _print({"out": None if out is None else str(out), "predicted": predicted, **mixture.to_dict()})
        return
    table_ = Table("domain", "weight")
    for domain, weight in sorted(mixture.weights.items(), key=lambda item: -item[1]):
        table_.add_row(domain, f"{weight:.4f}")
    screen = console(stderr=False)
    screen.print(table_)
    if predicted is not None:
        screen.print("predicted loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in predicted.items()))


@weigh.command()
def report(
    mixtures: Mixtures,
    losses: Losses,
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    regressor: Annotated[list[str] | None, typer.Option(help="As for fit; may be given several times.")] = None,
    test_mixtures: TestMixtures = None,
    test_losses: TestLosses = None,
    sizes: Sizes = None,
    proposer: Proposer = None,
    candidates: Candidates = 100_000,
    top: Top = 128,
    kl: Kl = None,
    budget: Budget = None,
    max_epochs: MaxEpochs = None,
    extrapolate: Extrapolate = False,
    parameters: Annotated[float | None, typer.Option(help="Parameters of a fitted run's model, for its cost.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a fitted run.")] = None,
    large_parameters: Annotated[float | None, typer.Option(help="Parameters of the large run.")] = None,
    large_tokens: Annotated[float | None, typer.Option(help="Tokens of the large run.")] = None,
    curve: Annotated[str, typer.Option(help="Numbers of runs of the learning curve.")] = "32,64,128,256,512",
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Write a page: weights, predicted against measured losses, learning curve, rank invariance, cost, baselines."""
    with user_errors():
        from .weigh_report import facts, write

        names = regressor or ["lightgbm", "ols"]
        table, tests = _tables(mixtures, losses, test_mixtures, test_losses, *names)
        how = _how(table, sizes, proposer, candidates, top, kl, budget, max_epochs, extrapolate, seed)
        studies = _studies(table, tests, target, names, how)
        steps = sorted({n for n in map(int, _numbers("curve", curve)) if 2 <= n <= len(table)} | {len(table)})
        costs = (parameters, tokens, large_parameters, large_tokens)
        found = facts(table, tests, studies, _makers(names), steps, costs, seed)
        write(out, found, studies)
    if as_json:
        _print({"out": str(out), **found})
    else:
        typer.echo(f"{len(studies)} fits: {out}")


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be numbers with commas between, got {text!r}") from None


def _two(text: str) -> tuple[float, float]:
    numbers = _numbers("strength", text)
    if len(numbers) != 2:
        raise ValueError(f"--strength must be two numbers, as 0.1,5, got {text!r}")
    return numbers[0], numbers[1]


def _makers(names: list[str]) -> dict[str, Any]:
    from ..compare.spec import Spec
    from ..corpora.weigh.study import parse

    specs = [Spec.parse(name) for name in names]
    return {str(spec): parse(spec.name, dict(spec.parameters)) for spec in specs}


def _tables(
    mixtures: Path, losses: Path, test_mixtures: list[Path] | None, test_losses: list[Path] | None, *regressors: str
) -> tuple[RunTable, list[tuple[str, RunTable]]]:
    """The runs to fit and, by the name of their file of losses, the runs to test on."""
    from ..corpora.weigh.run_table import RunTable

    amounts = {name.split(":")[0] == "transfer-law" for name in regressors}
    if len(amounts) > 1:
        raise ValueError("transfer-law is of token amounts, the other regressors are of weights: report them apart")
    left, right = test_mixtures or [], test_losses or []
    if len(left) != len(right):
        raise ValueError(f"--test-mixtures is given {len(left)} times, --test-losses {len(right)} times")
    whole = RunTable.read(mixtures, losses, amounts=amounts.pop())
    tests = [RunTable.read(a, b, amounts=whole.amounts) for a, b in zip(left, right, strict=True)]
    return whole, list(zip([path.stem for path in right], tests, strict=True))


def _how(
    table: RunTable, sizes: Path | None, proposer: str | None, candidates: int, top: int, kl: float | None,
    budget: float | None, max_epochs: float | None, extrapolate: bool, seed: int,
) -> How:  # fmt: skip
    from ..compare.spec import Spec
    from ..corpora.weigh.run_table import read_sizes
    from ..corpora.weigh.study import How, epoch_caps

    known = None if sizes is None else {table.domain(name): size for name, size in read_sizes(sizes).items()}
    if known is not None and set(known) != set(table.domains):
        raise ValueError(f"{sizes} has no row for {', '.join(sorted(set(table.domains) - set(known)))}")
    caps = None
    if max_epochs is not None:
        if known is None or budget is None:
            raise ValueError("--max-epochs needs --sizes (in tokens) and --budget")
        caps = epoch_caps(table.domains, known, budget, max_epochs)
    name, parameters = None, {}
    if proposer is not None:
        name, parameters = (asked := Spec.parse(proposer)).name, dict(asked.parameters)
    return How(name, candidates, top, kl, seed, known, caps, budget, extrapolate, parameters)


def _studies(
    table: RunTable, tests: list[tuple[str, RunTable]], target: str, names: list[str], how: How
) -> list[Study]:
    from ..corpora.weigh.study import study

    targets = list(table.metrics) if target == "all" else [target]
    return [
        study(table, one, name, make, tests, how) for one in targets for name, make in _makers(names).items()
    ]  # fmt: skip


def _heuristic(name: str, sizes: Path | None, t: float, budget: float | None, max_epochs: float | None) -> Any:
    from ..core.checks import one_of
    from ..corpora.weigh.run_table import read_sizes
    from ..corpora.weigh.temperature import proportional, temperature, uniform
    from ..corpora.weigh.unimax import unimax

    one_of("heuristic", name, ("uniform", "proportional", "temperature", "unimax"))
    if sizes is None:
        raise ValueError(f"--heuristic {name} needs --sizes")
    known = read_sizes(sizes)
    if name == "unimax":
        if budget is None:
            raise ValueError("--heuristic unimax needs --budget")
        return unimax(known, budget, 4.0 if max_epochs is None else max_epochs)
    mixture = (
        temperature(known, t)
        if name == "temperature"
        else {"uniform": uniform, "proportional": proportional}[name](known)
    )
    if max_epochs is not None:
        if budget is None:
            raise ValueError("--max-epochs needs --budget")
        mixture.epochs(budget, known, max_epochs)
    return mixture


def _show_tests(one: Study) -> None:
    """Tests as a table: correlations x 100, errors in the unit of the losses, and the ranking that needs no model."""
    screen = console(stderr=False)
    screen.print(f"{one.regressor} on {one.target}", markup=False)
    for note in one.notes:
        screen.print(f"note: {note}", markup=False)
    if not one.tests:
        return
    trivial = f"by {one.domains[one.ranking.domain]} alone"
    table = Table("test", "runs", "Spearman", trivial, "Pearson", "MAE", "MSE", "lowest predicted")
    for test in one.tests:
        s = test.score
        table.add_row(
            test.name, str(s.n), f"{100 * s.spearman:.2f}", f"{100 * test.ranking:.2f}", f"{100 * s.pearson:.2f}",
            f"{s.mae:.4f}", f"{s.mse:.4f}", f"run {test.runs[test.best]}, measured place {test.place_of_best} of {s.n}",
        )  # fmt: skip
    screen.print(table)


def _show_weights(one: Study) -> None:
    table = Table("domain", "proposal", "proportional", "uniform")
    columns = [one.proposal.weights, one.rivals["proportional"].weights, one.rivals["uniform"].weights]
    for domain in sorted(one.domains, key=lambda d: -columns[0][d]):
        table.add_row(domain, *(f"{column[domain]:.4f}" for column in columns))
    table.add_section()
    table.add_row("predicted loss", *(f"{one.predicted[name]:.4f}" for name in ("proposal", "proportional", "uniform")))
    screen = console(stderr=False)
    screen.print(table)
    screen.print(f"proportional: {one.sizes_from}", markup=False)


def _show_invariance(studies: list[Study], tests: list[tuple[str, RunTable]]) -> None:
    from ..corpora.weigh.study import invariance

    screen = console(stderr=False)
    for one in studies:
        for first, second, n, rho in invariance(one.tests, [table for _, table in tests]):
            screen.print(
                f"rank invariance on {one.target}: {rho:.4f} over the {n} mixtures that {first} and {second} share",
                markup=False,
            )
