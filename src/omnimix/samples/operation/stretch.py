"""Boxes of images resized into other boxes, another pair for every row of the batch, by indexing along each axis."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def stretch(
    x: Tensor,
    rows: Tensor,
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    mode: Literal["nearest", "linear"] = "nearest",
) -> Tensor:
    """x[rows] with its `source` boxes resized to fill the `target` boxes; what lies outside those is of no meaning.

    x: (R, C, *spatial). rows: (B,). source, target: (first cells, cells behind), integers (B, d) each, d spatial axes.
    mode: "nearest" takes the cell at floor(i n / m) for i of m; "linear" interpolates between the centres of the box's
    outer cells.
    """
    for axis, side in enumerate(x.shape[2:]):
        low, high = source[0][:, axis, None], source[1][:, axis, None]
        first, behind = target[0][:, axis, None], target[1][:, axis, None]
        cell = torch.arange(side, device=x.device) - first
        if mode == "nearest":
            place = low + cell * (high - low) // (behind - first).clamp(min=1)
            x = _picked(x, rows, torch.minimum(place, high - 1), axis)
        else:
            step = (high - low - 1) / (behind - first - 1).clamp(min=1)
            place = (cell * step).clamp(min=0)
            index, weight = low + place.long(), place.frac().to(x.dtype).view(_along(len(rows), x, axis))
            a, b = (_picked(x, rows, torch.minimum(i, high - 1), axis) for i in (index, index + 1))
            x = torch.lerp(a, b, weight)
        rows = torch.arange(len(x), device=x.device)
    return x


def _along(count: int, x: Tensor, axis: int) -> list[int]:
    return [count, 1, *(side if a == axis else 1 for a, side in enumerate(x.shape[2:]))]


def _picked(x: Tensor, rows: Tensor, index: Tensor, axis: int) -> Tensor:
    """x[rows] with the cells index (B, side) of the spatial axis `axis` in place of its own."""
    index, side = index.clamp(min=0), index.shape[1]
    if axis == x.ndim - 3:
        x = x[rows] if axis == 0 else x
        return x.gather(axis + 2, index.view(_along(len(rows), x, axis)).expand_as(x))
    before = x.shape[1 : axis + 2].numel()  # whole lines are copied faster than cells
    line = rows.view(-1, 1, 1) * before + torch.arange(before, device=x.device).view(1, -1, 1)
    line = line * side + index.unsqueeze(1)
    lines = x.reshape(-1, *x.shape[axis + 3 :])
    return lines.index_select(0, line.flatten()).view(len(rows), *x.shape[1:])
