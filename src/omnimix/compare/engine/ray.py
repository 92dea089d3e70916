"""Runs units as tasks of a Ray cluster: one that is started for the call, or one that is there already.

Every task computes with one thread, as the local processes do, and gives what they give. All machines need the same
omnimix and PyTorch (checked), and data that are read from files at the same paths. A checkpoint lies on the machine
that wrote it unless the folder is shared: a run that is tried again elsewhere starts afresh, with the same result, and
the file stays there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..jobs import Outcome, Unit, code_digest
from .base import STARTED, Work

REPORT = 0.5
"""Seconds between two reports of progress."""


def run(
    units: Sequence[Unit], work: Work, workers: int | None, fractions: np.ndarray, address: str | None = None
) -> Iterator[Outcome]:
    """The outcomes of every unit, as they end. fractions: (len(units),), kept up to date while they run.

    workers: units at a time; None: as many as the cluster has room for. address: of the cluster ("auto",
    "ray://host:10001"); None starts one of `workers` processes on this machine, which ends with the call. Where Ray was
    initialised before, its cluster is taken and left running. A unit whose process dies is tried once more when it has
    the cluster to itself, and is a failure if its process dies again; one whose machine disappears is given to another.
    ValueError if Ray is missing, or its workers cannot be used.
    """
    if not units:
        return
    ray = load()
    with _cluster(ray, workers, address):
        try:
            yield from _outcomes(ray, units, work, workers or len(units), fractions)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ValueError(f"the Ray cluster cannot run this: {str(cause).splitlines()[0]}") from error


def load() -> Any:
    """The package; ValueError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ValueError('the engine "ray" needs Ray: pip install "omnimix[cluster]"') from None
    return ray


def _outcomes(ray: Any, units: Sequence[Unit], work: Work, workers: int, fractions: np.ndarray) -> Iterator[Outcome]:
    lost, crashed = _faults(ray)
    gpus = 1 if work.device == "gpu" else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_in_worker)
    board = _board(ray)
    packed = ray.put(work.packed())
    waiting, alone, died = deque(range(len(units))), deque[int](), set[int]()
    running: dict[Any, int] = {}
    try:
        while waiting or alone or running:
            if alone and not (waiting or running):
                waiting.append(alone.popleft())
            while waiting and len(running) < workers:
                place = waiting.popleft()
                running[task.remote(place, units[place], packed, board, _code())] = place
            for done in ray.wait(list(running), timeout=REPORT)[0]:
                place = running.pop(done)
                try:
                    outcome: Outcome = ray.get(done)
                except lost:
                    waiting.append(place)
                    continue
                except crashed as error:
                    if place not in died:
                        died.add(place)
                        alone.append(place)
                        continue
                    outcome = work.killed(units[place], error)
                fractions[place] = 1.0
                yield outcome
            for place, share in ray.get(board.shares.remote()).items():
                if place in running.values():
                    fractions[place] = share
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
        ray.kill(board)


def _in_worker(place: int, unit: Unit, work: Work, board: Any, code: str) -> Outcome:
    if code != _code():  # its results would be taken for ours
        raise ValueError(f"this process has omnimix and torch {code}, a worker {_code()}; install the same everywhere")
    if work.device == "cpu":  # also where only this machine has a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    with warnings.catch_warnings():  # the object store is read-only
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        work = work.unpacked()
    last = -REPORT

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT:
            last = time.monotonic()
            board.tell.remote(place, max(STARTED, share))

    tell(0.0)
    return work.execute(unit, tell)


def _code() -> str:
    return f"{code_digest()}, {torch.__version__.partition('+')[0]}"


def _faults(ray: Any) -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """What tells that a machine is gone, and that the process of a task died."""
    e = ray.exceptions
    return (e.NodeDiedError, e.ObjectLostError), (e.WorkerCrashedError, e.OutOfMemoryError)


def _board(ray: Any) -> Any:
    """An actor beside this process that is told how far each unit is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Board:  # defined here, so that its process need not import omnimix
        def __init__(self) -> None:
            self.all: dict[int, float] = {}

        def tell(self, place: int, share: float) -> None:
            self.all[place] = share

        def shares(self) -> dict[int, float]:
            return self.all

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


@contextmanager
def _cluster(ray: Any, workers: int | None, address: str | None) -> Iterator[None]:
    """A connection to a cluster, and nothing of it left behind: no process, handler or setting of logs."""
    if ray.is_initialized():
        yield
        return
    log, printing = logging.getLogger("ray"), ray._private.worker
    level, handler = log.level, signal.getsignal(signal.SIGTERM)
    log.setLevel(logging.ERROR)
    printing._worker_logs_enabled = False  # Ray tells of processes that died on stdout, which may hold our JSON
    own = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, configure_logging=False)
        yield
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r} ({error})") from error
    finally:
        ray.shutdown()
        log.setLevel(level)
        printing._worker_logs_enabled = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
