"""What all verbs share: the application, the consoles, errors as one message, the progress of long work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Left: TypeAlias = Callable[[], float | None]
PLAIN_WIDTH = 140
"""Columns of a table that does not go to a terminal."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Mixing samples so that models generalise better, and one fair comparison of the methods.",
)  # fmt: skip


def console(*, stderr: bool) -> Console:
    """A console that stays plain, and wide enough for a table, where its stream is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, emoji=False, soft_wrap=False, width=None if stream.isatty() else PLAIN_WIDTH
    )


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"omnimix {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


@contextmanager
def user_errors() -> Iterator[None]:
    """What the user can put right ends in one message on standard error and exit status 2; an interrupt in 130."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise _stopped() from None
    except Exception as error:
        if _interrupted(error):
            raise _stopped() from None
        if not isinstance(error, (ValueError, ImportError, OSError)):
            raise
        remedy = "" if not isinstance(error, ModuleNotFoundError) else ': pip install "omnimix[compare]"'
        typer.echo(f"omnimix: {error}{remedy}", err=True)
        raise typer.Exit(2) from None


def _stopped() -> typer.Exit:
    typer.echo("omnimix: stopped", err=True)
    return typer.Exit(130)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt is behind an error: half an import makes other exceptions of one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class _Live(Progress):
    """A bar that asks for its state whenever it is drawn."""

    def __init__(self, share: Callable[[], float], total: int, console: Console, unit: str, left: Left | None) -> None:
        columns = (
            TextColumn(f"{{task.fields[runs]}}/{{task.total:.0f}} {unit}"), BarColumn(24),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn() if left is None else TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
        )  # fmt: skip
        self.share, self.left = share, left
        self.task: TaskID | None = None
        super().__init__(*columns, console=console, transient=True, speed_estimate_period=600)
        self.task = self.add_task("", total=total, runs=0, left="-:--:--")

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.task is not None:
            seconds = None if self.left is None else self.left()
            rest: dict[str, Any] = {} if seconds is None else {"left": str(timedelta(seconds=round(seconds)))}
            self.update(self.task, completed=self.share(), **rest)
        yield from super().get_renderables()


@contextmanager
def progress(
    share: Callable[[], float], total: int, out: Console, unit: str = "runs", left: Left | None = None
) -> Iterator[Callable[[str], None]]:
    """A live bar with the time left on a terminal, a line a run elsewhere; gives the function to call with each run.

    share: how many runs' worth of work is done by now. left: the seconds that remain, where the caller knows better
    than the speed so far; None until it does.
    """
    ended = 0
    if not out.is_terminal:

        def line(text: str) -> None:
            nonlocal ended
            ended += 1
            out.print(f"[{ended}/{total}] {text}", markup=False)

        yield line
        return
    with _Live(share, total, out, unit, left) as live:

        def tell(text: str) -> None:
            nonlocal ended
            ended += 1
            live.update(live.task or TaskID(0), description=text, runs=ended)

        yield tell
