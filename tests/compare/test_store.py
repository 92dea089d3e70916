import multiprocessing
import sqlite3
from dataclasses import replace

import pytest

from omnimix.compare.store import Failure, Run, Store, StoreError


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

    with pytest.raises(StoreError, match="cannot open"):
        Store(tmp_path / "text.db" / "store.db")


def test_another_schema_is_refused(tmp_path):
    Store(tmp_path / "s.db").close()
    later = sqlite3.connect(tmp_path / "s.db")
    later.execute("PRAGMA user_version = 99")
    later.commit()
    later.close()
    with pytest.raises(StoreError, match="schema 99"):
        Store(tmp_path / "s.db")


def _write(path, first):
    with Store(path) as store:
        for number in range(first, first + 20):
            store.add(run(f"k{number}"))


def test_two_processes_may_write_to_one_store(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path / "s.db", first)) for first in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Store(tmp_path / "s.db") as store:
        assert len(store) == 30


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
