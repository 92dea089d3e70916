"""Label shares decoupled from input shares: the picture is mixed by lam, the label by g(lam).

    x~ = lam x_i + (1 - lam) x_j,   y~ = g(lam) y_i + (1 - g(lam)) y_j,   g(lam) >= 1/2 where lam >= 1/2

Source: Zou, Cao, Li, Gu, "The Benefits of Mixup for Feature Learning", ICML 2023, arXiv 2303.08433. Cost: none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...core.checks import in_unit
from ...core.objective import LabelPolicy
from ...core.operation import Context
from ...core.ratio import Ratio
from ...core.recipe import Recipe

LabelShare: TypeAlias = Literal["same"] | float | Callable[[Tensor], Tensor] | Ratio
"""g: "same" (lam itself), a constant, a function of the (B,) input shares, or a ratio drawn independently of them."""


class LabelRatio(LabelPolicy):
    """Set the label share of the sample itself to g(lam), and its partner's to 1 - g(lam).

    ratio: see `LabelShare`. same_side: reflect g(lam) at 1/2 where it would contradict the picture, that is, give the
    larger label share to the sample with the larger input share (lam = 1/2 counts for the sample itself); False takes
    g(lam) as it is. For pairs only. ValueError for constants outside [0, 1], for functions that leave it, and for
    mixes of more than two.
    """

    by_row = True

    def __init__(self, ratio: LabelShare = "same", *, same_side: bool = True) -> None:
        self.ratio, self.same_side = _checked(ratio), same_side

    def __call__(self, recipe: Recipe, context: Context) -> Recipe:
        if self.ratio == "same":
            return recipe
        if recipe.share.shape[1] != 2:
            raise ValueError(f"label_ratio is defined for pairs, this recipe mixes {recipe.share.shape[1]} samples")
        lam = recipe.lam
        own = self._own(lam, context)
        if self.same_side:
            own = torch.where((own >= 0.5) == (lam >= 0.5), own, 1 - own)
        return replace(recipe, label_share=torch.stack((own, 1 - own), dim=1))

    def _own(self, lam: Tensor, context: Context) -> Tensor:
        if isinstance(self.ratio, Ratio):
            return self.ratio(len(lam), 2, context.generator)[:, 0].to(lam.device, lam.dtype)
        if callable(self.ratio):
            return self.ratio(lam)
        return torch.full_like(lam, float(self.ratio))


def _checked(ratio: LabelShare) -> LabelShare:
    if ratio == "same" or isinstance(ratio, Ratio):
        return ratio
    if callable(ratio):
        grid = torch.linspace(0, 1, 11)
        found = ratio(grid)
        if not isinstance(found, Tensor) or found.shape != grid.shape or not bool(((found >= 0) & (found <= 1)).all()):
            raise ValueError(f"label_ratio must map a tensor of shares to shares in [0, 1], elementwise; got {found!r}")
        return ratio
    if isinstance(ratio, str):
        raise ValueError(f"label_ratio must be 'same', a number in [0, 1], a function or a Ratio, got {ratio!r}")
    return in_unit("label_ratio", ratio)
