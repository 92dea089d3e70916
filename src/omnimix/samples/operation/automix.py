"""AutoMix: masks from the attention between the maps of two images, learned so that a classifier finds both labels.

    s = softmax(W z_a (W z_b)^T / sqrt(C / 2)) v(z_b),   m_b = sigmoid(up(s)), m_a = 1 - m_b
    loss = CE(one(q(x)), y) + mixed CE(mix(q(x~_b))) + mixed CE(mix_k(k(x~_m))) + w max(0, |1 - mean(m_b) - lam| - .1)

Source: Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
arXiv 2103.13027. Cost: 3. The labels follow lam; the masks' mean is held near it over the batch only. Predictions are
those of the head of clean images, where the published numbers are the best of four heads on the test set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.checks import in_unit, non_negative
from ...core.pairing import RandomPairing
from ...core.ratio import Beta
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Log
from ...core.side import linear
from ..pairing.derangement import Derangement
from .learned import LearnedMix, attend, cells
from .side import cosine

TOLERANCE = 0.1
"""How far the mean of the masks may be from lam at no cost."""


class MixBlock(nn.Module):
    """Where a partner shows: maps z (R, channels, *grid) and a recipe of two to logits (B, 2, n), those of a 0.

    ratio_channel: whether the shares join the maps as a channel. Initial weights are N(0, .01): masks begin near .5.
    """

    def __init__(self, channels: int, generator: torch.Generator, ratio_channel: bool = False) -> None:
        super().__init__()
        inputs, self.ratio_channel = channels + ratio_channel, ratio_channel
        self.project = linear(inputs, max(channels // 2, 1), 0.01, generator)
        self.value = linear(inputs, 1, 0.01, generator)

    def forward(self, z: Tensor, recipe: Recipe) -> Tensor:
        both = cells(z, recipe, self.ratio_channel)
        query, key = self.project(both).unbind(1)
        guest = attend(query, key, self.value(both[:, 1])).squeeze(2)
        return torch.stack((torch.zeros_like(guest), guest), dim=1)


def area_loss(masks: Tensor, share: Tensor) -> Tensor:
    """How much further than `TOLERANCE` the mean of masks (B, 2, *spatial) is from that of share (B, 2)."""
    return ((masks[:, 0].mean() - share[:, 0].mean()).abs() - TOLERANCE).clamp(min=0)


@register(
    "automix",
    paper="AutoMix: Unveiling the Power of Mixup for Stronger Classifiers, ECCV 2022, arXiv 2103.13027",
    tasks=("classification", "multilabel"),
    cost=3.0,
    inputs=("image",),
    search={"alpha": Log(0.2, 8), "mask_weight": Log(0.01, 1)},
)
class AutoMix(LearnedMix):
    """Learn masks along with the network, which a moving average of it judges.

    alpha: Beta(alpha, alpha). mask_weight: w; mask_end in [0, 1]: the part of it that is left at the end of a cosine
    (the paper: 0 but on CIFAR). ratio_channel: see `MixBlock` (the paper: for large images). derange: whether nobody is
    mixed with itself (the paper: on fine-grained data). margin, momentum, hold, tap, lr, lr_end: see `LearnedMix` (the
    paper's for CIFAR; ImageNet: momentum .99999, lr_end .01).
    """

    smooth = False

    def __init__(
        self,
        alpha: float = 2.0,
        mask_weight: float = 0.1,
        tap: str | None = None,
        *,
        mask_end: float = 1.0,
        ratio_channel: bool = False,
        derange: bool = False,
        margin: float = 0.08,
        momentum: float = 0.999999,
        hold: float = 0.1,
        lr: float = 0.1,
        lr_end: float = 0.5,
    ) -> None:
        pairing = Derangement() if derange else RandomPairing()
        super().__init__(pairing, Beta(alpha), margin, momentum, hold, tap, lr, lr_end)
        self.mask_weight, self.mask_end = non_negative("mask_weight", mask_weight), in_unit("mask_end", mask_end)
        self.ratio_channel = ratio_channel

    def make_block(self, channels: int) -> nn.Module:
        return MixBlock(channels, self.generator, self.ratio_channel)

    def judge(self, output: Tensor, y: Tensor, recipe: Recipe, masks: Tensor, clean: Tensor) -> Tensor:
        loss = self.objective.mean(output, y, recipe, self.task)
        weight = self.mask_weight * cosine(1.0, self.mask_end, self.steps_done, self._given().steps)
        return loss + weight * area_loss(masks, recipe.share)
