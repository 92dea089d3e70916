"""The result store: one SQLite file in WAL mode, a row a finished run, written once and never changed.

A run is keyed by the hash of all that decides its result (see `jobs.Job`), so a comparison that was killed finds its
rows again, and two comparisons may share a file. Failed runs are kept apart, with traceback and configuration; they
are tried again. Every row carries a digest of itself, so that damage is noticed where SQLite cannot see it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .spec import fingerprint

_APPLICATION = 0x6F6D6978
"""The bytes of "omix": marks the file as ours."""
_STEPS = (
    """
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
    CREATE INDEX failures_by_key ON failures (key)
    """,
    """
    ALTER TABLE runs ADD COLUMN extras TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE runs ADD COLUMN digest TEXT NOT NULL DEFAULT '';
    ALTER TABLE failures ADD COLUMN digest TEXT NOT NULL DEFAULT ''
    """,
)
"""What makes each schema of the one before it; released ones are never changed."""
SCHEMA = len(_STEPS)
_SETTINGS: dict[str, Any] = {"timeout": 60, "isolation_level": None}
_DAMAGED = ("malformed", "not a database", "Could not decode")
"""What SQLite's messages on files that are not as they were written have in common."""
_REMOTE = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
"""File systems of several machines, which do not share the memory that WAL needs."""


class StoreError(ValueError):
    """The store cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run. metrics: of the test set; domains: the same by domain name; history: one dict an epoch; extras:
    what only the report draws, as JSON has it.
    """

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
    extras: dict[str, Any] = field(default_factory=dict)


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


Entry = TypeVar("Entry", Run, Failure)
_JSON = ("config", "metrics", "domains", "history", "versions", "extras")
_TABLES: dict[type, str] = {Run: "runs", Failure: "failures"}


class Store:
    """`with Store(path) as store:`; makes the file if it is not there, and brings one of an older version up to date.

    StoreError for a file that is no store, a damaged one, and one that cannot be written; it is left as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained(), ExitStack() as closed_if_refused:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            checked = self._look()
            self._db = closed_if_refused.enter_context(closing(sqlite3.connect(self.path, **_SETTINGS)))
            self._db.row_factory = sqlite3.Row
            if not checked:
                self._check(self._db)
            self._open()
            closed_if_refused.pop_all()

    def _look(self) -> bool:
        """Check the file through a connection that changes nothing; False if that is not possible."""
        size = self.path.stat().st_size if self.path.exists() else 0
        log = self.path.with_name(self.path.name + "-wal")
        if not size and log.exists() and log.stat().st_size:
            raise sqlite3.DatabaseError("it is empty, but its log is not: database disk image is malformed")
        if not size:
            return True
        try:
            with closing(read_only(self.path)) as db:
                self._check(db)
        except sqlite3.OperationalError:  # a write that was cut short must be taken back first
            return False
        return True

    def _check(self, db: sqlite3.Connection) -> None:
        """StoreError if it is not ours, DatabaseError if it is damaged."""
        mark, schema = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version"))
        tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if mark != _APPLICATION and tables:
            raise StoreError(f"{self.path}: this SQLite file is not a result store of omnimix; choose another --out")
        if tables and not 1 <= schema <= SCHEMA:
            raise StoreError(
                f"{self.path}: the store has schema {schema}, this omnimix reads 1 to {SCHEMA}; "
                "use the version that wrote it, or choose another --out"
            )
        state = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {state}")

    def _open(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            schema = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            for number, step in enumerate(_STEPS[schema:], schema + 1):
                for statement in step.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {number}")
        for kind, table in _TABLES.items():
            found = {row["name"] for row in self._db.execute(f"PRAGMA table_info({table})")} - {"id"}
            if found != {"digest", *(f.name for f in fields(kind))}:
                raise sqlite3.DatabaseError(f"database disk image is malformed: the columns of {table}")
        self._set_journal()

    def _set_journal(self) -> None:
        """WAL, in which readers never wait; the rollback journal, as safe, where WAL cannot work."""
        wanted = "DELETE" if _is_remote(self.path) else "WAL"
        try:
            self._db.execute(f"PRAGMA journal_mode = {wanted}")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):  # else another comparison is setting it
                self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.execute("PRAGMA synchronous = EXTRA")
        self._db.execute("PRAGMA wal_autocheckpoint = 1")  # the file alone holds all runs, should it be copied

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> StoreError:
        """What went wrong, what is kept and what to do."""
        said = " ".join(str(error).split())[:160]
        if any(sign in said for sign in _DAMAGED):
            kept = (
                "It was left as it is: choose another --out to start anew, after "
                f"`python -m omnimix.compare.rescue {self.path} NEWFOLDER/{self.path.name}` to keep the runs in it "
                "that are whole"
            )
            return StoreError(f"{self.path}: not a readable result store, or a damaged one ({said}). {kept}")
        if "readonly" in said or isinstance(error, PermissionError):
            remedy = "it must be writable, as must its folder; change that or choose another --out"
        elif "locked" in said:
            remedy = "another program has been writing to it for a minute; what finished is kept, start again later"
        elif "full" in said or "I/O" in said or "No space" in said:
            remedy = "what finished before is kept in it; make room on the disk, and the same command continues"
        else:
            remedy = "choose another --out"
        return StoreError(f"{self.path}: cannot use the result store ({said}); {remedy}")

    def add(self, entry: Run | Failure) -> bool:
        """Write a run or a failure; False if a run with this key is there already (it stays)."""
        row = {name: json.dumps(v, allow_nan=False) if name in _JSON else v for name, v in vars(entry).items()}
        row["digest"] = _digest(row)
        columns, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        once = " ON CONFLICT (key) DO NOTHING" if isinstance(entry, Run) else ""
        with self._explained():
            done = self._db.execute(f"INSERT INTO {_TABLES[type(entry)]} ({columns}) VALUES ({marks}){once}", row)
        return bool(done.rowcount == 1)

    def runs(self, keys: Iterable[str]) -> dict[str, Run]:
        """The finished runs among `keys`. StoreError if one is damaged."""
        return {run.key: run for run in self._entries(Run, keys, "key")}

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """The last failure of each of `keys`. StoreError if one is damaged."""
        return {failure.key: failure for failure in self._entries(Failure, keys, "id")}

    def _entries(self, kind: type[Entry], keys: Iterable[str], order: str) -> list[Entry]:
        wanted = json.dumps(sorted(set(keys)))
        query = f"SELECT * FROM {_TABLES[kind]} WHERE key IN (SELECT value FROM json_each(?)) ORDER BY {order}"
        with self._explained():
            return [read(kind, row) for row in self._db.execute(query, (wanted,))]

    def foreign(self, data: str, code: str) -> int:
        """How many runs on these data were made by other code than that (with any plug-ins)."""
        query = "SELECT count(*) FROM runs WHERE data = ? AND code NOT LIKE ? || '%'"
        with self._explained():
            return int(self._db.execute(query, (data, code)).fetchone()[0])

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM runs").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that leaves the file as it is, its log too."""
    db: sqlite3.Connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, **_SETTINGS)
    db.row_factory = sqlite3.Row
    return db


def read(kind: type[Entry], row: sqlite3.Row) -> Entry:
    """The entry in a row; DatabaseError if the row is not what was written. Rows of schema 1 have no digest."""
    values = dict(row)
    digest = values.pop("digest", "")
    values.pop("id", None)
    if digest and digest != _digest(values):
        raise sqlite3.DatabaseError(
            f"database disk image is malformed: {values['method']}, seed {values['seed']} is not what was written"
        )
    try:
        return kind(**{name: json.loads(value) if name in _JSON else value for name, value in values.items()})
    except (ValueError, TypeError) as error:  # no JSON, or columns of other names
        raise sqlite3.DatabaseError(f"database disk image is malformed: {error}") from error


def _digest(row: Mapping[str, Any]) -> str:
    """SHA-256 of the cells by name; SQLite may give back a whole number as a real one."""
    return fingerprint({name: float(value) if isinstance(value, int) else value for name, value in row.items()})


def _is_remote(path: Path) -> bool:
    """Whether the folder lies on a file system of several machines, as far as Linux tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    above = {str(folder) for folder in path.resolve().parents}
    here = [(len(point), kind) for point, kind in mounts if point in above]
    return max(here, default=(0, ""))[1] in _REMOTE
