"""`python -m omnimix.compare.rescue DAMAGED NEW`: copy the runs of a damaged store that are whole to a new store.

The damaged file is only read. What could not be read is computed again by the next comparison with the new store.
"""

from __future__ import annotations

import glob
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from .store import Run, Store, StoreError, read, read_only


def rescue(damaged: Path, new: Path) -> tuple[int, int]:
    """(runs copied to `new`, runs seen but damaged). StoreError if nothing can be read, or `new` is there already."""
    if new.exists():
        raise StoreError(f"{new}: this file is there already; name one that is not")
    try:
        with TemporaryDirectory() as folder, closing(read_only(_copy(damaged, Path(folder)))) as db:
            keys = dict.fromkeys((*_keys(db, "ASC"), *_keys(db, "DESC")))
            whole = [run for key in keys for run in _run(db, key)]
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{damaged}: nothing can be read ({error}); move it away to start anew") from error
    if not whole:
        raise StoreError(f"{damaged}: no run in it is whole; move it away to start anew")
    with Store(new) as store:
        for run in whole:
            store.add(run)
    return len(whole), len(keys) - len(whole)


def _copy(damaged: Path, folder: Path) -> Path:
    """A copy with its log, filled up to the size that its header states: SQLite reads nothing of a shorter file."""
    copy = folder / damaged.name
    for file in damaged.parent.glob(f"{glob.escape(damaged.name)}*"):
        shutil.copyfile(file, folder / file.name)
    with open(copy, "r+b") as content:
        header = content.read(32)
        stated = int.from_bytes(header[16:18], "big") * int.from_bytes(header[28:32], "big")
        size = content.seek(0, os.SEEK_END)
        if size < stated < 100 * size:
            content.truncate(stated)
    return copy


def _keys(db: sqlite3.Connection, order: str) -> Iterator[str]:
    """The keys from one end of the table to the first page that cannot be read."""
    try:
        for row in db.execute(f"SELECT key FROM runs ORDER BY key {order}"):
            yield row["key"]
    except sqlite3.DatabaseError:
        return


def _run(db: sqlite3.Connection, key: str) -> Iterator[Run]:
    try:
        yield from (read(Run, row) for row in db.execute("SELECT * FROM runs WHERE key = ?", (key,)))
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter: a damaged name of a column
        return


def main(arguments: list[str]) -> str | None:
    """Say what was copied; a message, if it could not be."""
    if len(arguments) != 2:
        return "usage: python -m omnimix.compare.rescue DAMAGED NEW"
    try:
        copied, lost = rescue(*map(Path, arguments))
    except StoreError as error:
        return str(error)
    print(f"{copied} runs copied to {arguments[1]}" + (f"; {lost} are damaged and will run again" if lost else ""))
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
