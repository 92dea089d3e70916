"""What the loop trains and scores on: the parts of a data set, in memory or decoded row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.table import Table
from ..core.task import Task
from ..core.tree import Tree, rows, tensors, tree_map


@dataclass(frozen=True)
class Part:
    """Rows to train or score on.

    x: a tensor or a tree of tensors, rows first; or any object with `take(rows: LongTensor) -> Tensor` and `__len__`,
    which decodes rows when they are needed. y, domain: as in `omnimix.Batch`. raw: the targets in their own units where
    y is normalised. ValueError if their lengths differ.
    """

    x: Any
    y: Tensor
    domain: Tensor | None = None
    raw: Tensor | None = None

    def __post_init__(self) -> None:
        count = rows(self.x) if self.in_memory else len(self.x)
        if count == 0:
            raise ValueError("a part of a data set needs at least one row")
        for name in ("y", "domain", "raw"):
            value = getattr(self, name)
            if value is not None and (value.ndim == 0 or value.shape[0] != count):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, but x has {count} rows")

    def __len__(self) -> int:
        return int(self.y.shape[0])

    @property
    def in_memory(self) -> bool:
        """Whether x is made of tensors."""
        return isinstance(self.x, (Tensor, dict, list, tuple))

    @property
    def nbytes(self) -> int:
        """The memory that x takes; 0 where rows are decoded."""
        return sum(t.nbytes for t in tensors(self.x)) if self.in_memory else 0

    def take(self, index: Tensor) -> tuple[Tree, Tensor, Tensor | None]:
        """(x, y, domain) of the rows `index`, a LongTensor on the device of y."""
        if isinstance(self.x, Tensor):
            x = self.x.index_select(0, index)
        elif self.in_memory:
            x = tree_map(lambda t: t.index_select(0, index), self.x)
        else:
            x = self.x.take(index)
        return x, self.y.index_select(0, index), None if self.domain is None else self.domain.index_select(0, index)

    def to(self, device: torch.device) -> Part:
        """The part with its tensors on `device`; only for parts in memory."""

        def move(value: Any) -> Any:
            return None if value is None else tree_map(lambda t: t.to(device), value)

        return replace(self, x=move(self.x), y=move(self.y), domain=move(self.domain))


@dataclass(frozen=True)
class Data:
    """The parts of one run. target_scale: (offset, scale) when targets were normalised; raw y = offset + scale * y."""

    train: Part
    valid: Part | None
    test: Part | None
    task: Task
    target_scale: tuple[Tensor | float, Tensor | float] | None = None


def table(part: Part, needs: Sequence[str] = ()) -> Table:
    """The core table of a part: "label", "domain" where known, and "feature" where needed and x is a tensor.

    A feature is the flattened input as floats. "raw_label": the labels in their own units where they are normalised.
    """
    columns = {"label": part.y}
    if part.raw is not None:
        columns["raw_label"] = part.raw
    if part.domain is not None:
        columns["domain"] = part.domain
    if "feature" in needs and isinstance(part.x, Tensor):
        columns["feature"] = part.x.flatten(1).to(torch.get_default_dtype())
    return Table(**columns)
