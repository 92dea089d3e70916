"""Decay toward the start: each step of an optimiser also shrinks the distance of the weights to where they began.

    w <- w - lr c (w - u)   before the step,   u: the value of w at the start (pretrained)

The plain baseline of mixout: L2-SP of Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with
Convolutional Networks", ICML 2018, arXiv:1802.01483, decoupled from the gradient as weight decay is in AdamW. Cost: 1,
and a pass over the weights; memory of the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import non_negative


class StartDecay:
    """Pulls the weights of `optimizer` to where they started; `remove` ends it.

    strength: c of the module's docstring, >= 0; lr is that of the weight's group at each step. Weights without a
    gradient are left alone, as the optimiser does, and so are those that it is given later. start: the values to pull
    to, one tensor a weight in the optimiser's order; default: the present ones. exclude: weights without pull, such as
    a new head. ValueError if a group with pulled weights also decays to 0, or for another start.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strength: float = 0.01,
        *,
        start: Sequence[Tensor] | None = None,
        exclude: Sequence[Tensor] = (),
    ) -> None:
        self.strength = non_negative("strength", strength)
        self.exclude = {id(weight) for weight in exclude}
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        for i, group in enumerate(optimizer.param_groups):
            if group.get("weight_decay", 0) and any(id(w) not in self.exclude for w in group["params"]):
                decay = group["weight_decay"]
                raise ValueError(f"group {i} of the optimizer has weight_decay={decay}; set it to 0: it pulls to 0 too")
        values = list(weights if start is None else start)
        if [v.shape for v in values] != [w.shape for w in weights]:
            raise ValueError(f"start must hold a tensor in the shape of each of the optimizer's {len(weights)} weights")
        self.start = [v.detach().clone().to(w) for v, w in zip(values, weights, strict=True)]
        self.begun = {id(w): (w, u) for w, u in zip(weights, self.start, strict=True)}
        self.handle = optimizer.register_step_pre_hook(self._pull)

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            pairs = [self.begun[id(w)] for w in group["params"] if id(w) in self.begun]
            pairs = [(w, u) for w, u in pairs if w.grad is not None and id(w) not in self.exclude]
            if pairs:
                weights, begun = (list(each) for each in zip(*pairs, strict=True))
                torch._foreach_lerp_(weights, begun, float(group["lr"]) * self.strength)

    def remove(self) -> None:
        """Leave the optimiser as it was."""
        self.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self.start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.start, state["start"], strict=True):
            mine.copy_(saved)
