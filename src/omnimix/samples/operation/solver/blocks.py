"""Images as grids of blocks, of one to three dimensions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_divisor(side: int, wish: int) -> int:
    """The divisor of `side` whose ratio to `wish` is nearest to 1; of equals the smaller."""
    divisors = (n for n in range(1, side + 1) if side % n == 0)
    return min(divisors, key=lambda n: (max(n / wish, wish / n), n))


def block_grid(size: Sequence[int], blocks: int) -> tuple[int, ...]:
    """The number of equal blocks along each axis, as near to `blocks` as the sides allow."""
    return tuple(nearest_divisor(side, blocks) for side in size)


def in_blocks(x: Tensor, grid: Sequence[int]) -> Tensor:
    """x (N, C, *spatial) seen as (N, C, blocks, cells of a block, blocks, cells of a block, ...), axis by axis."""
    parts = (part for blocks, side in zip(grid, x.shape[2:], strict=True) for part in (blocks, side // blocks))
    return x.reshape(*x.shape[:2], *parts)


def pooled(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The means of the blocks of x (N, C, *spatial): (N, C, *grid)."""
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(grid) - 1]
    return pool(x, [side // blocks for side, blocks in zip(x.shape[2:], grid, strict=True)])


def spread(values: Tensor, size: Sequence[int]) -> Tensor:
    """Values (N, ..., *grid) of blocks, repeated for each of their cells: (N, ..., *size)."""
    for axis, side in enumerate(size, start=values.ndim - len(size)):
        values = values.repeat_interleave(side // values.shape[axis], dim=axis)
    return values


def enlarged(values: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Values (N, 1, *grid), each in its part of the cells, (N, 1, *size); and the means over the cells, (N, 1).

    Parts differ by a cell where the grid does not divide the sides.
    """
    mean = values[:, 0].double()
    for axis, side in reversed(list(enumerate(size, 2))):  # the last first: then whole lines are copied
        grid = values.shape[axis]
        first = (torch.arange(grid + 1, device=values.device) * side + grid - 1) // grid  # cells of the parts
        values = values.index_select(axis, torch.arange(side, device=values.device) * grid // side)
        mean = mean @ (first.diff().double() / side)
    return values, mean.unsqueeze(1)


@functools.lru_cache(maxsize=32)
def _layout(size: Sequence[int], grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Counted row by row: the block of each cell, its distance from the first cell of that block; those first cells."""
    number = torch.arange(math.prod(size)).view(*size)
    first = number[tuple(slice(None, None, side // blocks) for side, blocks in zip(size, grid, strict=True))].flatten()
    block = spread(torch.arange(len(first)).view(*grid), size).flatten()
    return block.to(device), (number.flatten() - first[block]).to(device), first.to(device)


def rearranged(x: Tensor, block: Tensor) -> Tensor:
    """x (N, C, *spatial) with, in each block of the grid of `block` (N, *grid), the block that it names.

    Blocks are counted row by row.
    """
    of_cell, within, first = _layout(tuple(x.shape[2:]), tuple(block.shape[1:]), x.device)
    cell = first[block.flatten(1)].index_select(1, of_cell) + within
    return x.flatten(2).gather(2, cell.unsqueeze(1).expand(-1, x.shape[1], -1)).view(x.shape)
