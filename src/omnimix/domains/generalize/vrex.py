"""V-REx: make the risks of the domains equal by penalising their variance.

    loss = mean_d R_d + w mean_d (R_d - mean_e R_e)^2

Source: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation", ICML 2021, arXiv 2003.00688,
equation 8 (with mean in place of sum). Cost: 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...core.batch import Batch
from ...core.registry import register
from ...core.search import Choice, Log
from .base import ByDomain, over_held
from .penalty import Penalty


@register(
    "vrex",
    paper="Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021, arXiv 2003.00688",
    level="domains",
    search={"weight": Log(1e-1, 1e5), "anneal": Choice(0, 100, 500)},
)
class VREx(ByDomain):
    """Make the risks of the domains equal by penalising their variance.

    weight >= 0 of the variance after the first `anneal` steps; before them it is 1.
    """

    def __init__(self, weight: float = 10.0, *, anneal: int = 500) -> None:
        self.penalty = Penalty(weight, anneal)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        risks, there = self.risks(model, batch)
        mean = over_held(risks, there)
        return self.penalty(mean, over_held((risks - mean).square(), there), self.steps_done)
