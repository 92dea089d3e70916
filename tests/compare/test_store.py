import multiprocessing
import os
import random
import signal
import sqlite3
import time
from dataclasses import replace

import pytest

from omnimix.compare.rescue import main, rescue
from omnimix.compare.store import SCHEMA, Failure, Run, Store, StoreError


def run(key: str = "k1", **changes) -> Run:
    made = Run(
        key, "mixup:alpha=2", 3, "data", "code", {"seed": 3}, {"rmse": 0.1 + 0.2, "mape": None},
        {"north": {"rmse": 1.0}}, [{"epoch": 1, "train_loss": 2.5}], 1, 1.5, 0.01, 2**33, "cpu", {"torch": "2"}, 12.5,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_run_comes_back_as_it_was(tmp_path):
    with Store(tmp_path / "deep" / "store.db") as store:
        assert store.add(run())
    with Store(tmp_path / "deep" / "store.db") as store:
        assert store.runs(["k1", "k2"]) == {"k1": run()}
        assert len(store) == 1


def test_a_run_is_written_once_and_never_changed(tmp_path):
    with Store(tmp_path / "s.db") as store:
        assert store.add(run())
        assert not store.add(run(seconds=99.0))
        assert store.runs(["k1"])["k1"].seconds == 1.5


def test_failures_are_kept_apart_and_the_last_one_is_shown(tmp_path):
    with Store(tmp_path / "s.db") as store:
        for text in ("first", "second"):
            store.add(Failure("k1", "mixup", 0, {}, text, "Traceback", {}))
        assert store.failures(["k1"])["k1"].error == "second"
        assert store.runs(["k1"]) == {}
        assert store.add(run())


def test_rows_of_other_code_are_counted(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.add(run())
        store.add(run("k2", code="older"))
        store.add(run("k3", code="older", data="other"))
        assert store.foreign("data", "code") == 1


def test_wal_mode(tmp_path):
    Store(tmp_path / "s.db").close()
    assert sqlite3.connect(tmp_path / "s.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_nan_is_not_stored(tmp_path):
    with Store(tmp_path / "s.db") as store:
        with pytest.raises(ValueError):
            store.add(run(metrics={"rmse": float("nan")}))
        assert len(store) == 0


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    (tmp_path / "text.db").write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreError, match="not a readable result store"):
        Store(tmp_path / "text.db")
    assert (tmp_path / "text.db").read_bytes().startswith(b"not a database")

    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    with pytest.raises(StoreError, match="not a result store of omnimix"):
        Store(tmp_path / "other.db")

    with pytest.raises(StoreError, match=r"cannot use .* choose another --out"):
        Store(tmp_path / "text.db" / "store.db")


@pytest.mark.parametrize("schema", [99, 0, -1])
def test_another_schema_is_refused(tmp_path, schema):
    Store(tmp_path / "s.db").close()
    later = sqlite3.connect(tmp_path / "s.db")
    later.execute(f"PRAGMA user_version = {schema}")
    later.commit()
    later.close()
    before = (tmp_path / "s.db").read_bytes()
    with pytest.raises(StoreError, match=f"schema {schema}, this omnimix reads 1 to {SCHEMA}; use the version"):
        Store(tmp_path / "s.db")
    assert (tmp_path / "s.db").read_bytes() == before


SCHEMA_1 = """
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
INSERT INTO runs VALUES ('k1', 'mixup:alpha=2', 3, 'data', 'code', '{"seed": 3}', '{"rmse": 0.5, "mape": null}',
    '{"north": {"rmse": 1.0}}', '[{"epoch": 1, "train_loss": 2.5}]', 1, 1.5, 0.01, 8589934592, 'cpu', '{"torch": "2"}',
    12.5);
INSERT INTO failures (key, method, seed, config, error, traceback, versions, finished)
    VALUES ('k2', 'erm', 3, '{}', 'out of luck', 'Traceback', '{}', 12.5);
PRAGMA application_id = 0x6F6D6978;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def test_a_store_of_schema_1_is_brought_up_to_date(tmp_path):
    old = sqlite3.connect(tmp_path / "s.db")
    old.executescript(SCHEMA_1)
    old.close()
    for _ in range(2):
        with Store(tmp_path / "s.db") as store:
            assert store.runs(["k1"]) == {"k1": run(metrics={"rmse": 0.5, "mape": None})}
            assert store.failures(["k2"])["k2"].error == "out of luck"
            store.add(run("k3", extras={"bins": [1, 2]}))
    with Store(tmp_path / "s.db") as store:
        assert store.runs(["k3"])["k3"].extras == {"bins": [1, 2]}
        columns = "SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info('runs')"
        migrated = [tuple(row) for row in store._db.execute(columns)]
    with Store(tmp_path / "new.db") as store:
        assert migrated == [tuple(row) for row in store._db.execute(columns)]


def test_a_migration_that_is_cut_short_leaves_the_old_store(tmp_path, monkeypatch):
    old = sqlite3.connect(tmp_path / "s.db")
    old.executescript(SCHEMA_1)
    old.close()
    steps = ("", "ALTER TABLE runs ADD COLUMN extras TEXT; ALTER TABLE absent ADD COLUMN digest TEXT")
    with monkeypatch.context() as patch:
        patch.setattr("omnimix.compare.store._STEPS", steps)
        with pytest.raises(StoreError, match="no such table"):
            Store(tmp_path / "s.db")
    with Store(tmp_path / "s.db") as store:
        assert len(store) == 1


def _write(path, first, start):
    start.wait()
    with Store(path) as store:
        for number in range(first, first + 20):
            store.add(run(f"k{number}"))


def test_processes_may_make_and_write_one_store_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=_write, args=(tmp_path / "s.db", first, start)) for first in (0, 10, 10, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with Store(tmp_path / "s.db") as store:
        assert len(store) == 40


def _write_for_ever(path, pipe):
    number = 0
    while True:
        with Store(path) as store:
            for _ in range(5):
                store.add(run(f"k{number}", history=[{"epoch": 1, "text": "x" * 20000}]))
                pipe.send(number)
                number += 1


def test_kill_9_at_any_moment_loses_nothing_that_was_written(tmp_path):
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    for attempt in range(12):
        path = tmp_path / f"{attempt}.db"
        receive, send = context.Pipe(duplex=False)
        writer = context.Process(target=_write_for_ever, args=(path, send))
        writer.start()
        time.sleep(chance.uniform(0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        told = []
        while receive.poll():
            told.append(receive.recv())
        with Store(path) as store:
            found = store.runs(f"k{number}" for number in range(len(told) + 1))
            assert set(found) >= {f"k{number}" for number in told}
            assert len(store) - len(told) in (0, 1)  # killed between writing and telling


def damaged(path):
    """A store of 30 runs of some pages each, and what is in it."""
    written = {}
    with Store(path) as store:
        for number in range(30):
            chance = random.Random(number)
            history = [{"epoch": epoch, "train_loss": chance.random()} for epoch in range(60)]
            written[f"k{number}"] = run(f"k{number}", history=history, metrics={"rmse": chance.random()})
            store.add(written[f"k{number}"])
    return written


def test_a_damaged_store_is_refused_and_kept_or_gives_what_was_written(tmp_path):
    written = damaged(tmp_path / "s.db")
    whole, chance, refused = (tmp_path / "s.db").read_bytes(), random.Random(0), []
    path = tmp_path / "damaged.db"
    for attempt in range(60):
        content, place = bytearray(whole), chance.randrange(len(whole))
        if attempt % 3 == 0:
            del content[max(1, place) :]
        elif attempt % 3 == 1:
            content[place] ^= chance.randrange(1, 256)
        else:
            place -= place % 4096
            content[place : place + 4096] = chance.randbytes(4096)
        path.write_bytes(content)
        try:
            with Store(path) as store:
                found = store.runs(written)
            assert found.items() <= written.items()
        except StoreError as error:
            refused.append(str(error))
            same = path.read_bytes() == content
            assert same
    assert len(refused) > 35
    assert all(said.startswith(str(path)) and "left as it is" in said for said in refused)


def test_a_changed_number_is_noticed_and_the_other_runs_are_rescued(tmp_path, capsys):
    path, new = tmp_path / "store.db", tmp_path / "rescued" / "store.db"
    written = damaged(path)
    number = str(written["k7"].metrics["rmse"]).encode()
    content = path.read_bytes()
    assert content.count(number) == 1
    changed = content.replace(number, number[:4] + bytes([number[4] ^ 1]) + number[5:])
    path.write_bytes(changed)
    with Store(path) as store, pytest.raises(StoreError, match=r"mixup:alpha=2, seed 3 .* left as it is.*rescue"):
        store.runs(written)
    assert main([str(path), str(new)]) is None
    assert capsys.readouterr().out == f"29 runs copied to {new}; 1 are damaged and will run again\n"
    assert path.read_bytes() == changed
    with Store(new) as store:
        assert store.runs(written) == {key: entry for key, entry in written.items() if key != "k7"}
    assert "there already" in main([str(path), str(new)])
    assert "usage" in main([])


def test_a_torn_store_is_refused_and_rescued(tmp_path):
    written = damaged(tmp_path / "s.db")
    content = (tmp_path / "s.db").read_bytes()
    (tmp_path / "s.db").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path / "s.db")
    copied, _ = rescue(tmp_path / "s.db", tmp_path / "new.db")
    assert copied > 5
    with Store(tmp_path / "new.db") as store:
        assert store.runs(written).items() <= written.items()

    (tmp_path / "s.db").write_bytes(b"")
    (tmp_path / "s.db-wal").write_bytes(b"a log of what is no more")
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path / "s.db")
    with pytest.raises(StoreError, match=r"no run in it is whole|nothing can be read"):
        rescue(tmp_path / "s.db", tmp_path / "newer.db")


def _fill(path, limit, pipe):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    told = 0
    try:
        with Store(path) as store:
            while True:
                store.add(run(f"k{told}", history=[{"text": "x" * 5000}]))
                told += 1
    except Exception as error:
        pipe.send((told, type(error).__name__, str(error)))


@pytest.mark.skipif(os.name != "posix", reason="needs limits of processes")
@pytest.mark.parametrize("limit", [0, 5000, 90_000])
def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path, limit):
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    writer = context.Process(target=_fill, args=(tmp_path / "s.db", limit, send))
    writer.start()
    told, kind, said = receive.recv()
    writer.join()
    assert kind == "StoreError"
    assert "what finished before is kept in it; make room on the disk, and the same command continues" in said
    assert told > 3 or limit < 90_000
    with Store(tmp_path / "s.db") as store:
        assert set(store.runs(f"k{number}" for number in range(told + 1))) == {f"k{number}" for number in range(told)}
        assert store.add(run("more"))


def test_the_limit_of_pages_is_a_full_disk(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.add(run())
        store._db.execute("PRAGMA max_page_count = 5")
        with pytest.raises(StoreError, match=r"database or disk is full\); what finished before is kept"):
            store.add(run("k2", history=[{"text": "x" * 50_000}]))
        assert set(store.runs(["k1", "k2"])) == {"k1"}


def test_without_shared_memory_the_rollback_journal_takes_over(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def without(path, **settings):
        uri = str(path) if settings.pop("uri", False) else f"file:{path}?"
        return connect(f"{uri}&vfs=unix-dotfile", uri=True, **settings)

    monkeypatch.setattr("sqlite3.connect", without)
    with Store(tmp_path / "s.db") as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        store.add(run())
    with Store(tmp_path / "s.db") as store:
        assert store.runs(["k1"]) == {"k1": run()}


@pytest.mark.parametrize(("kind", "journal"), [("nfs4", "delete"), ("ext4", "wal")])
def test_folders_of_several_machines_get_the_rollback_journal(tmp_path, monkeypatch, kind, journal):
    import pathlib

    mounts = f"disk / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n"
    read = pathlib.Path.read_text
    monkeypatch.setattr(
        "pathlib.Path.read_text", lambda path, *a: mounts if path.name == "mounts" else read(path, *a)
    )  # fmt: skip
    for _ in range(2):
        with Store(tmp_path / "deep" / "s.db") as store:
            assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == journal
            store.add(run())


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_told(tmp_path, what):
    path = tmp_path / "out" / "s.db"
    Store(path).close()
    (path if what == "file" else path.parent).chmod(0o500)
    try:
        with pytest.raises(StoreError, match="must be writable, as must its folder"):
            Store(path).add(run())
    finally:
        path.parent.chmod(0o700)


def test_a_store_that_another_program_holds_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("omnimix.compare.store").compare.store._SETTINGS, "timeout", 0.1)
    Store(tmp_path / "s.db").close()
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"locked.*start again later"):
        Store(tmp_path / "s.db")
    other.execute("ROLLBACK")
    Store(tmp_path / "s.db").close()


def test_a_partly_damaged_store_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "store.db"
    with Store(path):
        pass
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a readable result store"):
        Store(path)
    assert path.read_bytes() == content
