"""SaliencyMix: CutMix whose box lies about the most salient cell of the image that it is cut from.

    x~_i = m x_i + (1 - m) x_pi(i), m = 0 in a clipped box of 1 - lam of the volume about argmax s(x_pi(i));
    y~_i = mean(m) y_i + (1 - mean(m)) y_pi(i), lam ~ Beta(alpha, alpha)

Source: Uddin, Monira, Shin, Chung, Bae, "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
Regularization", ICLR 2021, arXiv 2006.01791. Cost: 1 and the saliency (centre-surround by default: no network). The
reference code computes one map, of the partner of the first sample, and cuts its box from the whole batch:
`reference=True`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Beta
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.tree import Tree
from ..saliency import CenterSurround, as_saliency, at_size
from .cutmix import cut_boxes, outside


def peaks(maps: Tensor) -> Tensor:
    """(R, d) the most salient cell of each map (R, 1, *spatial); the first of equals."""
    flat, size = maps.flatten(1).argmax(dim=1), maps.shape[2:]
    places = []
    for side in reversed(size):
        places.append(flat % side)
        flat = flat // side
    return torch.stack(places[::-1], dim=1)


class SalientBox(Operation):
    """Show the partner in a box about its most salient cell that covers about its share; shares follow the clipped box.

    saliency: how to find it, or the maps of all rows; None is `CenterSurround()`. one_box: a single box for the batch,
    from the partner and the share of the first sample. x: (R, C, *spatial); ValueError for other inputs.
    """

    def __init__(self, saliency: Saliency | Tensor | None = None, *, one_box: bool = False) -> None:
        self.saliency = CenterSurround() if saliency is None else as_saliency(saliency)
        self.one_box, self.needs = one_box, self.saliency.needs

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        source = partner[:1] if self.one_box else partner
        centre = peaks(at_size(self.saliency(x, context), size))[source]
        low, high = cut_boxes(lam[: len(source)], size, centre)
        mask = outside(low, high, size)
        kept = 1.0 - (high - low).prod(dim=1) / math.prod(size)
        share = torch.stack((kept, 1.0 - kept), dim=1).expand(len(partner), 2)
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(share, mask)


def saliencymix(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    *,
    saliency: Saliency | Tensor | None = None,
    per_sample: bool = False,
    reference: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = saliencymix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. alpha, y, lam, partner: see `cutmix`. saliency: an
    omnimix Saliency that needs no network, or maps (B, 1, *grid); None is centre-surround. per_sample: a share for each
    sample; each has its own box in any case, unless reference. ValueError for tables, integer x or arguments out of
    range.
    """
    ratio, operation = Beta(alpha, per_sample=per_sample), SalientBox(saliency, one_box=reference)
    return mix_once(x, y, RandomPairing(), ratio, operation, lam, partner, generator)


@register(
    "saliencymix",
    paper="SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization, "
    "ICLR 2021, arXiv 2006.01791",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "probability": Choice(0.5, 1.0)},
)
class SaliencyMix(Mix):
    """Paste a box about the most salient place of a partner into each image and mix the labels by area.

    alpha, saliency, per_sample, reference: see `saliencymix`; here the saliency may need the network. probability: the
    share of steps that mix (the paper: 1 on ImageNet, .5 on CIFAR).
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        saliency: Saliency | None = None,
        per_sample: bool = False,
        reference: bool = False,
        probability: float = 1.0,
    ) -> None:
        ratio, operation = Beta(alpha, per_sample=per_sample), SalientBox(saliency, one_box=reference)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
