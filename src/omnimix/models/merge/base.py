"""What every merge operator shares: a pass over the tensors of several models, block by block, in float32 at least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .source import PIECE, InMemory, Source, finite, spans, values, working


class Block(NamedTuple):
    """The same entries of all models."""

    models: list[Tensor]
    base: Tensor | None
    name: str
    number: int
    """0 for the first block of a tensor."""


Blocks: TypeAlias = Callable[[], Iterator[Block]]
"""Called anew for each pass over the values."""


class Merger:
    """One way to make one model of several.

    A subclass defines `combine`, and `measure` where it must see all values before it can combine any.
    """

    name: ClassVar[str]
    base: ClassVar[Literal["required", "none"]] = "none"
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    whole: ClassVar[bool] = False
    """Whether blocks are whole tensors in their own shape; else they are flat and of at most BLOCK entries."""
    pieces: ClassVar[bool] = False
    """Whether a block may be worked on in pieces: entries do not depend on one another, and nothing is drawn."""
    scope: Literal["tensor", "model"] = "tensor"
    """What one call of `measure` sees."""

    def fit(self, models: int, base: bool) -> None:
        """ValueError if it cannot merge that many models, or misses a base."""
        if models < self.fewest or (self.most is not None and models > self.most):
            allowed = f"exactly {self.most}" if self.fewest == self.most else f"at least {self.fewest}"
            raise ValueError(f"{self.name} merges {allowed} models, got {models}")
        if base != (self.base == "required"):
            raise ValueError(f"{self.name} {'needs a base model' if not base else 'takes no base model'}")
        weights = getattr(self, "weights", None)
        if weights is not None and len(weights) != models:
            raise ValueError(f"weights must be one number a model: got {len(weights)} for {models} models")

    def measure(self, blocks: Blocks) -> Any:
        """What `combine` must know of a tensor (or of the model, see `scope`)."""
        return None

    def combine(self, block: Block, found: Any) -> Tensor:
        """The merged block, from blocks in float32 or float64 that stay as they are, and what `measure` found."""
        raise NotImplementedError

    def __call__(
        self,
        models: Sequence[Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """The merged state dict.

        models, base: state dicts with the same names and shapes, on one device. dtype: of the merged floating-point
        tensors, default that of the base (or of the first model). Other tensors must be equal in all, and are copied.
        ValueError for what differs, for NaN and infinity, and for results that `dtype` cannot hold.
        """
        self.fit(len(models), base is not None)
        sources: list[Source] = [InMemory(model, f"model {i}") for i, model in enumerate(models)]
        start = None if base is None else InMemory(base, "the base")
        everyone = [*sources] if start is None else [start, *sources]
        for source in everyone[1:]:
            agree(everyone[0], source)
        first = models[0] if base is None else base
        names = [name for name in first if first[name].is_floating_point()]
        found = self.measure(all_blocks(self, names, sources, start)) if self.scope == "model" else None
        merged = {}
        for name, value in first.items():
            if value.is_floating_point():
                pieces = [*merged_blocks(self, name, sources, start, found, dtype or value.dtype)]
                merged[name] = torch.cat([piece.reshape(-1) for piece in pieces] or [value]).reshape(value.shape)
            else:
                same(name, everyone, 0, value.numel())
                merged[name] = value.clone()
        return merged


def agree(one: Source, other: Source) -> None:
    """ValueError unless both have the same names and shapes, with numbers of one kind."""
    if absent := sorted(set(one.names()) ^ set(other.names())):
        raise ValueError(f"only one of {one.label} and {other.label} has {', '.join(map(repr, absent[:5]))}")
    for name in one.names():
        if one.shape(name) != other.shape(name):
            raise ValueError(
                f"tensor {name!r} has shape {one.shape(name)} in {one.label} and {other.shape(name)} in {other.label}"
            )
        if one.dtype(name).is_floating_point != other.dtype(name).is_floating_point:
            raise ValueError(
                f"tensor {name!r} is {one.dtype(name)} in {one.label} and {other.dtype(name)} in {other.label}"
            )


def same(name: str, sources: Sequence[Source], start: int, stop: int) -> Tensor:
    """Entries of a tensor that must be equal in all sources, such as integer buffers.

    Batch normalisation's count of batches may differ: evaluation does not read it.
    """
    first = sources[0].block(name, start, stop)
    for source in sources[1:] if name.rpartition(".")[2] != "num_batches_tracked" else ():
        if not torch.equal(source.block(name, start, stop), first):
            raise ValueError(
                f"tensor {name!r} is {str(sources[0].dtype(name)).removeprefix('torch.')}, which is copied and not "
                f"averaged, and differs between {sources[0].label} and {source.label}"
            )
    return first


def _blocks(merger: Merger, name: str, models: Sequence[Source], base: Source | None, check: bool) -> Iterator[Block]:
    """As they are stored."""
    shape = (base or models[0]).shape(name)
    for number, (start, stop) in enumerate([(0, math.prod(shape))] if merger.whole else spans(shape)):
        parts = [values(model, name, start, stop, check=check) for model in models]
        origin = None if base is None else values(base, name, start, stop, check=check)
        if merger.whole:
            parts = [part.reshape(shape) for part in parts]
            origin = None if origin is None else origin.reshape(shape)
        yield Block(parts, origin, name, number)


def _pieces(merger: Merger, block: Block) -> Iterator[Block]:
    """A block in the type to compute in, whole or in pieces."""
    lead = block.models[0] if block.base is None else block.base
    dtype, size = working(lead.dtype), max(lead.numel(), 1)
    step = min(size, PIECE * torch.get_num_threads()) if merger.pieces and lead.device.type == "cpu" else size
    for start in range(0, size, step):
        every = [*block.models] if block.base is None else [*block.models, block.base]
        if step < size:
            every = [part[start : start + step] for part in every]
        wide = [part.to(dtype) for part in every]
        origin = None if block.base is None else wide.pop()
        yield Block(wide, origin, block.name, block.number)


def all_blocks(merger: Merger, names: Sequence[str], models: Sequence[Source], base: Source | None) -> Blocks:
    """The blocks of these tensors, for `measure`, as they are: `merged_blocks` refuses NaN."""

    def every() -> Iterator[Block]:
        for block in _ahead(block for name in names for block in _blocks(merger, name, models, base, False)):
            yield from _pieces(merger, block)

    return every


def _ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, the next one being read while the caller works on this one."""
    first, second = next(blocks, None), next(blocks, None)
    if first is None or second is None:  # no thread for a single block
        yield from filter(None, (first, second))
        return
    yield first
    with ThreadPoolExecutor(1) as pool:
        while second is not None:
            coming = pool.submit(next, blocks, None)
            yield second
            second = coming.result()


def merged_blocks(
    merger: Merger, name: str, models: Sequence[Source], base: Source | None, found: Any, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The merged blocks of one floating-point tensor, as `dtype`. found: what `measure` said of the model, if asked."""
    if merger.scope == "tensor":
        found = merger.measure(all_blocks(merger, [name], models, base))
    for block in _ahead(_blocks(merger, name, models, base, True)):
        done = [merger.combine(piece, found).to(dtype) for piece in _pieces(merger, block)]
        merged = torch.cat(done) if len(done) > 1 else done[0]
        if not finite(merged):
            raise ValueError(
                f"the merged tensor {name!r} does not fit {str(dtype).removeprefix('torch.')}; ask for another dtype"
            )
        yield merged
