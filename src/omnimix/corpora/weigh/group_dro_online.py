"""Online Group DRO: domains whose held-out loss is farther from its target get more of the run that is under way.

    w <- w exp(eta gap) / sum,    gap_i = max(L_i - target_i, 0),  or  (L_i - target_i) / (first L_i - target_i)

Sources: Sagawa et al., ICLR 2020, arXiv 1911.08731 (targets 0); Xia et al., "Sheared LLaMA", ICLR 2024, arXiv
2310.06694 (dynamic batch loading: the first gap); "Velocitune" (the second: one minus how far a domain has come). Cost:
1, and a measurement of held-out losses every `every` steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.checks import at_least, in_unit, non_negative, one_of
from ..proxy import Rule, Setting, Step
from ..proxy.rule import Losses

GAPS = ("excess", "velocity")


def excess_gap(losses: Tensor, targets: Tensor) -> Tensor:
    """(k,) how far the losses are above their targets; 0 below."""
    return (losses - targets).clamp(min=0)


def velocity_gap(losses: Tensor, targets: Tensor, initial: Tensor) -> Tensor:
    """(k,) the share of the way from the initial losses to the targets that is left, in [0, 1]."""
    return ((losses - targets) / (initial - targets)).clamp(0, 1)


def update(weights: Tensor, gap: Tensor, eta: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """(k,) float64 weights after an exponentiated-gradient step on the gaps (k,), at least smoothing / k."""
    moved = torch.softmax(weights.double().log() + eta * gap.double(), dim=0)
    return (1 - smoothing) * moved + smoothing / len(moved)


class GroupDROOnline(Rule):
    """targets: domain -> the loss it should reach, as a scaling law or a trained model says; None: 0 for all. gap:
    "excess" or "velocity". start: the first mixture; None: equal. every: steps between two updates.
    """

    draws = "weights"

    def __init__(
        self,
        targets: Mapping[str, float] | None = None,
        *,
        gap: str = "excess",
        eta: float = 1.0,
        smoothing: float = 0.0,
        every: int = 10,
        start: Mapping[str, float] | None = None,
    ) -> None:
        self.targets, self.start = (None if given is None else dict(given) for given in (targets, start))
        self.gap, self.eta, self.every = one_of("gap", gap, GAPS), non_negative("eta", eta), at_least("every", every, 1)
        self.smoothing = in_unit("smoothing", smoothing)

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        for name, given in (("targets", self.targets), ("start", self.start)):
            if given is not None and set(given) != set(setting.domains):
                raise ValueError(f"{name} must name all of {', '.join(setting.domains)}, got {', '.join(given)}")

        def vector(given: Mapping[str, float]) -> Tensor:
            return self.weights.new_tensor([given[name] for name in setting.domains])

        if self.start is not None:
            self.weights = vector(self.start) / sum(self.start.values())
        self.aim = torch.zeros_like(self.weights) if self.targets is None else vector(self.targets)
        self.initial: Tensor | None = None

    def backward(self, step: Step) -> Losses:
        if step.number % self.every == 0:
            self._weigh()
        losses, tokens = step.losses(), step.tokens()
        step.backward(losses, (1 / tokens.sum()).expand(step.k))
        return step.by_domain(losses), tokens

    def _weigh(self) -> None:
        found = self.setting.held_out()
        if torch.isnan(found).any():
            lacking = [self.setting.domains[i] for i in found.isnan().nonzero().squeeze(1).tolist()]
            raise ValueError(f"no validation documents of {', '.join(lacking)}; hold out more of them")
        if self.initial is None:
            self.initial = found
            if self.gap == "velocity" and (found <= self.aim).any():
                raise ValueError("gap='velocity' needs targets below the losses at the start")
            return
        gap = excess_gap(found, self.aim) if self.gap == "excess" else velocity_gap(found, self.aim, self.initial)
        self.weights = update(self.weights, gap, self.eta, self.smoothing)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.initial = None if state["initial"] is None else state["initial"].to(self.setting.device)
