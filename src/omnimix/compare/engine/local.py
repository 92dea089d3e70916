"""Runs units in processes of this machine (joblib, loky). What a run gives does not depend on how many run beside it:
every process computes with one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..jobs import Outcome, Plan, Unit, execute, killed
from .base import STARTED, pack, register_plugins, unpack


def run(units: Sequence[Unit], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[Outcome]:
    """The outcomes of every unit, as they end. fractions: (len(units),), kept up to date while they run.

    A unit whose process dies (killed for memory, a crash of native code) is tried once more alone, and is a failure if
    its process dies again.
    """
    left = dict(enumerate(units))
    if min(workers, len(left)) <= 1:
        with _one_thread():
            for place, unit in left.items():
                yield _work(place, unit, plan, fractions)
        return
    packed = pack(plan)
    while len(left) > 1:
        yield from _until_killed(left, packed, workers, fractions)
        for place in [place for place in left if fractions[place] > 0]:
            yield _alone(place, left.pop(place), packed, fractions)
    for place, unit in left.items():
        yield _alone(place, unit, packed, fractions)


def _until_killed(left: dict[int, Unit], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[Outcome]:
    """Outcomes, taken from `left`, until all are there or a process dies; the other processes end with it."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        for place, outcome in _parallel(left, plan, min(workers, len(left)), fractions):
            del left[place]
            yield outcome
    except TerminatedWorkerError:
        if not fractions.any():  # they died before they could start: nothing here would change that
            raise


def _parallel(units: dict[int, Unit], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[tuple[int, Outcome]]:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(
            n_jobs=workers, return_as="generator_unordered", mmap_mode="c", pre_dispatch="2*n_jobs", batch_size=1
        )
        call = delayed(_in_worker)
        yield from pool(call(place, unit, plan, fractions, os.getpid()) for place, unit in list(units.items()))


def _alone(place: int, unit: Unit, plan: Plan, fractions: np.ndarray) -> Outcome:
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with ProcessPoolExecutor(max_workers=1) as pool:
        try:
            outcome: Outcome = pool.submit(_in_worker, place, unit, plan, np.zeros(place + 1), os.getpid()).result()[1]
        except TerminatedWorkerError as error:
            outcome = killed(unit, plan, error)
    fractions[place] = 1.0
    return outcome


def _in_worker(place: int, unit: Unit, plan: Plan, fractions: np.ndarray, parent: int) -> tuple[int, Outcome]:
    torch.set_num_threads(1)
    register_plugins(plan)
    return place, _work(place, unit, unpack(plan), fractions, parent)


def _work(place: int, unit: Unit, plan: Plan, fractions: np.ndarray, parent: int | None = None) -> Outcome:
    fractions[place] = STARTED

    def tell(share: float) -> None:
        fractions[place] = max(STARTED, share)
        if parent is not None and os.getppid() != parent:  # nobody waits for the result any more
            os._exit(1)

    outcome = execute(unit, plan, tell)
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
