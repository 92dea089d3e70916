"""What the engines share: the work that they are given, how far each unit is, how a plan travels to another process."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.registry import register
from ..jobs import Outcome, Plan, device_kind, execute, killed

STARTED = 1e-9
"""The share done of a unit that has just begun."""
_TENSORS = ("x", "y", "domain")


@contextmanager
def shared_fractions(count: int) -> Iterator[np.memmap]:
    """(count,) how much of each unit is done, in a file that all processes of this machine write to."""
    with tempfile.TemporaryDirectory(prefix="omnimix-") as folder:
        yield np.memmap(Path(folder) / "progress", dtype=np.float64, mode="w+", shape=(max(1, count),))


class Work(ABC):
    """What an engine computes: units, which are tuples of jobs. It is sent to the processes, and must travel there."""

    device: str
    """"cpu" or "gpu"."""

    @abstractmethod
    def execute(self, unit: Any, progress: Callable[[float], None]) -> Outcome:
        """The outcomes of the jobs of a unit; whatever goes wrong in one is returned, not raised."""

    @abstractmethod
    def killed(self, unit: Any, error: BaseException) -> Outcome:
        """The outcome of a unit whose process died twice."""

    def packed(self) -> Work:
        """With arrays that processes of one machine can share in memory, and files by absolute paths."""
        return self

    def unpacked(self) -> Work:
        """What was packed, where it arrives."""
        return self


@dataclass(frozen=True)
class Comparison(Work):
    """The runs of a comparison."""

    plan: Plan

    @property
    def device(self) -> str:  # type: ignore[override]
        return device_kind(self.plan.source, self.plan.protocol)

    def execute(self, unit: Any, progress: Callable[[float], None]) -> Outcome:
        return execute(unit, self.plan, progress)

    def killed(self, unit: Any, error: BaseException) -> Outcome:
        return killed(unit, self.plan, error)

    def packed(self) -> Work:
        checkpoints = self.plan.checkpoints and self.plan.checkpoints.absolute()
        return Comparison(replace(_exchange(self.plan, Tensor, Tensor.numpy), checkpoints=checkpoints))

    def unpacked(self) -> Work:
        for card in self.plan.plugins:  # methods that a script, not an installed package, has registered
            register(
                card.name, paper=card.paper, tasks=card.tasks, cost=card.cost, level=card.level, inputs=card.inputs
            )(card.factory)  # fmt: skip
        return Comparison(_exchange(self.plan, np.ndarray, torch.from_numpy))


def _exchange(plan: Plan, kind: type, function: Any) -> Plan:
    found = {name: getattr(plan.source, name) for name in _TENSORS}
    changed = {name: function(value) for name, value in found.items() if isinstance(value, kind)}
    return replace(plan, source=replace(plan.source, **changed))
