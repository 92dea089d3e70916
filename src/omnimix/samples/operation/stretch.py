"""Boxes of images resized into other boxes, another pair for every row of the batch, by indexing along each axis."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def stretch(
    x: Tensor,
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    mode: Literal["nearest", "linear"] = "nearest",
) -> Tensor:
    """x with its `source` boxes resized to fill the `target` boxes; what lies outside those is of no meaning.

    x: (B, C, *spatial). source, target: (first cells, cells behind), integers (B, d) each, d spatial axes. mode:
    "nearest" takes the cell at floor(i n / m) for i of m; "linear" interpolates between the centres of the box's outer
    cells.
    """
    for axis, side in enumerate(x.shape[2:]):
        low, high = source[0][:, axis, None], source[1][:, axis, None]
        first, behind = target[0][:, axis, None], target[1][:, axis, None]
        cell = torch.arange(side, device=x.device) - first
        if mode == "nearest":
            place = low + cell * (high - low) // (behind - first).clamp(min=1)
            x = _picked(x, torch.minimum(place.clamp(min=0), high - 1), axis)
            continue
        step = (high - low - 1) / (behind - first - 1).clamp(min=1)
        place = (cell * step).clamp(min=0)
        below = place.floor()
        index = low + below.long()
        weight = (place - below).to(x.dtype).view(_along(x, axis))
        a, b = (_picked(x, torch.minimum(i, high - 1), axis) for i in (index, index + 1))
        x = torch.lerp(a, b, weight)
    return x


def _along(x: Tensor, axis: int) -> list[int]:
    return [len(x), 1, *(side if a == axis else 1 for a, side in enumerate(x.shape[2:]))]


def _picked(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """x with the cells index (B, side) of the spatial axis `axis` in place of its own."""
    return x.gather(axis + 2, index.clamp(min=0).view(_along(x, axis)).expand_as(x))
