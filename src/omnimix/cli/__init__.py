"""The command line: one file a verb."""

from __future__ import annotations

import sys
from collections.abc import Callable


def load() -> Callable[[], None]:
    """The application with all its verbs, ready to be called."""
    try:
        from .console import app
    except ImportError as error:
        missing = (error.name or str(error)).split(".")[0]
        sys.exit(f'omnimix: the command line needs {missing}: pip install "omnimix[compare]"')
    from . import compare, merge, methods, show, weigh, weigh_annotate, weigh_export, weigh_run, weigh_select  # noqa: F401  (each adds its verb)

    return app


def main() -> None:
    """The command `omnimix`."""
    load()()


__all__ = ["load", "main"]
