"""mixup or CutMix, one of them drawn for each batch: what timm and most recipes for vision transformers train with.

Source: R. Wightman's timm, with the alphas of Touvron et al., "Training data-efficient image transformers", ICML 2021,
arXiv 2012.12877. Cost: 1. timm pairs a batch with itself reversed and smooths the labels by .1; here partners are a
random permutation, and smoothing is left to the loss.
"""

from __future__ import annotations

from ...core.checks import in_unit
from ...core.combine import Choose
from ...core.registry import register
from ...core.search import Log, Uniform
from .cutmix import CutMix
from .mixup import Mixup


@register(
    "mixup-or-cutmix",
    paper="Training data-efficient image transformers & distillation through attention, ICML 2021, arXiv 2012.12877",
    inputs=("image",),
    search={"mixup_alpha": Log(0.1, 8), "cutmix_alpha": Log(0.1, 8), "switch_prob": Uniform(0.2, 0.8)},
)
class MixupOrCutMix(Choose):
    """Each batch by mixup or by CutMix.

    mixup_alpha, cutmix_alpha: of their Betas. switch_prob: the share of batches that CutMix makes. per_sample: a share
    (and box) for each sample.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        *,
        per_sample: bool = False,
    ) -> None:
        cut = in_unit("switch_prob", switch_prob)
        methods = [Mixup(mixup_alpha, per_sample=per_sample), CutMix(cutmix_alpha, per_sample=per_sample)]
        super().__init__(methods, [1.0 - cut, cut])
