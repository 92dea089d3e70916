"""GroupDRO: weigh the domains by how badly they do, so that the worst one is trained most.

    q_d <- q_d exp(eta R_d) / sum_e q_e exp(eta R_e),   loss = sum_d q_d R_d,   R_d the mean loss of domain d

Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
arXiv 1911.08731, Algorithm 1. Cost: 1. Domains that a batch lacks keep their ratios to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import positive
from ...core.method import Setup
from ...core.registry import register
from ...core.search import Log
from .base import ByDomain


def reweigh(weights: Tensor, risks: Tensor, eta: float) -> Tensor:
    """The weights (D,) after one exponentiated-gradient step on the risks (D,); they sum to 1."""
    return torch.softmax(weights.log() + eta * risks, dim=0)


@register(
    "group-dro",
    paper="Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, arXiv 1911.08731",
    level="domains",
    search={"eta": Log(1e-3, 1e-1)},
)
class GroupDRO(ByDomain):
    """Weigh the domains by how badly they do, so that the worst one is trained most.

    eta > 0: the step of the weights.
    """

    def __init__(self, eta: float = 1e-2) -> None:
        self.eta = positive("eta", eta)

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.weights = torch.full((len(self.domains),), 1.0 / len(self.domains))

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        risks, _ = self.risks(model, batch)
        self.weights = reweigh(self.weights.to(risks.device), risks.detach().float(), self.eta)
        return (self.weights.to(risks.dtype) * risks).sum()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.weights = state["weights"]
