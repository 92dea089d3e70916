"""CutMix: paste a box of a partner into each image and mix the labels by area.

    x~_i = m x_i + (1 - m) x_pi(i), m = 0 in a box of sides int(side (1 - lam)^(1/d)) about a uniform centre, clipped;
    y~_i = s y_i + (1 - s) y_pi(i), s = mean(m), lam ~ Beta(alpha, alpha)

Source: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019, arXiv 1905.04899. Cost: 1 (one copy of the batch, and the boxes). As in the reference, sides are
2 * (int(...) // 2), and one box serves the whole batch unless per_sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, blend, blend_, require_own_rows, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers
from ...core.ratio import Beta, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.tree import Tree

LARGE = 2**16
"""Numbers in an image from which on a loop over the boxes is faster than a mask over the batch, on the CPU."""


def cut_box(lam: float, size: Sequence[int], centre: Sequence[int]) -> list[slice]:
    """The clipped box around the cell `centre` of a grid `size`, of 1 - lam of its volume before clipping."""
    # The small number keeps half of 10 * sqrt(.64) at 4, although lam is a float32.
    half = [int(side * 0.5 * (1.0 - lam) ** (1.0 / len(size)) + 1e-5) for side in size]
    return [slice(max(c - h, 0), min(c + h, side)) for c, h, side in zip(centre, half, size, strict=True)]


def cut_boxes(lam: Tensor, size: Sequence[int], centre: Tensor) -> tuple[Tensor, Tensor]:
    """`cut_box` for lam (G,) and centres (G, d): first cells in the boxes and first cells behind them, (G, d) each."""
    side = torch.tensor(size, device=lam.device)
    half = (side * (0.5 * (1.0 - lam.double()) ** (1.0 / len(size))).unsqueeze(1) + 1e-5).long()
    return (centre - half).clamp_(min=0), torch.minimum(centre + half, side)


def outside(low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
    """(G, 1, *size) float masks: 0 in the boxes, 1 elsewhere."""
    along = []
    for axis, side in enumerate(size):
        cell = torch.arange(side, device=low.device)
        out = (cell < low[:, axis, None]) | (cell >= high[:, axis, None])
        along.append(out.float().view(-1, 1, *(side if a == axis else 1 for a in range(len(size)))))
    return functools.reduce(torch.maximum, along)


class CutBox(Operation):
    """Show the partner in a box that covers about the partner's share; shares follow the clipped box.

    per_sample: a box for each sample, else one for the batch, for the first sample's share. inplace: write over the
    inputs; nothing else may need them. x: (R, C, *spatial) with 1 to 3 spatial axes, images or hidden maps; ValueError
    otherwise.
    """

    def __init__(self, *, per_sample: bool = False, inplace: bool = False) -> None:
        self.per_sample, self.inplace = per_sample, inplace

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, source = spatial_size(x, recipe), context.generator
        if self.inplace:
            require_own_rows(x, recipe)
        partner, count = recipe.partner[:, 1].to(x.device), len(recipe.partner) if self.per_sample else 1
        draws = [integers(side, count, generator=source) for side in size]
        graph = x.requires_grad and torch.is_grad_enabled()
        boxes: list[Any] = []
        if x.device.type == "cpu" and not self.per_sample:  # numbers are faster than tensors of one number
            box = cut_box(float(recipe.share[0, 0]), size, [int(draw) for draw in draws])
            mask = torch.ones(1, 1, *size)
            inside: Any = (..., *box)
            mask[inside] = 0.0
            kept = float(np.float32(1.0 - math.prod(edge.stop - edge.start for edge in box) / math.prod(size)))
            share = torch.tensor([[kept, 1.0 - kept]]).expand(len(partner), 2)
            boxes = [] if graph else [inside]
        else:
            lam = recipe.lam.to(x.device)[:count]
            low, high = cut_boxes(lam, size, torch.stack(draws, dim=1).to(x.device))
            mask = outside(low, high, size)
            share = complete((1.0 - (high - low).prod(dim=1, keepdim=True) / math.prod(size)).expand(-1, 2))
            share = share.expand(len(partner), 2)
            if x.device.type == "cpu" and not graph and x[0].numel() >= LARGE:
                boxes = [(..., *map(slice, *edges)) for edges in zip(low.tolist(), high.tolist(), strict=True)]
        if boxes:
            return _copy(x, partner, boxes, self.inplace), recipe.with_share(share, mask)
        weight = mask.to(x.dtype)
        mixed = blend_(x, partner, 1 - weight) if self.inplace else blend(x, partner, weight)
        return mixed, recipe.with_share(share, mask)


def _copy(x: Tensor, partner: Tensor, boxes: list[Any], inplace: bool) -> Tensor:
    """What `blend` gives, faster on the CPU: only the boxes are gathered."""
    mixed = x if inplace else x[: partner.shape[0]].clone()
    if len(boxes) == 1:
        box = boxes[0]
        if inplace:
            mixed[box] = x[box].index_select(0, partner)
        else:
            torch.index_select(x[box], 0, partner, out=mixed[box])
        return mixed
    guests = [x[guest][box] for guest, box in zip(partner.tolist(), boxes, strict=True)]
    if inplace:  # a guest may have been written over when its turn comes
        guests = [guest.clone() for guest in guests]
    for own, guest, box in zip(mixed.unbind(), guests, boxes, strict=True):
        own[box] = guest
    return mixed


def cutmix(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Mixed:
    """Mix a batch: `mixed = cutmix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y: class ids (B,), soft or multi-label (B, C), real (B,)
    or (B, D). alpha >= 0 of Beta(alpha, alpha); 0: no mixing. per_sample: a share and a box for each sample instead of
    one for the batch. lam: a number or (B,) values in [0, 1] in place of the draw; the share really kept after clipping
    is `mixed.recipe.lam`, the mask `mixed.recipe.mask`. partner: (B,) rows in place of a random permutation. inplace:
    write over x. ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    return mix_once(
        x,
        y,
        RandomPairing(),
        Beta(alpha, per_sample=per_sample),
        CutBox(per_sample=per_sample, inplace=inplace),
        lam,
        partner,
        generator,
    )


@register(
    "cutmix",
    paper="CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, "
    "ICCV 2019, arXiv 1905.04899",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "probability": Choice(0.5, 1.0)},
)
class CutMix(Mix):
    """Paste a box of a partner into each image and mix the labels by area.

    alpha, per_sample: see `cutmix`. probability: the share of steps that mix (the paper: 1 on ImageNet, .5 on CIFAR).
    """

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False, probability: float = 1.0) -> None:
        ratio, operation = Beta(alpha, per_sample=per_sample), CutBox(per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
