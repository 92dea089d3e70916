"""What saliency maps share: their size, their scale, filters, and maps that the caller brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.operation import Context, Saliency


class Given(Saliency):
    """Maps of the rows of this batch that were computed elsewhere, (R, 1, *grid); ValueError for another shape."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.maps.ndim != x.ndim or self.maps.shape[:2] != (len(x), 1):
            raise ValueError(
                f"saliency must hold a map (1, *grid) for each of the {len(x)} rows of x {tuple(x.shape)}, got "
                f"{tuple(self.maps.shape)}"
            )
        return self.maps.detach().to(x.device)


def as_saliency(value: Saliency | Tensor) -> Saliency:
    """A way to compute maps, from one or from the maps themselves; ValueError for anything else."""
    if isinstance(value, Saliency):
        return value
    if isinstance(value, Tensor):
        return Given(value)
    raise ValueError(f"saliency must be an omnimix Saliency or a tensor of maps (R, 1, *grid), got {value!r}")


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (R, 1, *grid) at another size, linearly interpolated; the same tensor where the size is right."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=False)


def normalised(maps: Tensor) -> Tensor:
    """Float32 maps that sum to 1 in each row; uniform where a map is zero or not finite."""
    flat = maps.float().flatten(1)
    flat = flat / flat.sum(dim=1, keepdim=True)
    good = flat.isfinite().all(dim=1, keepdim=True)
    return torch.where(good, flat, 1.0 / flat.shape[1]).view(maps.shape)


def filtered(maps: Tensor, weights: Tensor) -> Tensor:
    """maps (R, 1, *grid) filtered by `weights`, of odd length, along every axis; the edge values go on outside."""
    reach = torch.arange(len(weights), device=maps.device) - len(weights) // 2
    for axis in range(2, maps.ndim):
        side = maps.shape[axis]
        source = (torch.arange(side, device=maps.device).unsqueeze(1) + reach).clamp(0, side - 1)
        matrix = maps.new_zeros(side, side).scatter_add_(1, source, weights.expand(side, -1))
        maps = (maps.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return maps
