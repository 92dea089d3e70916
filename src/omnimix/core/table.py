"""Per-sample state of the training set, keyed by the dataset index."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class Table:
    """Columns of N rows: "label", "domain", "feature", and whatever a method keeps about each sample.

    Columns are tensors with the training rows first; `index` of a batch addresses them.
    """

    def __init__(self, **columns: Tensor) -> None:
        self._columns: dict[str, Tensor] = {}
        for name, column in columns.items():
            self[name] = column

    def __setitem__(self, name: str, column: Tensor) -> None:
        if not isinstance(column, Tensor):
            raise ValueError(
                f"table column {name!r} must be a tensor, got {type(column).__name__}; use torch.as_tensor"
            )
        if column.ndim == 0 or (self._columns and column.shape[0] != len(self)):
            raise ValueError(f"table column {name!r} has shape {tuple(column.shape)}, expected {len(self)} rows first")
        self._columns[name] = column

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            have = ", ".join(map(repr, self._columns)) or "none"
            raise ValueError(f"this method needs a {name!r} for every training sample; the table has: {have}")
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return next(iter(self._columns.values())).shape[0] if self._columns else 0
