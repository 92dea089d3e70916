"""Images as grids of blocks, of one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def cut_up(x: Tensor, grid: Sequence[int]) -> Tensor:
    """x (N, C, *spatial) as (N, T, C * cells of a block), for the T blocks of the grid, row by row."""
    return in_blocks(x, grid).permute(_order(len(grid))).reshape(len(x), math.prod(grid), -1)


def put_together(parts: Tensor, grid: Sequence[int], like: Tensor) -> Tensor:
    """The (N, C, *spatial) that `cut_up` took for (N, T, C * cells); C and the sizes are those of `like`."""
    order = _order(len(grid))
    shape = in_blocks(like[:1], grid).shape
    seen = parts.view(len(parts), *(shape[axis] for axis in order[1:]))
    return seen.permute(sorted(range(len(order)), key=order.__getitem__)).reshape(len(parts), *like.shape[1:])


def _order(axes: int) -> tuple[int, ...]:
    """Of the axes that `in_blocks` gives: samples, blocks, channels, cells."""
    return (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
