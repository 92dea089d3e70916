"""How samples are mixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe, rowwise
from .tree import Tree, tree_map


@dataclass(frozen=True)
class Context:
    """What an operation may ask for beside the batch."""

    generator: torch.Generator


class Operation(ABC):
    """Mixes the inputs of a batch, or its activations at a tap, as the recipe says."""

    @abstractmethod
    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        """x (R, ...) to the mixed (B, ...) and the recipe really applied (a clipped box changes the share)."""


class Interpolate(Operation):
    """x~_i = sum_k share_ik x_partner(i,k): the convex combination of mixup, for tensors of any shape and trees."""

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        return tree_map(lambda t: interpolate(t, recipe), x), recipe


def interpolate(x: Tensor, recipe: Recipe) -> Tensor:
    """sum_k share[:, k] * x[partner[:, k]] for a floating-point x (R, ...); share 1 returns the rows bit for bit."""
    require_float(x)
    share, partner = recipe.share.to(x.device, x.dtype), recipe.partner.to(x.device)
    if share.shape[1] == 2:
        own = x[: len(partner)]
        return torch.lerp(x[partner[:, 1]], own, rowwise(share[:, 0], own))
    mixed = rowwise(share[:, 0], x) * x[partner[:, 0]]
    for k in range(1, share.shape[1]):
        mixed = torch.addcmul(mixed, rowwise(share[:, k], x), x[partner[:, k]])
    return mixed


def require_float(x: Tensor) -> None:
    """ValueError for integer tensors: bytes of images are mixed after conversion, token ids at a hidden tap."""
    if not x.is_floating_point():
        raise ValueError(
            f"inputs must be floating point to be mixed, got {x.dtype}; convert and normalise images first, "
            "mix token ids at the embedding (a hidden tap)"
        )
