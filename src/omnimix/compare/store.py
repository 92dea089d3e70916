"""The result store: one SQLite file in WAL mode, a row a finished run, written once and never changed.

A run is keyed by the hash of all that decides its result (see `jobs.Job`), so a comparison that was killed finds its
rows again, and two comparisons may share a file. Failed runs are kept apart, with traceback and configuration; they
are tried again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
_APPLICATION = 0x6F6D6978
"""The bytes of "omix": marks the file as ours."""
_TABLES = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY, method TEXT NOT NULL, seed INTEGER NOT NULL, data TEXT NOT NULL, code TEXT NOT NULL,
    config TEXT NOT NULL, metrics TEXT NOT NULL, domains TEXT NOT NULL, history TEXT NOT NULL, best_epoch INTEGER,
    seconds REAL NOT NULL, step_seconds REAL, peak_memory INTEGER, device TEXT NOT NULL, versions TEXT NOT NULL,
    finished REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE failures (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, method TEXT NOT NULL, seed INTEGER NOT NULL, config TEXT NOT NULL,
    error TEXT NOT NULL, traceback TEXT NOT NULL, versions TEXT NOT NULL, finished REAL NOT NULL
);
CREATE INDEX failures_by_key ON failures (key);
"""


class StoreError(ValueError):
    """The store cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run. metrics: of the test set; domains: the same by domain name; history: one dict an epoch."""

    key: str
    method: str
    seed: int
    data: str
    code: str
    config: dict[str, Any]
    metrics: dict[str, float | None]
    domains: dict[str, dict[str, float | None]]
    history: list[dict[str, Any]]
    best_epoch: int | None
    seconds: float
    step_seconds: float | None
    peak_memory: int | None
    device: str
    versions: dict[str, str]
    finished: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error."""

    key: str
    method: str
    seed: int
    config: dict[str, Any]
    error: str
    traceback: str
    versions: dict[str, str]
    finished: float = field(default_factory=time.time)


_JSON = ("config", "metrics", "domains", "history", "versions")


class Store:
    """`with Store(path) as store:`; makes the file if it is not there. StoreError for files that are not a store."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: cannot open the result store ({error}); choose another --out") from error
        self._db.row_factory = sqlite3.Row
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StoreError(
                f"{self.path}: not a readable result store ({error}). It was left as it is: "
                "move it away to start anew, or choose another --out"
            ) from error
        except StoreError:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            mark, schema = self._pragma("application_id"), self._pragma("user_version")
            empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if empty and mark == 0:
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA}")
            elif mark != _APPLICATION:
                raise StoreError(
                    f"{self.path}: this SQLite file is not a result store of omnimix; choose another --out"
                )
            elif schema != SCHEMA:
                raise StoreError(
                    f"{self.path}: the store has schema {schema}, this omnimix reads {SCHEMA}; "
                    "use the version that wrote it, or choose another --out"
                )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        state = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(state)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def add(self, entry: Run | Failure) -> bool:
        """Write a run or a failure; False if a run with this key is there already (it stays)."""
        table = "runs" if isinstance(entry, Run) else "failures"
        row = {
            name: json.dumps(value, allow_nan=False) if name in _JSON else value for name, value in vars(entry).items()
        }
        columns, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        once = " ON CONFLICT (key) DO NOTHING" if table == "runs" else ""
        try:
            done = self._db.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks}){once}", row)
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: cannot write a result ({error}); the results so far are kept, start again to continue"
            ) from error
        return done.rowcount == 1

    def runs(self, keys: Iterable[str]) -> dict[str, Run]:
        """The finished runs among `keys`."""
        return {row["key"]: Run(**_read(row)) for row in self._rows("runs", keys)}

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """The last failure of each of `keys`."""
        found = sorted(self._rows("failures", keys), key=lambda row: row["id"])
        return {row["key"]: Failure(**{k: v for k, v in _read(row).items() if k != "id"}) for row in found}

    def _rows(self, table: str, keys: Iterable[str]) -> list[sqlite3.Row]:
        wanted = json.dumps(sorted(set(keys)))
        return self._db.execute(
            f"SELECT * FROM {table} WHERE key IN (SELECT value FROM json_each(?))", (wanted,)
        ).fetchall()

    def foreign(self, data: str, code: str) -> int:
        """How many runs on these data were made by other code than that (with any plug-ins)."""
        query = "SELECT count(*) FROM runs WHERE data = ? AND code NOT LIKE ? || '%'"
        return int(self._db.execute(query, (data, code)).fetchone()[0])

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM runs").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(row: sqlite3.Row) -> dict[str, Any]:
    return {name: json.loads(row[name]) if name in _JSON else row[name] for name in row.keys()}  # noqa: SIM118
