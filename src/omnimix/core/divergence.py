"""Divergences between probability vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """(...) the Jensen-Shannon divergence in nats of probabilities p and q (..., C), broadcast.

    0 for equal ones, log 2 for those that share no outcome.
    """
    m = (p + q) / 2
    return ((torch.xlogy(p, p) + torch.xlogy(q, q)) / 2 - torch.xlogy(m, m)).sum(dim=-1)
