"""SAM: descend the loss at the worst weights nearby, so that training ends in flat regions.

    w <- optimiser step with the gradient at w + rho g / |g|,   g = the gradient at w over all weights

Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
2021, arXiv 2010.01412, Algorithm 1. Cost: 2. Both gradients see the same dropout; batch-norm statistics move once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import positive
from ...core.method import Method
from ...core.registry import register
from ...core.replay import Replay
from ...core.search import Choice


def climb(grads: Sequence[Tensor], rho: float) -> list[Tensor]:
    """rho g / |g| of each gradient, |g| over all of them."""
    norm = torch.stack([g.norm() for g in grads]).norm()
    return [g * (rho / (norm + 1e-12)) for g in grads]


@register(
    "sam",
    paper="Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, arXiv 2010.01412",
    cost=2.0,
    level="domains",
    search={"rho": Choice(0.01, 0.02, 0.05, 0.1)},
)
class SAM(Method):
    """Descend the loss at the worst weights nearby, so that training ends in flat regions.

    rho > 0: how far away, as a Euclidean distance in all weights.
    """

    own_step = True

    def __init__(self, rho: float = 0.05) -> None:
        self.rho = positive("rho", rho)

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        replay = Replay(model, lambda: self.loss(model, batch, **streams), self.generator)
        optimizer.zero_grad(set_to_none=True)
        loss = replay()
        backward(loss)
        weights = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in weights]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        with torch.no_grad():
            for p, move in zip(weights, climb(grads, self.rho), strict=True):
                p.add_(move)
        optimizer.zero_grad(set_to_none=True)
        backward(replay())
        with torch.no_grad():
            for p, value in zip(weights, start, strict=True):
                p.copy_(value)  # adding and subtracting would leave rounding errors behind
        if clip is not None:
            clip()
        optimizer.step()
        return loss.detach()
