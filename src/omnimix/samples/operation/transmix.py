"""TransMix: CutMix whose labels follow the attention of a vision transformer to the two parts.

    x~_i: of CutMix, with label share s_i by area;   own_i: what of the attention to x~_i is on x_i's part
    y~_i = r_i y_i + (1 - r_i) y_pi(i),   r_i = (s_i + own_i) / 2

Source: Chen, Sun, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers", CVPR 2022, arXiv
2111.09833. Cost: 1: the attention is that of the training pass on the mixed image, of the class token in the last
layer, mean over heads, without gradient. The reference pairs a batch with itself reversed and mixes every other batch
by mixup: `Choose([Mixup(0.8), TransMix()])`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...core.checks import in_unit
from ...core.method import Mix
from ...core.pairing import RandomPairing
from ...core.ratio import Beta
from ...core.recipe import Mixed
from ...core.registry import register
from ...core.search import Choice, Log, Uniform
from ..label.attention import AttentionLabels, attention_share
from .cutmix import CutBox


def transmix(mixed: Mixed, attention: Tensor, weight: float | Tensor = 0.5) -> Mixed:
    """The mixed batch with label shares that follow the attention to its patches, (B, 1, *grid).

    `mixed = cutmix(x, y)`; `with watch_attention(model) as seen: output = model(mixed.x)`; then
    `transmix(mixed, seen.maps(len(x), x.shape[2:])).loss(F.cross_entropy, output)`. weight: of the attention beside the
    area, a number or (B,) in [0, 1]. ValueError for batches that were not mixed by a mask.
    """
    recipe = mixed.recipe
    if recipe.mask is None or recipe.share.shape[1] != 2:
        raise ValueError("transmix needs a batch of pairs mixed by a mask, such as that of cutmix")
    area, own = recipe.label_share[:, 0], attention_share(attention, recipe.mask)
    weight = weight if isinstance(weight, Tensor) else torch.full_like(area, in_unit("weight", weight))
    own = torch.lerp(area, own.to(area.dtype), weight.to(area.dtype))
    return replace(mixed, recipe=replace(recipe, label_share=torch.stack((own, 1.0 - own), dim=1)))


@register(
    "transmix",
    paper="TransMix: Attend to Mix for Vision Transformers, CVPR 2022, arXiv 2111.09833",
    inputs=("image",),
    network="attention",
    search={"alpha": Log(0.1, 8), "weight": Uniform(0.0, 1.0), "probability": Choice(0.5, 1.0)},
)
class TransMix(Mix):
    """Paste a box of a partner into each image and mix the labels by a vision transformer's attention.

    alpha, per_sample: see `cutmix`. weight in [0, 1]: of the attention beside the area (the paper: .5). block: the name
    of a module, whose last attention is taken; None takes the network's last. probability: the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        weight: float = 0.5,
        *,
        block: str | None = None,
        per_sample: bool = False,
        probability: float = 1.0,
    ) -> None:
        ratio, operation = Beta(alpha, per_sample=per_sample), CutBox(per_sample=per_sample)
        labels = AttentionLabels(weight, block)
        super().__init__(RandomPairing(), ratio, operation, labels=labels, probability=probability)
