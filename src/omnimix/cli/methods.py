"""`omnimix methods`: what there is, with paper, cost and needs."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..core.registry import Info
from .console import app, console, user_errors


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
    table = Table(show_lines=True)
    for heading in ("method", "what it does", "tasks", "cost", "paper"):
        table.add_column(heading, justify="right" if heading == "cost" else "left")
    for card in cards:
        name = card.name if card.package == "omnimix" else f"{card.name} ({card.package})"
        given = ", ".join(_write(key, value) for key, value in card.parameters.items())
        about = escape(f"{card.summary}\n{given}" if given else card.summary)
        table.add_row(escape(name), about, " ".join(card.tasks), f"{card.cost:g}", escape(card.paper))
    console(stderr=False).print(table)


def _facts(card: Info) -> dict[str, Any]:
    return {
        "name": card.name,
        "summary": card.summary,
        "tasks": list(card.tasks),
        "inputs": list(card.inputs),
        "level": card.level,
        "cost": card.cost,
        "paper": card.paper,
        "package": card.package,
        "parameters": {
            name: None if value is inspect.Parameter.empty else _plain(value) for name, value in card.parameters.items()
        },
    }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _write(name: str, value: Any) -> str:
    from ..compare.spec import write_value

    return name if value is inspect.Parameter.empty else f"{name}={write_value(value)}"
