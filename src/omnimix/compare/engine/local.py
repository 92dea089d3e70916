"""Runs units in processes of this machine (joblib, loky). What a run gives does not depend on how many run beside it:
every process computes with one thread. A single worker is a process of its own, too: one that dies takes no comparison
with it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..jobs import Outcome, Unit
from .base import STARTED, Work

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""For a process that starts: told later, libraries keep threads that small steps wait for."""
IN_PROCESS = False
"""True: a single worker is this process itself. It need not start, and a debugger reaches it; if it dies, all ends."""


def run(units: Sequence[Unit], work: Work, workers: int, fractions: np.ndarray) -> Iterator[Outcome]:
    """The outcomes of every unit, as they end. fractions: (len(units),), kept up to date while they run.

    The runs of a unit whose process dies (killed for memory, a crash of native code) are tried once more alone, and are
    failures if their process dies again.
    """
    left = dict(enumerate(units))
    if IN_PROCESS and min(workers, len(left)) <= 1:
        with _one_thread():
            for place, unit in left.items():
                yield _work(place, unit, work, fractions)
        return
    packed = work.packed()
    while left:
        yield from _until_killed(left, packed, workers, fractions)
        for place in [place for place in left if fractions[place] > 0]:
            yield _alone(place, left.pop(place), packed, fractions)


def _until_killed(left: dict[int, Unit], work: Work, workers: int, fractions: np.ndarray) -> Iterator[Outcome]:
    """Outcomes, taken from `left`, until all are there or a process dies; the other processes end with it."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    count = min(workers, len(left))
    try:
        ran = _parallel(left, work, count, fractions) if count > 1 else _serial(left, work, fractions)
        for place, outcome in ran:
            del left[place]
            yield outcome
    except TerminatedWorkerError:
        if not any(
            fractions[place] > 0 for place in left
        ):  # they died before they could start: nothing here would change that
            raise


def _parallel(units: dict[int, Unit], work: Work, workers: int, fractions: np.ndarray) -> Iterator[tuple[int, Outcome]]:
    from joblib import Parallel, delayed, parallel_config

    watch = {"initializer": _end_with, "initargs": (os.getpid(),)}
    with parallel_config(backend="loky", inner_max_num_threads=1, **watch):
        pool = Parallel(
            n_jobs=workers, return_as="generator_unordered", mmap_mode="c", pre_dispatch="2*n_jobs", batch_size=1
        )
        call = delayed(_in_worker)
        yield from pool(call(place, unit, work, fractions) for place, unit in list(units.items()))


def _serial(units: dict[int, Unit], work: Work, fractions: np.ndarray) -> Iterator[tuple[int, Outcome]]:
    """In one process, which gets the work once; joblib would take this one."""
    with _process(work, fractions) as pool:
        for place, unit in list(units.items()):
            yield pool.submit(_in_own, place, unit).result()


@contextmanager
def _process(work: Work, fractions: np.ndarray) -> Iterator[Any]:
    """A pool of one process that holds the work, and is killed in the end, whatever it does then."""
    from joblib.externals.loky import ProcessPoolExecutor

    file = getattr(fractions, "filename", None)
    pool = ProcessPoolExecutor(
        max_workers=1, initializer=_hold, initargs=(os.getpid(), work, file, len(fractions)), env=ONE_THREAD
    )
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def _hold(parent: int, work: Work, file: str | None, count: int) -> None:
    """In a process of `_process`: keep what all its units share."""
    _end_with(parent)
    shares = np.zeros(count) if file is None else np.memmap(file, dtype=np.float64, mode="r+", shape=(count,))
    _held.update(work=work, fractions=shares)


def _in_own(place: int, unit: Unit) -> tuple[int, Outcome]:
    return _in_worker(place, unit, _held["work"], _held["fractions"])


_held: dict[str, Any] = {}
"""What `_hold` was given."""


def _alone(place: int, unit: Unit, work: Work, fractions: np.ndarray) -> Outcome:
    """The runs of a unit whose process died, one by one, each in a process of its own."""
    outcome = [found for job in unit for found in _once_more((job,), work)]
    fractions[place] = 1.0
    return outcome


def _once_more(unit: Unit, work: Work) -> Outcome:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        with _process(work, np.zeros(1)) as pool:
            outcome: Outcome = pool.submit(_in_own, 0, unit).result()[1]
    except TerminatedWorkerError as error:
        outcome = work.killed(unit, error)
    return outcome


def _end_with(parent: int) -> None:
    """End this process when `parent` ends, however that happens: nobody waits for its results any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # Processes that this one starts, for runs on several devices, cannot be told to start others as loky does.
    multiprocessing.set_start_method("spawn", force=True)


def _in_worker(place: int, unit: Unit, work: Work, fractions: np.ndarray) -> tuple[int, Outcome]:
    torch.set_num_threads(1)
    return place, _work(place, unit, work.unpacked(), fractions)


def _work(place: int, unit: Unit, work: Work, fractions: np.ndarray) -> Outcome:
    fractions[place] = STARTED

    def tell(share: float) -> None:
        fractions[place] = max(STARTED, share)

    outcome = work.execute(unit, tell)
    fractions[place] = 1.0
    return outcome


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
