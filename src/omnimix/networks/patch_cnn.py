"""The two-layer patch network of feature-learning theory: filters are shared over patches and owned by classes.

    logit_k(x) = sum_(r of class k) sum_p activation(<w_kr, x_p>)

activation: a smoothed ReLU (Chidambaram et al., ICML 2023, arXiv 2210.13512) or the square (Zou et al., ICML 2023,
arXiv 2303.08433). No biases; the second layer is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.checks import at_least, one_of, positive
from ..core.random import resolve


def smoothed_relu(s: Tensor, rho: float, q: float) -> Tensor:
    """0 below 0, s^q / (q rho^(q-1)) on [0, rho], s - (1 - 1/q) rho above; value and slope are continuous for q > 1."""
    low = s.clamp(0, rho) / rho
    return rho / q * low**q + torch.relu(s - rho)


class PatchCNN(nn.Module):
    """Logits (B, K) of patches x (B, P, d).

    filters: how many each class owns. activation: "smoothed-relu", with its rho (None: 1 / classes) and q > 1, or
    "quadratic". std: of the Gaussian initial weights, drawn from `generator`. `weight` is (K, filters, d).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        filters: int,
        activation: str = "smoothed-relu",
        *,
        rho: float | None = None,
        q: float = 3.0,
        std: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = at_least("classes", classes, 2), at_least("filters", filters, 1), at_least("dim", dim, 1)
        self.activation = one_of("activation", activation, ("smoothed-relu", "quadratic"))
        self.rho = positive("rho", 1 / classes if rho is None else rho)
        self.q = q
        if q <= 1:
            raise ValueError(f"q must be > 1 for a continuous slope, got {q}")
        source = resolve(generator)
        weight = torch.randn(shape, generator=source, device=source.device) * positive("std", std)
        self.weight = nn.Parameter(weight.cpu())

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.weight.shape[2]:
            raise ValueError(f"x must be patches (B, P, {self.weight.shape[2]}), got {tuple(x.shape)}")
        response = x @ self.weight.flatten(0, 1).T
        active = response**2 if self.activation == "quadratic" else smoothed_relu(response, self.rho, self.q)
        return active.sum(dim=1).view(-1, *self.weight.shape[:2]).sum(dim=2)


def alignment(weight: Tensor, features: Tensor) -> Tensor:
    """(K, L) max_r |<w_kr, v_l>|: how far class k has learned feature l, for weight (K, m, d) and features (L, d)."""
    return torch.einsum("kmd,ld->kml", weight, features).abs().amax(dim=1)
