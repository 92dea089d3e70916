"""The command line: one file a verb."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point `omnimix`."""
    try:
        from .console import app
    except ImportError as error:
        missing = (error.name or str(error)).split(".")[0]
        sys.exit(f'omnimix: the command line needs {missing}: pip install "omnimix[compare]"')
    from . import compare, merge, methods, show, weigh, weigh_export, weigh_run  # noqa: F401  (each adds its verb)

    app()


__all__ = ["main"]
