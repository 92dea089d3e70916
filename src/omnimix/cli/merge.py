"""`omnimix merge`: one checkpoint of several, tensor by tensor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .console import app, console, progress, user_errors

SHOWN = 40
"""Rows of differences on the screen; --json has all."""


@app.command()
def merge(
    what: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|RECIPE",
            help="How to merge, or a recipe (.yaml); with --evaluate methods with commas between.",
        ),
    ],
    models: Annotated[
        list[str] | None, typer.Argument(help="Local folders, or files of weights; MODEL+ADAPTER adds a LoRA adapter.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the merged model; new.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that the others were fine-tuned from.")] = None,
    weight: Annotated[str | None, typer.Option(help="One number a model, as 0.3,0.7.")] = None,
    density: Annotated[str | None, typer.Option(help="Share of changes kept, one number or one a model.")] = None,
    lam: Annotated[float | None, typer.Option("--lambda", "--lam", help="Scale of the merged change.")] = None,
    t: Annotated[float | None, typer.Option("-t", "--t", help="Share of the way to the second model.")] = None,
    trim: Annotated[str | None, typer.Option(help="ties: trim over the whole model, or each tensor.")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Divide by the sum of weights.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn at random.")] = None,
    experts_per_token: Annotated[
        int | None,
        typer.Option(
            help="Make a mixture of experts that chooses so many: the models' feed-forward networks are the experts, "
            "METHOD merges the rest (linear: branch-train-mix; ties, dare-*: MergeME)."
        ),
    ] = None,
    average: Annotated[
        list[str] | None, typer.Option(help="In a mixture: tensors to average, as '*embed*'; vectors always are.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the result; default that of the inputs.")] = None,
    shard_size: Annotated[float, typer.Option(help="GB of values in a file, at most.")] = 5.0,
    allow: Annotated[list[str] | None, typer.Option(help="What may differ: config, vocabulary.")] = None,
    unpickle: Annotated[bool, typer.Option("--unpickle", help="Read files of torch.save too (tensors only).")] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Try methods and coefficients, report, and keep the best by this function of a folder.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="With --evaluate: draws of the open coefficients, a method.")] = 8,
    lower: Annotated[
        bool, typer.Option("--lower", help="With --evaluate: lower is better, as for perplexity.")
    ] = False,
    draw_seed: Annotated[int, typer.Option(help="With --evaluate: seed of the draws.")] = 0,
    jobs: Annotated[int, typer.Option(help="With --evaluate: merges that are measured at a time.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Say what stands in the way, and write nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Merge models that share an architecture into one, whatever their size.

    With --experts-per-token they become one mixture of experts. A merge that was stopped goes on when the same command
    is given again.
    """
    options = {
        "weight": weight, "density": density, "lambda": lam, "t": t, "trim": trim, "normalize": normalize, "seed": seed
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    sparse = {"experts_per_token": experts_per_token, "average": tuple(average or ())}
    asked = {name: value for name, value in {**sparse, "dtype": dtype}.items() if value not in (None, ())}
    with user_errors():
        if out is None and not check:
            raise ValueError("--out DIR is needed (or --check, which writes nothing)")
        from ..models import checkpoint

        how: dict[str, Any] = {"shard_size": round(shard_size * 1e9), "allow": allow or (), "unpickle": unpickle}
        evaluation = None
        try:
            if evaluate is None:
                recipe = _recipe(what, models or [], base, given, asked)
            else:
                if out is None or check:
                    raise ValueError("--evaluate merges: it needs --out DIR, and goes without --check")
                names = [what] if what.endswith((".yaml", ".yml")) else what.split(",")
                if unknown := [key for key in given if not any(key in _taken(name, given, asked) for name in names)]:
                    raise ValueError(f"--{unknown[0]}: none of {', '.join(names)} takes it")
                recipes = [_recipe(name, models or [], base, _taken(name, given, asked), asked) for name in names]
                recipe, evaluation = _best(recipes, evaluate, out, draws, draw_seed, lower, jobs, how)
            plan = checkpoint.plan_merge(recipe, **how)
        except checkpoint.Disagreement as error:
            _tell_differences(error, as_json)
            raise typer.Exit(2) from None
        plan.evaluation = evaluation
        tell = console(stderr=True)
        done = 0

        def share() -> float:
            return done / max(plan.size, 1) * len(plan.tensors)

        # a line for every tensor is for nobody: the bar shows on terminals only
        if tell.is_terminal:
            with progress(share, len(plan.tensors), tell, "tensors") as ended:

                def told(reached: int, name: str) -> None:
                    nonlocal done
                    done = reached
                    ended(name)

                _work(plan, out, check, told)
        else:
            _work(plan, out, check, lambda reached, name: None)
    facts = {"tensors": len(plan.tensors), "bytes": plan.size, "files": list(plan.shards), **recipe.facts()}
    if as_json:
        said = {"out": None if check else str(out), **facts, "differences": [], "evaluation": evaluation}
        sys.stdout.write(json.dumps(said) + "\n")
    else:
        verb = "can be merged" if check else f"merged into {out}"
        files = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
        note = "" if recipe.experts_per_token is None else "; its routers are random and have to be trained"
        typer.echo(f"{len(plan.tensors)} tensors, {plan.size / 1e9:.3g} GB, {files}: {verb}{note}")


def _work(plan: Any, out: Path | None, check: bool, told: Any) -> None:
    from ..models import checkpoint

    if check:
        checkpoint.check_values(plan, told)
    else:
        assert out is not None
        checkpoint.merge_checkpoints(plan, out, told)


def _taken(name: str, given: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Of the options given, those that a method takes; a recipe takes all, and says what it does not."""
    from ..models.checkpoint import METHODS
    from ..models.checkpoint.recipe import taken

    name = name.replace("_", "-")
    if name not in METHODS:
        return dict(given)
    return {key: value for key, value in given.items() if key in taken(name, "experts_per_token" in asked)}


def _best(
    recipes: list[Any], text: str, out: Path, draws: int, seed: int, lower: bool, jobs: int, how: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The best recipe of a sweep, and what its card says of it."""
    from ..compare import merging, merging_report

    judge = merging.Judge.of(text)
    asked = merging.candidates(recipes, draws, seed)
    models = len({path for recipe in recipes for path in (recipe.base, *recipe.models) if path})
    tell, done = console(stderr=True), 0
    with progress(lambda: done, models + len(asked), tell, "models") as ended:

        def told(score: Any) -> None:
            nonlocal done
            done += 1
            ended(f"{score.name} {_said(score.options)}: {score.value:.6g}")

        work = out.with_name(out.name + ".evaluation")
        scores = merging.evaluate(asked, judge, work, told=told, workers=jobs, **how)
    report = merging_report.write(scores, work, judge=text, lower=lower, store=work / merging.STORE)
    order = merging.ranked(scores, lower)
    table = Table("model or operator", "options", "score", "seconds")
    for score in order[:SHOWN]:
        table.add_row(score.name, _said(score.options), f"{score.value:.6g}", f"{score.seconds:.1f}")
    tell.print(table, markup=False)
    best = next(score for score in order if score.recipe is not None)
    if order[0].recipe is None:
        tell.print(f"no merge is better than {order[0].name} alone ({order[0].value:.6g})", markup=False)
    tell.print(f"report: {report}", markup=False)
    rows = [
        {
            "name": score.name,
            "options": dict(score.options),
            "score": score.value,
            "ci95": score.interval and [*score.interval],
        }
        for score in order
    ]
    return best.recipe, {"function": text, "lower_is_better": lower, "draws": draws, "seed": seed, "scores": rows}


def _said(options: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _recipe(what: str, models: list[str], base: str | None, given: dict[str, Any], asked: dict[str, Any]) -> Any:
    """What the command line asks for. asked: of the result, whatever the method."""
    from dataclasses import replace

    from ..models.checkpoint import METHODS, Recipe, read_recipe

    if what.endswith((".yaml", ".yml")):
        if models or base or given:
            raise ValueError(f"{what} says what to merge; put models, base and {', '.join(given) or 'options'} there")
        recipe = read_recipe(what)
        return replace(recipe, **asked)
    name = what.replace("_", "-")
    if name not in METHODS:
        raise ValueError(f"METHOD must be one of {', '.join(METHODS)}, or a recipe that ends in .yaml, got {what!r}")
    own: list[dict[str, float]] = [{} for _ in models]
    for option in ("weight", "density"):
        if option in given:
            numbers = _numbers(option, given.pop(option))
            if len(numbers) == 1 and option == "density":
                given[option] = numbers[0]
            elif len(numbers) != len(models):
                raise ValueError(f"--{option} must be one number a model: got {len(numbers)} for {len(models)} models")
            else:
                for one, number in zip(own, numbers, strict=True):
                    one[option] = number
    return Recipe(name, tuple(models), base, given, tuple(own) if any(own) else (), **asked)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be numbers with commas between, as 0.3,0.7, got {text!r}") from None


def _tell_differences(error: Any, as_json: bool) -> None:
    """The table of what differs: on standard error, or as JSON."""
    if as_json:
        rows = [{"kind": row.kind, "name": row.name, "values": list(row.values)} for row in error.rows]
        sys.stdout.write(json.dumps({"models": error.labels, "differences": rows}) + "\n")
    out = console(stderr=True)
    table = Table(*("differs", "name", *error.labels))
    for row in error.rows[:SHOWN]:
        table.add_row(row.kind, row.name, *row.values)
    out.print("omnimix: the models do not fit together", markup=False)
    out.print(table, markup=False)
    if len(error.rows) > SHOWN:
        out.print(f"and {len(error.rows) - SHOWN} more; --json lists all")
    out.print(error.remedy(), markup=False)
