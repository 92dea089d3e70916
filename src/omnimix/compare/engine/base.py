"""What the engines share: how far each unit is, and how a plan travels to another process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.registry import register
from ..jobs import Plan

STARTED = 1e-9
"""The share done of a unit that has just begun."""
_TENSORS = ("x", "y", "domain")


@contextmanager
def shared_fractions(count: int) -> Iterator[np.memmap]:
    """(count,) how much of each unit is done, in a file that all processes of this machine write to."""
    with tempfile.TemporaryDirectory(prefix="omnimix-") as folder:
        yield np.memmap(Path(folder) / "progress", dtype=np.float64, mode="w+", shape=(max(1, count),))


def register_plugins(plan: Plan) -> None:
    """Make the methods known that a script, not an installed package, has registered."""
    for card in plan.plugins:
        register(
            card.name, paper=card.paper, tasks=card.tasks, cost=card.cost, level=card.level, inputs=card.inputs
        )(card.factory)  # fmt: skip


def pack(plan: Plan) -> Plan:
    """Tensors of the data as arrays, which processes of one machine can share in memory."""
    return _exchange(plan, Tensor, Tensor.numpy)


def unpack(plan: Plan) -> Plan:
    """What was packed."""
    return _exchange(plan, np.ndarray, torch.from_numpy)


def _exchange(plan: Plan, kind: type, function: Any) -> Plan:
    found = {name: getattr(plan.source, name) for name in _TENSORS}
    changed = {name: function(value) for name, value in found.items() if isinstance(value, kind)}
    return replace(plan, source=replace(plan.source, **changed))
