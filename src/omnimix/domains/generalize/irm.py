"""IRM: learn features for which one classifier is optimal in every domain at once.

    loss = mean_d R_d + w mean_d (dR_d / ds at s = 1)^2,   R_d(s): the risk of domain d with outputs multiplied by s

The square is estimated without bias as the product of the gradients on two halves of the domain's samples. Source:
Arjovsky, Bottou, Gulrajani, Lopez-Paz, "Invariant Risk Minimization", 2019, arXiv 1907.02893, IRMv1 and appendix D.
Cost: 1 (the penalty needs second derivatives of the loss by the outputs only).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.task import Task
from .base import ByDomain, held, over_held
from .penalty import Penalty


def irm_penalty(output: Tensor, y: Tensor, share: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """(losses (B,), penalty of each domain (D,)); share: (D, B), see `ByDomain.shares`.

    Samples of a domain go to its two halves in turn; a domain of one sample or none has no penalty.
    """
    scale = torch.ones(len(output), device=output.device, dtype=output.dtype, requires_grad=True)
    with torch.enable_grad():
        losses = task.losses(output * scale.view(-1, *[1] * (output.ndim - 1)), y)
        (slope,) = torch.autograd.grad(losses.sum(), scale, create_graph=True)
    member = (share > 0).to(slope.dtype)
    turn = (member.cumsum(dim=1) - 1) % 2
    first, second = member * (turn == 0), member * (turn == 1)
    halves = [(half @ slope) / half.sum(dim=1).clamp(min=1) for half in (first, second)]
    return losses, halves[0] * halves[1]


@register(
    "irm",
    paper="Invariant Risk Minimization, 2019, arXiv 1907.02893",
    level="domains",
    search={"weight": Log(1e-1, 1e5), "anneal": Choice(0, 100, 500)},
)
class IRM(ByDomain):
    """Learn features for which one classifier is optimal in every domain at once.

    weight >= 0 of the penalty after the first `anneal` steps; before them it is 1.
    """

    def __init__(self, weight: float = 100.0, *, anneal: int = 500) -> None:
        self.penalty = Penalty(weight, anneal)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        share = self.shares(batch)
        losses, penalties = irm_penalty(model(batch.x), batch.y, share, self.task)
        there = held(share)
        risk = over_held(share.to(losses.dtype) @ losses, there)
        return self.penalty(risk, over_held(penalties, there), self.steps_done)
