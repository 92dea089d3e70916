"""Comparisons that are killed at random moments and started again come to what an undisturbed one gives.

Commands are forked from a process that has run one already, so that a kill costs no second start of PyTorch; only the
workers of `--jobs 2` start afresh. Checkpoints are written after every epoch; the report's pictures are left out.
"""

import contextlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="kills and counts processes as Linux does")

NURSERY = """
import os, sys
import omnimix.compare.pictures, omnimix.compare.report
from omnimix.cli import main
from omnimix.compare.engine import local
from omnimix.train import fit
from omnimix.train.together import fit_together

local.IN_PROCESS = True
fit.__kwdefaults__["checkpoint_every"] = fit_together.__kwdefaults__["checkpoint_every"] = 0.0
omnimix.compare.report.write = omnimix.compare.pictures.gallery = lambda *_: None

def run(arguments):
    sys.argv = ["omnimix", *arguments]
    for name, stream in (("out", 1), ("err", 2)):
        with open(name, "w") as file:
            os.dup2(file.fileno(), stream)
    main()

tell = os.fdopen(os.dup(1), "w")
try:
    run(sys.argv[1:])
except SystemExit as end:
    print(end.code, file=tell, flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        run(line.rstrip("\\n").split("\\t"))
    print(child, file=tell, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=tell, flush=True)
"""


class Nursery:
    """Runs a command, and then starts others, kills them and says how they ended."""

    def __init__(self, folder, first):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, *first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout.readline() == "0\n", (folder / "err").read_text()

    def start(self, arguments):
        """The process id of a command."""
        self.process.stdin.write("\t".join(arguments) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        """The exit status of the command."""
        return int(self.process.stdout.readline())

    def run(self, arguments, kill_after=None, group=True):
        """The exit status; -9 if the kill came before the end. group: the workers are killed too."""
        child = self.start(arguments)
        if kill_after is not None:
            time.sleep(kill_after)
            for kill in (os.killpg, os.kill) if group else (os.kill,):  # a young process has no group of its own yet
                with contextlib.suppress(ProcessLookupError):
                    kill(child, signal.SIGKILL)
        status = self.end()
        assert_nothing_is_left(child)
        return status

    @property
    def rows(self):
        """What the command printed as its rows, without what the clock decides."""
        clock = ("seconds", "step_seconds", "peak_memory", "finished")
        rows = json.loads((self.folder / "out").read_text())["rows"]
        return [{name: value for name, value in row.items() if name not in clock} for row in rows]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def alive(session):
    """The processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(its) == session and state != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def assert_nothing_is_left(session, patience=20.0):
    """No worker outlives its comparison: it notices within a second, or when it has imported PyTorch."""
    end = time.monotonic() + patience
    while left := alive(session):
        assert time.monotonic() < end, left
        time.sleep(0.05)


@pytest.fixture
def command(tmp_path):
    rows = (f"{7 * i % 31},{i * i % 17},{math.sin(i) + 7 * i % 31}" for i in range(90))
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]))

    def command(out, jobs="1"):
        return [
            "compare", "--data", str(tmp_path / "t.csv"), "--target", "y", "--methods", "erm,mixup:alpha=2,c-mixup",
            "--seeds", "4", "--epochs", "6", "--jobs", jobs, "--out", str(tmp_path / out), "--json",
        ]  # fmt: skip

    return command


def stored(out):
    """(key, method, seed, when it finished) of the runs in the store; that it has no failures."""
    if not (out / "store.db").exists() or not (out / "store.db").stat().st_size:
        return set()
    with sqlite3.connect(out / "store.db") as store:
        if not store.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return set()
        assert store.execute("SELECT error FROM failures").fetchall() == []
        return set(store.execute("SELECT key, method, seed, finished FROM runs"))


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, command):
    nursery = Nursery(tmp_path / "nursery", command("calm"))
    expected = nursery.rows
    assert len({(row["method"], row["seed"]) for row in expected}) == len(expected) == 12
    assert {row["status"] for row in expected} == {"ok"}
    start = time.monotonic()
    assert nursery.run(command("calm again")) == 0
    life = time.monotonic() - start

    chance, kills, ended, with_workers = random.Random(1), 0, 0, 0
    before: set = set()
    while kills < 20 or before:
        out = f"killed {ended}"
        if kills >= 20:
            status = nursery.run(command(out))
        elif kills % 5 == 4:  # processes of their own, which take some seconds to start
            status = nursery.run(command(out, "2"), chance.uniform(0, 8), group=kills % 10 == 4)
            with_workers += status == -9
        else:
            status = nursery.run(command(out), chance.uniform(0, life))
        after = stored(tmp_path / out)
        assert before <= after
        before = after
        if status == -9:
            kills += 1
            continue
        assert status == 0, (nursery.folder / "err").read_text()
        assert nursery.rows == expected
        assert len(after) == len({(method, seed) for _, method, seed, _ in after}) == 12
        before, ended = set(), ended + 1
    print(f"{kills} kills ({with_workers} with workers), {ended} comparisons that ended like the undisturbed one")
    nursery.close()


@pytest.mark.slow
def test_two_comparisons_of_the_same_runs_at_once_both_end_well(tmp_path, command):
    nurseries = [Nursery(tmp_path / name, command(name)) for name in ("first", "second")]
    for nursery in nurseries:
        nursery.start(command("both"))
    for nursery in nurseries:
        assert nursery.end() == 0, (nursery.folder / "err").read_text()
        assert {row["status"] for row in nursery.rows} == {"ok"}
        nursery.close()
    assert nurseries[0].rows == nurseries[1].rows
    assert len(stored(tmp_path / "both")) == 12
