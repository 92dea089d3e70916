"""A frozen companion of the network: a copy that neither learns nor moves, whatever happens to the network."""

from __future__ import annotations

import copy

from torch import nn


def frozen(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode, none of whose parameters asks for gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)
