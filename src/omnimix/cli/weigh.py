"""`omnimix weigh`: which mixture of domains a language model should be trained on."""

from __future__ import annotations

import typer

from .console import app

weigh = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Find the mixture of domains for a language model, from runs on small models.",
)  # fmt: skip
app.add_typer(weigh, name="weigh")
"""The verbs of `weigh`; cli/weigh_run.py and cli/weigh_export.py add theirs by `@weigh.command()`."""
