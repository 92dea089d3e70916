"""GridMix: show the partner through a grid of holes in a random crop, and mix the labels by area.

    n holes a row, cell = ceil(crop / n), hole = int(cell sqrt(1 - lam)) in 1..cell - 1,  m = 0 in the holes;
    x~_i = m x_i + (1 - m) x_pi(i),   y~_i = mean(m) y_i + (1 - mean(m)) y_pi(i),   lam ~ Beta(alpha, alpha)

Source: the GridMix of the mixup tool boxes (I. Dobrynin's GridMixup, 2020; openmixup). Cost: 1. The GridMix of
Pattern Recognition 2021 is another method: see `gridmix_local`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...core.checks import at_least, positive
from ...core.method import Mix
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers, uniform
from ...core.ratio import Beta
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.tree import Tree


def grid_masks(lam: Tensor, low: Tensor, crop: Tensor, cell: Tensor, size: tuple[int, ...]) -> Tensor:
    """(G, 1, *size) float masks: 0 in the holes, 1 elsewhere.

    lam: (G,) about the share of each cell that stays. low, crop, cell: (G, d) integers, the first cell and the sides of
    the crop, and the distances between holes.
    """
    side = (cell * (1.0 - lam.double().unsqueeze(1)) ** (1.0 / len(size)) + 1e-5).long()
    hole = torch.minimum(side.clamp(min=1), (cell - 1).clamp(min=1)) * (lam < 1).unsqueeze(1)
    along = []
    for axis, count in enumerate(size):
        place = torch.arange(count, device=lam.device) - low[:, axis, None]
        inside = (place >= 0) & (place < crop[:, axis, None])
        inside &= place.remainder(cell[:, axis, None]) < hole[:, axis, None]
        along.append((~inside).float().view(-1, 1, *(count if a == axis else 1 for a in range(len(size)))))
    return functools.reduce(torch.maximum, along)


class GridHoles(Operation):
    """Show the partner through a regular grid of holes that take its share of a random crop; shares follow the mask.

    holes: fewest and most along the last axis, uniform. area, aspect: ranges of the crop's area and height to width,
    relative to the image's, uniform; the crop is cut at the border. per_sample: a grid for each sample, else one for
    the batch, for the first sample's share. x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError otherwise.
    """

    def __init__(
        self,
        holes: tuple[int, int] = (2, 6),
        area: tuple[float, float] = (0.5, 1.0),
        aspect: tuple[float, float] = (0.5, 2.0),
        *,
        per_sample: bool = False,
    ) -> None:
        if at_least("holes[0]", holes[0], 1) > at_least("holes[1]", holes[1], 1):
            raise ValueError(f"holes must be (fewest, most), got {holes!r}")
        for name, (low, high) in {"area": area, "aspect": aspect}.items():
            if positive(name, low) > high or (name == "area" and high > 1):
                most = " <= 1" if name == "area" else ""
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high{most}, got {(low, high)!r}")
        self.holes, self.area, self.aspect, self.per_sample = holes, area, aspect, per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        lam = lam if self.per_sample else lam[:1]
        low, crop, cell = self._draw(len(lam), size, context.generator)
        mask = grid_masks(lam, low.to(x.device), crop.to(x.device), cell.to(x.device), size)
        kept = mask.flatten(1).mean(dim=1)
        share = torch.stack((kept, 1.0 - kept), dim=1).expand(len(partner), 2)
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(share, mask)

    def _draw(self, count: int, size: tuple[int, ...], source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(low, crop, cell), (count, d) integers each."""
        side = torch.tensor(size, device=source.device)
        area, aspect, *place = uniform(2 + len(size), count, generator=source)
        area = self.area[0] + (self.area[1] - self.area[0]) * area
        aspect = (self.aspect[0] + (self.aspect[1] - self.aspect[0]) * aspect) ** 0.5
        relative = (area ** (1.0 / len(size))).unsqueeze(1).repeat(1, len(size))
        if len(size) > 1:
            relative[:, -1] /= aspect
            relative[:, -2] *= aspect
        crop = torch.minimum((relative * side + 1e-9).long().clamp(min=1), side)
        low = (torch.stack(place, dim=1) * (side - crop + 1)).long()
        fewest, most = self.holes
        number = fewest + integers(most - fewest + 1, count, generator=source)
        number = torch.minimum(number, (crop[:, -1] // 2).clamp(min=1)).unsqueeze(1)
        cell = ((crop[:, -1:] + number - 1) // number).expand_as(crop)
        return low, crop, cell


def gridmix(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    holes: tuple[int, int] = (2, 6),
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = gridmix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. holes: see `GridHoles`. alpha, y, per_sample, lam,
    partner: see `cutmix`. ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    ratio, operation = Beta(alpha, per_sample=per_sample), GridHoles(holes, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), ratio, operation, lam, partner, generator)


@register(
    "gridmix",
    paper="GridMixup (I. Dobrynin, software, 2020), as in OpenMixup, 2022, arXiv 2209.04851",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "probability": Choice(0.5, 1.0)},
)
class GridMix(Mix):
    """Show a partner through a grid of holes and mix the labels by area.

    alpha, holes, per_sample: see `gridmix`. probability: the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        holes: tuple[int, int] = (2, 6),
        *,
        per_sample: bool = False,
        probability: float = 1.0,
    ) -> None:
        ratio, operation = Beta(alpha, per_sample=per_sample), GridHoles(holes, per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
