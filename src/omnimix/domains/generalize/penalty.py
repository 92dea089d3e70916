"""A loss of risk and penalty whose weight jumps after some steps, as IRM and V-REx are trained."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import at_least, non_negative


class Penalty:
    """(risk + w penalty) / max(1, w): w is 1 in the first `anneal` steps, then `weight`.

    The division keeps gradients of one size when w jumps, as the authors' own code of both papers does.
    """

    def __init__(self, weight: float, anneal: int) -> None:
        self.weight, self.anneal = non_negative("weight", weight), at_least("anneal", anneal, 0)

    def __call__(self, risk: Tensor, penalty: Tensor, step: int) -> Tensor:
        weight = self.weight if step >= self.anneal else 1.0
        return (risk + weight * penalty) / max(1.0, weight)
