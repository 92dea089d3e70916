"""SmoothMix (Lee et al. 2020): blend the partner in by a Gaussian spot, and the labels by its mean.

    G = exp(-sum_a (p_a - c_a)^2 / (2 sigma_a^2)), sigma_a = u side_a, u ~ U(.25, .5), c uniform in the image;
    x~_i = (1 - G) x_i + G x_pi(i),   y~_i = (1 - mean(G)) y_i + mean(G) y_pi(i)

Source: Lee, Zaigham Zaheer, Astrid, Lee, "SmoothMix: A Simple Yet Effective Data Augmentation to Train Robust
Classifiers", CVPR Workshops 2020; not the certified SmoothMix of NeurIPS 2021. Cost: 1. The code of openmixup gives
mean(G) to the wrong label; this one follows the paper. lam of the recipe drawn stands for 1 - u.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import uniform
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice
from ...core.tree import Tree
from ..ratio.uniform_side import UniformSide


def gaussian_spot(centre: Tensor, width: Tensor, size: Sequence[int]) -> Tensor:
    """(G, 1, *size) float32 spots of height 1 about `centre` (G, d) in cells; width: (G,) deviations in sides."""
    along = []
    for axis, side in enumerate(size):
        cell = torch.arange(side, device=centre.device)
        scaled = (cell - centre[:, axis, None]) / (width.unsqueeze(1) * side).clamp(min=1e-9)
        spot = torch.exp(-0.5 * scaled.square()).float()
        along.append(spot.view(-1, 1, *(side if a == axis else 1 for a in range(len(size)))))
    return functools.reduce(torch.mul, along)


class GaussianSpot(Operation):
    """Blend the partner in by a Gaussian of deviation (1 - lam) sides about a random cell; shares follow its mean.

    per_sample: a spot for each sample, else one for the batch, for the first sample's share. x: (R, C, *spatial) with 1
    to 3 spatial axes; ValueError for other inputs.
    """

    def __init__(self, *, per_sample: bool = False) -> None:
        self.per_sample = per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        lam = lam if self.per_sample else lam[:1]
        place = uniform(len(lam), len(size), generator=context.generator).to(x.device)
        centre = place * torch.tensor(size, device=x.device) - 0.5
        mask = 1.0 - gaussian_spot(centre, 1.0 - lam.double(), size)
        kept = mask.flatten(1).mean(dim=1)
        share = torch.stack((kept, 1.0 - kept), dim=1).expand(len(partner), 2)
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(share, mask)


def smoothmix(
    x: Tensor,
    y: Tensor,
    width: tuple[float, float] = (0.25, 0.5),
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = smoothmix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. width: the range in [0, 1] of the spot's standard
    deviation, in sides. per_sample: a spot for each sample instead of one for the batch. lam: 1 - width in place of the
    draw, a number or (B,) values; the share really kept is `mixed.recipe.lam`. y, partner: see `cutmix`. ValueError for
    tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    ratio = UniformSide(*width, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), ratio, GaussianSpot(per_sample=per_sample), lam, partner, generator)


@register(
    "smoothmix",
    paper="SmoothMix: A Simple Yet Effective Data Augmentation to Train Robust Classifiers, CVPR Workshops 2020",
    inputs=("image",),
    search={"per_sample": Choice(False, True), "probability": Choice(0.5, 1.0)},
)
class SmoothMix(Mix):
    """Blend a partner into each image by a Gaussian spot and mix the labels by its mean.

    narrow, wide: the range of the spot's width, see `smoothmix`. per_sample: a spot for each sample. probability: the
    share of steps that mix.
    """

    def __init__(
        self, narrow: float = 0.25, wide: float = 0.5, *, per_sample: bool = False, probability: float = 1.0
    ) -> None:
        ratio, operation = UniformSide(narrow, wide, per_sample=per_sample), GaussianSpot(per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
