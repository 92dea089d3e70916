"""Annotation of a corpus on the engines of the comparison: a shard is a unit, given to processes or to a Ray cluster.

Ray runs plain tasks, one a shard, and not Ray Data: that cuts files into blocks of its own and names its output itself,
while here one shard in is one shard out, byte for byte the same after a kill, and the tasks are those that already
survive lost processes and machines. All machines must reach the files under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.checks import at_least, one_of
from ..corpora.annotate import Annotated, Job, Shard, annotate_shard, finish, locked
from ..corpora.annotation import Annotator
from . import engine as engines
from .engine.base import Work


@dataclass(frozen=True)
class Fault:
    """A shard that could not be annotated, and why, with file and row."""

    name: str
    error: str


Watch = Callable[[Callable[[], float], int], AbstractContextManager[Callable[["Annotated | Fault"], None]]]
"""Called with a function that tells how many shards' worth of bytes are done, and the number of shards; as a context
manager it gives the function to call with what came of each shard."""


@dataclass(frozen=True)
class Annotation(Work):
    """What the shards share."""

    job: Job
    annotator: Annotator
    device: str = "cpu"

    def execute(self, unit: tuple[Shard, ...], progress: Callable[[float], None]) -> Any:
        return [self._one(shard, progress) for shard in unit]

    def killed(self, unit: tuple[Shard, ...], error: BaseException) -> Any:
        said = "its process was killed twice, most likely for want of memory; use fewer jobs"
        return [Fault(shard.name, f"{shard.source}: {said}") for shard in unit]

    def packed(self) -> Annotation:
        return replace(self, job=replace(self.job, out=self.job.out.absolute()))

    def _one(self, shard: Shard, progress: Callable[[float], None]) -> Annotated | Fault:
        try:
            return annotate_shard(self.job, shard, self.annotator, progress)
        except Exception as error:
            known = str(error) if isinstance(error, ValueError) else f"{shard.source}: {type(error).__name__}: {error}"
            return Fault(shard.name, known)


def run_annotation(
    job: Job,
    annotator: Annotator,
    *,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    device: str = "cpu",
    watch: Watch = lambda share, shards: nullcontext(lambda outcome: None),
) -> dict[str, Any]:
    """Annotate the shards that are not finished; gives the manifest.

    workers: shards at a time; None: one a core, one in all on a GPU, or as many as the cluster has room for. device:
    "cpu" or "gpu", which a task asks of the cluster. ValueError with what went wrong in the shards that failed, when
    the others are finished.
    """
    engines.check(engine, address)
    one_of("device", device, ("cpu", "gpu"))
    if workers is not None:
        at_least("jobs", workers, 1)
    elif address is None:
        from joblib import cpu_count

        workers = 1 if device == "gpu" else int(cpu_count())
    sizes = np.array([shard.source.stat().st_size for shard in job.shards], dtype=np.float64)
    # the largest first, so that no core waits for it in the end
    order = np.argsort(-sizes, kind="stable")
    units = [(replace(job.shards[i], source=job.shards[i].source.absolute()),) for i in order]
    weight = sizes[order] * len(units) / max(1.0, sizes.sum())
    faults: list[Fault] = []
    with (
        locked(job),
        engines.shared_fractions(len(units)) as fractions,
        watch(lambda: float(fractions[: len(units)] @ weight), len(units)) as ended,
    ):
        work = Annotation(job, annotator, device)
        done: Iterator[Any] = engines.run(units, work, workers, fractions, engine, address)
        for outcomes in done:
            for outcome in outcomes:
                faults += [outcome] if isinstance(outcome, Fault) else []
                ended(outcome)
        if faults:
            raise ValueError(_said(faults, len(units)))
        return finish(job)


def _said(faults: Sequence[Fault], shards: int) -> str:
    shown = "\n  ".join(fault.error for fault in faults[:3])
    more = f"\n  and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f"{len(faults)} of {shards} shards failed, the others are kept:\n  {shown}{more}"
