"""Entropic optimal transport: the plan of least cost that spreads given masses, softened.

    P = argmin <P, cost> + eps sum P (log P - 1),    P 1 = a,  P^T 1 = b:    P_ij = exp((f_i + g_j - cost_ij) / eps)

Source: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013, arXiv 1306.0895. In
logarithms, so that a small eps does not underflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....core.checks import at_least, positive


def sinkhorn(
    cost: Tensor, eps: float = 0.1, iterations: int = 50, *, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """(N, n, m) plans; their columns sum to b exactly, their rows to a once converged. Gradients flow to the cost.

    cost: (N, n, m) floats. eps > 0: the temperature; the plan tends to the exact one as eps -> 0, and needs more
    iterations for it. a: (N, n), b: (N, m) masses >= 0 of equal sum; None is uniform, summing to 1. ValueError for
    arguments out of range.
    """
    positive("eps", eps)
    at_least("iterations", iterations, 1)
    kernel = cost / -eps
    log_a = kernel.new_tensor(-math.log(cost.shape[1])) if a is None else a.log()
    log_b = kernel.new_tensor(-math.log(cost.shape[2])) if b is None else b.log()
    g = torch.zeros_like(kernel[:, 0])
    for _ in range(iterations):
        f = log_a - torch.logsumexp(kernel + g.unsqueeze(1), dim=2)
        g = log_b - torch.logsumexp(kernel + f.unsqueeze(2), dim=1)
    return torch.exp(kernel + f.unsqueeze(2) + g.unsqueeze(1))
