"""SnapMix: paste a box of the partner, resized, and weigh the labels by the class activation in the boxes.

    x~_i = x_i with box B' of x_pi(i) resized into its box B;  P_i: class activation map of x_i for y_i, of sum 1;
    loss = (1 - sum_B P_i) loss(y_i) + (sum_B' P_pi(i)) loss(y_pi(i));  lam, lam' ~ Beta(alpha, alpha) for B and B'

Source: Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", AAAI 2021, arXiv
2012.04846. Cost: 1 and a forward pass. The weights need not sum to 1. Of two samples of one class the reference code
adds each weight to the other, so that their loss counts twice; `reference=True` does so, too. It takes the maps in
training mode, so that running statistics move, which they never do here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers
from ...core.ratio import Beta, Ratio
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.tree import Tree
from ..saliency import ClassActivation, as_saliency, at_size, normalised
from .cutmix import cut_boxes, outside
from .stretch import stretch


class SemanticBox(Operation):
    """Fill a box of the sample with another box of the partner; label shares are what of each one's saliency is seen.

    saliency: how to find it, or the maps of all rows. ratio: draws the shares outside the partner's box, where it is
    cut from; those of the recipe are outside the box in the sample. per_sample: two boxes for each sample, else two for
    the batch. reference: see the module. x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError for other inputs.
    Label maps move with the pixels and need no saliency.
    """

    labels_follow = False

    def __init__(
        self, saliency: Saliency | Tensor, ratio: Ratio, *, per_sample: bool = False, reference: bool = False
    ) -> None:
        self.saliency, self.ratio = as_saliency(saliency), ratio
        self.per_sample, self.reference, self.needs = per_sample, reference, self.saliency.needs

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, count = spatial_size(x, recipe), len(recipe.partner)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        lam = lam if self.per_sample else lam[:1]
        other = self.ratio(len(lam), 2, context.generator)[:, 0].to(x.device)
        here, there = (self._box(share, size, context.generator) for share in (lam, other))
        empty = ((here[1] == here[0]) | (there[1] == there[0])).any(dim=1)
        here = here[0], torch.where(empty.unsqueeze(1), *here)
        mask, cut = outside(*here, size), outside(*there, size)
        source, target = ((box[0].expand(count, -1), box[1].expand(count, -1)) for box in (there, here))
        moved = partial(own_and_box, rows=partner, source=source, target=target)
        mixed = moved(x)[1].lerp_(x[:count], mask.to(x.dtype))
        kept = (1.0 - (here[1] - here[0]).prod(dim=1) / math.prod(size)).expand(count)
        applied = recipe.with_share(torch.stack((kept, 1.0 - kept), dim=1), mask, moved)
        if context.y is not None and applied.maps(context.y):
            return mixed, applied

        maps = normalised(_from_zero(at_size(self.saliency(x, context), size)))
        own = 1.0 - (maps[:count] * (1.0 - mask)).flatten(1).sum(dim=1)
        guest = (maps[partner] * (1.0 - cut)).flatten(1).sum(dim=1) * ~empty
        if self.reference and context.y is not None:
            same = (context.y[:count] == context.y[partner]).reshape(count, -1).all(dim=1) & ~empty
            own, guest = torch.where(same, own + guest, own), torch.where(same, own + guest, guest)
        return mixed, replace(applied, label_share=torch.stack((own, guest), dim=1))

    def _box(self, lam: Tensor, size: tuple[int, ...], source: torch.Generator) -> tuple[Tensor, Tensor]:
        centre = torch.stack([integers(side, len(lam), generator=source) for side in size], dim=1)
        return cut_boxes(lam, size, centre.to(lam.device))


def own_and_box(
    x: Tensor, rows: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The samples of x (R, C, *spatial), and x[rows] with the boxes `source` resized into `target`."""
    return x[: len(rows)], stretch(x, rows, source, target, "linear" if x.is_floating_point() else "nearest")


def _from_zero(maps: Tensor) -> Tensor:
    return maps - maps.flatten(1).amin(dim=1).view(-1, *[1] * (maps.ndim - 1))


def snapmix(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    alpha: float = 5.0,
    *,
    per_sample: bool = False,
    reference: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = snapmix(x, y, class_activation(model, x, y))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. saliency: an omnimix Saliency, or maps (B, 1, *grid). y:
    class ids (B,) or multi-label (B, C). alpha >= 0 of both draws. per_sample: boxes for each sample instead of two for
    the batch. reference: see the module. lam: see `cutmix`, of the box in the sample. partner: (B,) rows. The label
    shares are `mixed.recipe.label_share`. ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    ratio = Beta(alpha, per_sample=per_sample)
    operation = SemanticBox(saliency, ratio, per_sample=per_sample, reference=reference)
    return mix_once(x, y, RandomPairing(), ratio, operation, lam, partner, generator)


@register(
    "snapmix",
    paper="SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data, AAAI 2021, arXiv 2012.04846",
    tasks=("classification", "multilabel"),
    cost=1.33,
    inputs=("image",),
    search={"alpha": Log(0.5, 16), "probability": Choice(0.5, 1.0)},
)
class SnapMix(Mix):
    """Paste a resized box of a partner into each image and weigh the labels by class activation.

    alpha, per_sample, reference: see `snapmix`. tap: the module that gives the last feature map; None finds it.
    saliency: in place of the network's class activation. probability: the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 5.0,
        *,
        tap: str | None = None,
        saliency: Saliency | None = None,
        per_sample: bool = False,
        reference: bool = False,
        probability: float = 1.0,
    ) -> None:
        ratio = Beta(alpha, per_sample=per_sample)
        found = ClassActivation(tap) if saliency is None else saliency
        operation = SemanticBox(found, ratio, per_sample=per_sample, reference=reference)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
