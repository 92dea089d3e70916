"""mixup: train on convex combinations of two samples and of their labels.

    x~_i = lam x_i + (1 - lam) x_pi(i),   y~_i = lam y_i + (1 - lam) y_pi(i),   lam ~ Beta(alpha, alpha)

Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.
Cost: 1 (one forward pass on mixed samples; the mixing reads the batch twice and writes it once, per batch or per
sample). The permutation pi may have fixed points, as in the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.objective import MixedLoss
from ...core.operation import Interpolate
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Beta
from ...core.recipe import Mixed, Target
from ...core.registry import register
from ...core.search import Log


def mixup(
    x: Any,
    y: Tensor,
    alpha: float = 1.0,
    *,
    k: int = 2,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Mixed:
    """Mix a batch: `mixed = mixup(x, y, alpha=0.2); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, ...) or a tree of them. y: class ids (B,), soft or multi-label (B, C), real (B,) or (B, D).
    alpha >= 0 of Beta(alpha, alpha); 0: no mixing. k: samples mixed into one (Dirichlet shares). per_sample: one lam a
    sample instead of one a batch. lam: a number or (B,) values in [0, 1] in place of the draw. partner: (B,) rows in
    place of a random permutation. inplace: write over x (k = 2). ValueError for integer x or arguments out of range.
    """
    operation = Interpolate(inplace=inplace)
    return mix_once(x, y, RandomPairing(k), Beta(alpha, per_sample=per_sample), operation, lam, partner, generator)


@register(
    "mixup",
    paper="mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv 1710.09412",
    search={"alpha": Log(0.1, 32)},
)
class Mixup(Mix):
    """Train on convex combinations of two samples and of their labels.

    alpha, k, per_sample: see `mixup`. target: "two-part" or "soft" loss; None takes the task's (soft for regression).
    """

    def __init__(
        self, alpha: float = 1.0, *, k: int = 2, per_sample: bool = False, target: Target | None = None
    ) -> None:
        super().__init__(RandomPairing(k), Beta(alpha, per_sample=per_sample), Interpolate(), MixedLoss(target))
