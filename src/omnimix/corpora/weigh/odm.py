"""ODM: a bandit (Exp3) draws the domain whose loss is high; it changes the mixture of the run itself.

    R_i <- a R_i + (1 - a) loss_i / pi_i for the domains of the batch,   eps_t = min(1/k, sqrt(ln k / (k t)))
    pi_i <- (1 - k eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t

Source: Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", arXiv 2312.02406, 2023. Cost: 1.
`accumulate=True` is the released code: R_i adds up loss_i / (10 pi_i) instead of a moving average.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...core.checks import at_least, in_unit
from ..proxy import Rule, Setting, Step
from ..proxy.rule import Losses


def exploration(t: int, k: int) -> float:
    """eps_t: the least share of each of k domains after t steps."""
    return min(1 / k, math.sqrt(math.log(k) / (k * t))) if t and k > 1 else 1 / k


def policy(reward: Tensor, eps: float, before: float) -> Tensor:
    """(k,) float64 shares of the domains with estimated rewards (k,); eps: exploration now, before: a step ago."""
    return (1 - len(reward) * eps) * torch.softmax(before * reward.double(), dim=0) + eps


class ODM(Rule):
    """alpha: how much of the moving average of rewards stays. warmup: steps on the equal mixture first."""

    draws = "weights"

    def __init__(self, *, alpha: float = 0.9, warmup: int = 0, accumulate: bool = False) -> None:
        self.alpha, self.warmup, self.accumulate = in_unit("alpha", alpha), at_least("warmup", warmup, 0), accumulate

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        self.reward = torch.zeros_like(self.weights)

    def backward(self, step: Step) -> Losses:
        losses, tokens = step.losses(), step.tokens()
        step.backward(losses, (1 / tokens.sum()).expand(step.k))
        sums = step.by_domain(losses)
        mean = sums / tokens.clamp(min=1) / self.weights
        grown = self.reward + mean / 10 if self.accumulate else self.alpha * self.reward + (1 - self.alpha) * mean
        self.reward = torch.where(tokens > 0, grown, self.reward)
        t = step.number + 1
        if t > self.warmup:
            self.weights = policy(self.reward, exploration(t, step.k), exploration(t - 1, step.k))
        return sums, tokens

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "reward": self.reward}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.reward = state["reward"].to(self.setting.device)
