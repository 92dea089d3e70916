"""`omnimix methods`: what there is, with paper, cost and needs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..core.registry import Info
from ..core.search import Choice, Log, Range
from .console import app, console, user_errors

SAID = {"label": "all training labels", "domain": "a domain column", "feature": "all training inputs"}
"""What table columns come to for the user."""


@app.command()
def methods(
    task: Annotated[str | None, typer.Option(help="Only those for classification, multilabel or regression.")] = None,
    level: Annotated[str | None, typer.Option(help="Only those that mix samples, domains, corpora or models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, and nothing else, on stdout.")] = False,
) -> None:
    """List the methods, those of plug-ins too."""
    with user_errors():
        from ..core import registry

        cards = [registry.info(name) for name in registry.methods(task, level)]
    if as_json:
        sys.stdout.write(json.dumps([_facts(card) for card in cards]) + "\n")
        return
    out = console(stderr=False)
    if not cards:
        out.print("there is no such method yet")
        return
    table = Table(show_lines=True)
    for heading in ("method", "what it does", "tasks", "needs", "cost", "paper"):
        table.add_column(heading, justify="right" if heading == "cost" else "left")
    for card in cards:
        name = card.name if card.package == "omnimix" else f"{card.name} ({card.package})"
        given = ", ".join(_write(key, value) for key, value in card.parameters.items())
        drawn = "; ".join(f"{key} {span(within)}" for key, within in card.search.items())
        about = escape("\n".join(part for part in (card.summary, given, drawn and f"tuned: {drawn}") if part))
        needs = "\n".join(_needs(card))
        table.add_row(escape(name), about, "\n".join(card.tasks), needs, f"{card.cost:g} ×", escape(card.paper))
    out.print(table)
    out.print(
        "cost: gradient evaluations of a step relative to plain training. tuned: from where --tune draws; what is not "
        "named keeps its value. omnimix show METHOD draws what it does."
    )


def span(within: Range) -> str:
    """0.1 to 8, log-uniform"""
    if isinstance(within, Choice):
        return "one of " + ", ".join(_number(value) for value in within.values)
    unit = "" if within.unit is None else " standard deviations of the training labels"
    return f"{within.low:g} to {within.high:g}{unit}, {'log-uniform' if isinstance(within, Log) else 'uniform'}"


def _needs(card: Info) -> list[str]:
    """What a method needs beside batches, with its default parameters."""
    needs = [f"{kind}s" for kind in card.inputs if kind != "any"]
    if card.network == "attention":
        needs.append("a vision transformer (--net vit)")
    try:
        method = card.factory()
    except (TypeError, ValueError):  # it has parameters without defaults
        return needs
    return [
        *needs,
        *(SAID.get(column, column) for column in method.needs),
        *(f"a stream of {stream} batches" for stream in method.streams),
        *(["the test batch (transductive)"] if method.transductive else []),
    ]


def _facts(card: Info) -> dict[str, Any]:
    from ..samples.taxonomy import PLACES

    place = PLACES.get(card.name)
    return {
        "name": card.name,
        "summary": card.summary,
        "tasks": list(card.tasks),
        "inputs": list(card.inputs),
        "level": card.level,
        "cost": card.cost,
        "needs": _needs(card),
        "paper": card.paper,
        "package": card.package,
        "parameters": {
            name: None if value is inspect.Parameter.empty else _plain(value) for name, value in card.parameters.items()
        },
        "search": {name: _search(within) for name, within in card.search.items()},
        "survey": place and dataclasses.asdict(place),
    }


def _search(within: Range) -> dict[str, Any]:
    """A range as JSON has it."""
    if isinstance(within, Choice):
        return {"kind": "choice", "values": _plain(within.values)}
    kind = "log-uniform" if isinstance(within, Log) else "uniform"
    return {"kind": kind, "low": within.low, "high": within.high, "unit": within.unit}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _write(name: str, value: Any) -> str:
    return name if value is inspect.Parameter.empty else f"{name}={_number(value)}"


def _number(value: Any) -> str:
    """A value as users type it, rounded: 6/49 is 0.1224."""
    from ..compare.arguments import write_value

    return f"{value:.4g}" if isinstance(value, float) else write_value(value)
