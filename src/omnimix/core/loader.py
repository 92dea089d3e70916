"""A DataLoader whose batches bring along the partner rows that a method asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .batch import Batch
from .checks import at_least
from .method import Method
from .random import integers, permutation, resolve


class _Rows(list[int]):
    """Dataset rows of one batch, anchors first."""

    anchors: int


class _PartnerSampler(Sampler[list[int]]):
    def __init__(self, method: Method, size: int, batch_size: int, drop_last: bool, generator: torch.Generator) -> None:
        self.method, self.size, self.batch_size = method, size, at_least("batch_size", batch_size, 1)
        self.drop_last, self.generator = drop_last, generator

    def __len__(self) -> int:
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        self.method.before_epoch()
        order = permutation(self.size, self.generator).cpu()
        steps = range(0, len(self) * self.batch_size, self.batch_size)
        yield from _with_guests(self.method, (order[start : start + self.batch_size] for start in steps))


def _with_guests(method: Method, batches: Iterable[Tensor]) -> Iterator[_Rows]:
    """The rows of each batch, its guests behind; drawn from a stream of the epoch's own.

    Loader workers ask for rows ahead, and what training draws meanwhile must not depend on how far.
    """
    stream = torch.Generator(method.generator.device)
    stream.manual_seed(int(integers(2**62, 1, generator=method.generator)))
    everyone = list(_members(method))
    for batch in batches:
        kept = [member.generator for member in everyone]
        try:
            for member in everyone:
                member.generator = stream
            anchors, guests = method.rows(batch)
        finally:
            for member, own in zip(everyone, kept, strict=True):
                member.generator = own
        rows = _Rows((anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))).tolist())
        rows.anchors = len(anchors)
        yield rows


def _members(method: Method) -> Iterator[Method]:
    """The method and those that it is made of."""
    yield method
    for value in vars(method).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Method):
                yield from _members(part)


class _Batches(Dataset[Any]):
    """Fetches all rows of a batch at once, so that the batch keeps its rows' positions."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, rows: _Rows) -> list[Batch]:
        parts = Batch.of(default_collate([self.dataset[row] for row in rows]))
        return [Batch(parts.x, parts.y, parts.domain, torch.tensor(rows), anchors=rows.anchors)]


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def partner_loader(
    dataset: Dataset[Any],
    method: Method,
    batch_size: int,
    *,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A shuffling DataLoader of `omnimix.Batch`es for methods whose partners come from the whole training set.

    dataset: map-style, yielding (x, y), (x, y, domain) or dicts; its rows are the rows of the method's table. method:
    after `setup`. options: passed to `DataLoader` (num_workers, pin_memory, ...). The batch size counts the samples to
    train on; guests come on top.
    """
    size = len(dataset)  # type: ignore[arg-type]
    table = method._given().table
    if table is not None and len(table) != size:
        raise ValueError(
            f"the data set has {size} rows, but the table that the method was set up with has {len(table)}"
        )
    sampler = _PartnerSampler(method, size, batch_size, drop_last, resolve(generator))
    return DataLoader(_Batches(dataset), batch_sampler=sampler, collate_fn=_only, **options)
