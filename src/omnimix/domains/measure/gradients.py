"""How far the gradients of the domains agree, which Fish raises and plain training leaves alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def domain_gradients(risks: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """(D, P) the gradients of the risks (D,) by all parameters that ask for them; `.grad` is left alone."""
    wanted = [p for p in parameters if p.requires_grad]
    rows = [torch.autograd.grad(risk, wanted, retain_graph=True, materialize_grads=True) for risk in risks]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def mean_pairwise_cosine(gradients: Tensor) -> float:
    """The mean cosine of two different rows of (D, P), D >= 2, in [-1, 1]; a row of zeros has cosine 0 to all."""
    count = len(gradients)
    if count < 2:
        raise ValueError(f"a mean over pairs needs two gradients or more, got {count}")
    unit = F.normalize(gradients.double(), dim=1)
    total = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(total / (count * (count - 1)))
