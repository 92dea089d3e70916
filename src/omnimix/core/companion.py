"""Companions of the network: a copy that neither learns nor moves, and inputs as companions take them."""

from __future__ import annotations

import copy

from torch import nn

from .tree import Tree, tree_map


def frozen(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode, none of whose parameters asks for gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def fitting(model: nn.Module, x: Tree) -> Tree:
    """The inputs x with floating-point tensors of the type and on the device of the weights of `model`.

    Wrappers for 16 or 64 bits do so for the network that they hold, not for companions of it.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return x
    return tree_map(lambda t: t.to(weight.device, weight.dtype if t.is_floating_point() else None), x)
