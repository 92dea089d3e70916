"""Runs jobs in processes of this machine (joblib, loky). What a job gives does not depend on how many run beside it:
every job computes with one thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.registry import register
from .jobs import Job, Plan, execute
from .store import Failure, Run

STARTED = 1e-9
_TENSORS = ("x", "y", "domain")


@contextmanager
def shared_fractions(count: int) -> Iterator[np.memmap]:
    """(count,) how much of each job is done, in a file that all processes write to."""
    with tempfile.TemporaryDirectory(prefix="omnimix-") as folder:
        yield np.memmap(Path(folder) / "progress", dtype=np.float64, mode="w+", shape=(max(1, count),))


def run_jobs(jobs: Sequence[Job], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[Run | Failure]:
    """The outcome of every job, as they end. fractions: (len(jobs),), kept up to date while they run.

    A job whose process dies (killed for memory, a crash of native code) is tried once more alone, and is a failure if
    its process dies again.
    """
    left = dict(enumerate(jobs))
    if min(workers, len(left)) <= 1:
        with _one_thread():
            for place, job in left.items():
                yield _work(place, job, plan, fractions)
        return
    packed = _pack(plan)
    while len(left) > 1:
        yield from _until_killed(left, packed, workers, fractions)
        for place in [place for place in left if fractions[place] > 0]:
            yield _alone(place, left.pop(place), packed, fractions)
    for place, job in left.items():
        yield _alone(place, job, packed, fractions)


def _until_killed(left: dict[int, Job], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[Run | Failure]:
    """Outcomes, taken from `left`, until all are there or a process dies; the other processes end with it."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        for place, outcome in _parallel(left, plan, min(workers, len(left)), fractions):
            del left[place]
            yield outcome
    except TerminatedWorkerError:
        if not fractions.any():  # they died before they could start: nothing here would change that
            raise


def _parallel(jobs: dict[int, Job], plan: Plan, workers: int, fractions: np.ndarray) -> Iterator[tuple[int, Any]]:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(
            n_jobs=workers, return_as="generator_unordered", mmap_mode="c", pre_dispatch="2*n_jobs", batch_size=1
        )
        call = delayed(_in_worker)
        yield from pool(call(place, job, plan, fractions, os.getpid()) for place, job in list(jobs.items()))


def _alone(place: int, job: Job, plan: Plan, fractions: np.ndarray) -> Run | Failure:
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with ProcessPoolExecutor(max_workers=1) as pool:
        try:
            outcome: Run | Failure = pool.submit(
                _in_worker, place, job, plan, np.zeros(place + 1), os.getpid()
            ).result()[1]
        except TerminatedWorkerError as error:
            said = "the process of this run was killed twice, most likely for want of memory; use fewer --jobs"
            outcome = Failure(error=said, traceback=f"{said}\n{error}", versions=plan.versions, **job.labels)
    fractions[place] = 1.0
    return outcome


def _in_worker(place: int, job: Job, plan: Plan, fractions: np.ndarray, parent: int) -> tuple[int, Run | Failure]:
    torch.set_num_threads(1)
    for card in plan.plugins:
        register(
            card.name, paper=card.paper, tasks=card.tasks, cost=card.cost, level=card.level, inputs=card.inputs
        )(card.factory)  # fmt: skip
    return place, _work(place, job, _unpack(plan), fractions, parent)


def _work(place: int, job: Job, plan: Plan, fractions: np.ndarray, parent: int | None = None) -> Run | Failure:
    fractions[place] = STARTED

    def tell(share: float) -> None:
        fractions[place] = max(STARTED, share)
        if parent is not None and os.getppid() != parent:  # nobody waits for the result any more
            os._exit(1)

    outcome = execute(job, plan, tell)
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


def _pack(plan: Plan) -> Plan:
    """Tensors of the data as arrays, which joblib lets all processes share in memory."""
    return _exchange(plan, Tensor, Tensor.numpy)


def _unpack(plan: Plan) -> Plan:
    return _exchange(plan, np.ndarray, torch.from_numpy)


def _exchange(plan: Plan, kind: type, function: Any) -> Plan:
    found = {name: getattr(plan.source, name) for name in _TENSORS}
    changed = {name: function(value) for name, value in found.items() if isinstance(value, kind)}
    return replace(plan, source=replace(plan.source, **changed))
