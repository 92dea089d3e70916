"""A batch: inputs, targets and, where known, domains and dataset rows; with guests brought along as partners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .tree import Tree, rows, tensors, tree_map


@dataclass(frozen=True)
class Batch:
    """Rows 0..anchors-1 are the samples to train on; any further rows are guests, loaded only to be partners.

    x: a tensor, or a tree of tensors, rows first. y: class ids (R,), soft or multi-label (R, C), regression (R, D) or
    (R,), dense (R, H, W). domain: (R,) or None. index: (R,) rows in the training set, or None. Guests lie column by
    column: partner k (k = 1..K-1) of anchor i is row k * anchors + i.
    """

    x: Tree
    y: Tensor
    domain: Tensor | None = None
    index: Tensor | None = None
    anchors: int = -1

    def __post_init__(self) -> None:
        count = rows(self.x)
        if count == 0:
            raise ValueError("the batch is empty; skip it, or use a smaller batch size than the data set")
        for name, value in (("y", self.y), ("domain", self.domain), ("index", self.index)):
            if value is None and name != "y":
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"batch.{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor")
            if value.ndim == 0 or value.shape[0] != count:
                raise ValueError(f"batch.{name} has shape {tuple(value.shape)}, but batch.x has {count} rows")
        if self.anchors == -1:
            object.__setattr__(self, "anchors", count)
        if not 0 < self.anchors <= count or count % self.anchors:
            raise ValueError(f"anchors = {self.anchors} must divide the {count} rows of the batch")

    def __len__(self) -> int:
        return self.anchors

    @property
    def columns(self) -> int:
        """1 + the number of guests loaded for each anchor."""
        return rows(self.x) // self.anchors

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.x.device if isinstance(self.x, Tensor) else next(tensors(self.x)).device

    @property
    def alone(self) -> Batch:
        """The anchors without their guests."""
        if self.columns == 1:
            return self
        n = self.anchors

        def head(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:n]

        return replace(
            self, x=tree_map(lambda t: t[:n], self.x), y=self.y[:n], domain=head(self.domain), index=head(self.index)
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""

        def move(value: Any) -> Any:
            return None if value is None else tree_map(lambda t: t.to(device, non_blocking=True), value)

        return replace(self, x=move(self.x), y=move(self.y), domain=move(self.domain), index=move(self.index))

    @staticmethod
    def of(data: Batch | Mapping[str, Any] | Sequence[Any]) -> Batch:
        """A Batch from what loaders yield: a Batch, `(x, y)`, `(x, y, domain)`, or a dict.

        A dict needs "y", "label", "labels" or "target"; "domain" and "index" are optional; what remains is x (the
        value of "x" where that is all). ValueError otherwise.
        """
        if isinstance(data, Batch):
            return data
        if isinstance(data, Mapping):
            rest = dict(data)
            found = [key for key in ("y", "label", "labels", "target") if key in rest]
            if len(found) != 1:
                raise ValueError(
                    f"a batch dict needs exactly one of 'y', 'label', 'labels', 'target'; its keys are {list(data)}"
                )
            y, domain, index = rest.pop(found[0]), rest.pop("domain", None), rest.pop("index", None)
            x = rest["x"] if set(rest) == {"x"} else rest
            return Batch(x, y, domain, index)
        if isinstance(data, Sequence) and len(data) in (2, 3):
            return Batch(*data)
        raise ValueError(f"a batch must be a Batch, (x, y), (x, y, domain) or a dict; got {type(data).__name__}")
