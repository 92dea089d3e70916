"""Gradient reversal: the identity with its gradient turned round; what precedes is trained against what follows.

Source: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, arXiv 1409.7495.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse(x: Tensor, scale: float = 1.0) -> Tensor:
    """x, whose gradient is -scale times the one that arrives; gradients of gradients pass too."""
    return cast(Tensor, _Reverse.apply(x, scale))  # type: ignore[no-untyped-call]
