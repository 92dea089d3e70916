"""ResizeMix: paste the whole partner, shrunken, at a random place of each image.

    tau ~ U(low, high), lam = 1 - tau^2;   x~_i = x_i with x_pi(i), resized to int(side lam'^(1/d)) along each of d
    axes (lam' = 1 - lam; in images int(tau side)), pasted at a random place where it fits;   labels by area

Source: Qin, Fang, Zhang, Liu, Wang, Wang, "ResizeMix: Mixing Data with Preserved Object Information and True Labels",
2020, arXiv 2012.11101. Cost: 1 (a gather along each axis). One tau for the batch, a place for each sample, as in the
reference, which also trains on two RandAugmented copies of the mixed batch: compose that outside.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice, Uniform
from ...core.tree import Tree
from ..ratio.uniform_side import UniformSide
from .cutmix import outside
from .stretch import stretch


class PasteResized(Operation):
    """Show the whole partner, resized to about its share, at a random place; shares follow the pasted area.

    x: (R, C, *spatial) with 1 to 3 spatial axes, cells taken by nearest neighbour; ValueError for other inputs.
    """

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, source = spatial_size(x, recipe), context.generator
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        side = torch.tensor(size, device=x.device)
        # The small number keeps .5 of 32 at 16, although lam is a float32.
        extent = (side * (1.0 - lam.double().unsqueeze(1)) ** (1.0 / len(size)) + 1e-5).long()
        centre = torch.stack([integers(s, len(partner), generator=source) for s in size], dim=1).to(x.device)
        high = torch.minimum((centre - extent // 2).clamp(min=0) + extent, side)
        low = high - extent
        mask = outside(low, high, size)
        moved = partial(own_and_resized, rows=partner, target=(low, high))
        mixed = moved(x)[1].lerp_(x[: len(partner)], mask.to(x.dtype))
        kept = 1.0 - extent.prod(dim=1) / math.prod(size)
        return mixed, recipe.with_share(torch.stack((kept, 1.0 - kept), dim=1), mask, moved)


def own_and_resized(x: Tensor, rows: Tensor, target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The samples of x (R, C, *spatial), and x[rows] resized whole into the boxes `target`."""
    low = torch.zeros_like(target[0])
    high = low + torch.tensor(x.shape[2:], device=x.device)
    return x[: len(rows)], stretch(x, rows, (low, high), target)


def resizemix(
    x: Tensor,
    y: Tensor,
    scope: tuple[float, float] = (0.1, 0.8),
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = resizemix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. scope: the range in [0, 1] of tau, the side of the pasted
    image. per_sample: a tau for each sample. lam: a number or (B,) values in [0, 1], the share left of the sample
    itself, in place of the draw of tau. y, partner: see `cutmix`. ValueError for tables, integer x or arguments out of
    range.
    """
    ratio = UniformSide(*scope, power=2.0, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), ratio, PasteResized(), lam, partner, generator)


@register(
    "resizemix",
    paper="ResizeMix: Mixing Data with Preserved Object Information and True Labels, 2020, arXiv 2012.11101",
    inputs=("image",),
    search={"high": Uniform(0.3, 0.95), "probability": Choice(0.5, 1.0)},
)
class ResizeMix(Mix):
    """Paste each partner whole, shrunken, into the image and mix the labels by area.

    low, high: the scope of tau, see `resizemix`. per_sample: a tau for each sample. probability: the share of steps
    that mix.
    """

    def __init__(
        self, low: float = 0.1, high: float = 0.8, *, per_sample: bool = False, probability: float = 1.0
    ) -> None:
        ratio = UniformSide(low, high, power=2.0, per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, PasteResized(), probability=probability)
