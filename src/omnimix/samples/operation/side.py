"""What learned mixers train beside the user's network: modules with an optimiser of their own, and a moving average.

    rate(t) = lr (end + (1 - end)(1 + cos(pi t / T)) / 2)
    k <- m k + (1 - m) q,   m = start in the first `hold` of the steps, then end - (end - start)(1 + cos(pi t / T)) / 2

t of T planned steps; where T is not known, rate and momentum stay at their first values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...core.side import Beside

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


def cosine(first: float, last: float, step: int, steps: int | None) -> float:
    """From `first` to `last` along half a cosine, over `steps` steps."""
    if not steps:
        return first
    return last + (first - last) * (1.0 + math.cos(math.pi * min(step / steps, 1.0))) / 2.0


def ema_momentum(step: int, steps: int | None, start: float, end: float, hold: float = 0.1) -> float:
    """The momentum of the moving average at a step."""
    return start if not steps or step < hold * steps else cosine(start, end, step, steps)


def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move the parameters of `average` towards those of `network`; buffers stay its own."""
    mine = list(average.parameters())
    theirs = [p.detach().to(k.dtype) for p, k in zip(network.parameters(), mine, strict=True)]
    get_ema_multi_avg_fn(momentum)(mine, theirs, None)  # type: ignore[no-untyped-call]


class Side(Beside):
    """Modules trained by stochastic gradient descent on what the backward pass of the user's own loop brings.

    modules: by name. lr: at first; lr_end: the part of it that is left at the end. steps: planned, or None.
    """

    def __init__(self, modules: Mapping[str, nn.Module], lr: float, lr_end: float, steps: int | None) -> None:
        super().__init__(modules, partial(torch.optim.SGD, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY))
        self.lr, self.lr_end, self.steps = lr, lr_end, steps

    def step_at(self, done: int) -> None:
        """`step` at the rate that comes after so many steps."""
        self.step(self.lr * cosine(1.0, self.lr_end, done, self.steps))
