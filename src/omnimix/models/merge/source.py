"""Where an operator reads weights from: a state dict, or anything else that gives blocks of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 2**20
"""Entries of a tensor that are worked on at once. DARE's masks are drawn block by block: changing it changes them."""


PIECE = 2**17
"""Entries that an element-wise operator combines at once on a thread of the CPU, so that they stay in its cache."""


class Source(Protocol):
    """Named tensors that are read block by block."""

    label: str
    """How messages call it."""

    def names(self) -> list[str]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop-1 of the flattened tensor."""
        ...


class InMemory:
    """A state dict as a Source."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{label}: {name!r} must be a tensor, got {type(value).__name__}; pass a state_dict()")
        self.tensors, self.label = tensors, label

    def names(self) -> list[str]:
        return list(self.tensors)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name].detach().reshape(-1)[start:stop]


def spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor, as ranges of its flattened entries."""
    size = math.prod(shape)
    return ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def working(dtype: torch.dtype) -> torch.dtype:
    """What to compute in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(source: Source, name: str, start: int, stop: int, *, check: bool) -> Tensor:
    """A block; ValueError, if asked to check, where it holds NaN or infinity."""
    block = source.block(name, start, stop)
    if check and not finite(block):
        at = int((~block.isfinite()).nonzero()[0])
        raise ValueError(
            f"{source.label}: tensor {name!r} holds {block[at].item()} at entry {start + at} of its flattened values; "
            "a merge would spread it. Mend the checkpoint or leave it out"
        )
    return block


def finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite. A sum is much faster than a look at each, but may overflow."""
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())
