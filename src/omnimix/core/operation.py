"""How samples are mixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe, guest_layout, rowwise
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
        weight, count = rowwise(share[:, 0], x), len(partner)
        if partner is guest_layout(2, count, partner.device) and len(x) == 2 * count:  # no rows need gathering
            return torch.lerp(x[count:], x[:count], weight)
        return blend(x, partner[:, 1], weight)
    mixed = rowwise(share[:, 0], x) * x[partner[:, 0]]
    for k in range(1, share.shape[1]):
        mixed = torch.addcmul(mixed, rowwise(share[:, k], x), x[partner[:, k]])
    return mixed


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """weight * x_i + (1 - weight) * x_partner(i); weights 1 and 0 return own and partner's values bit for bit.

    x: (R, ...). partner: (B,) rows. weight: numbers or a mask in [0, 1], of x's type, that broadcast to (B, ...).
    """
    # The gathered rows are written over: one allocation. index_select is faster but forgets the memory format.
    guest = x.index_select(0, partner) if x.is_contiguous() else x[partner]
    return guest.lerp_(x[: len(partner)], weight)


def require_float(x: Tensor) -> None:
    """ValueError for integer tensors: bytes of images are mixed after conversion, token ids at a hidden tap."""
    if not x.is_floating_point():
        raise ValueError(
            f"inputs must be floating point to be mixed, got {x.dtype}; convert and normalise images first, "
            "mix token ids at the embedding (a hidden tap)"
        )


def spatial_size(x: Tree, recipe: Recipe) -> tuple[int, ...]:
    """The sizes of the last 1 to 3 axes of x (R, C, *spatial), for operations that mix two samples by a mask.

    ValueError for trees, integers, tables (R, F) and recipes of more than two samples.
    """
    if not isinstance(x, Tensor) or not 3 <= x.ndim <= 5:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            "a masking mix needs one tensor (B, channels, *spatial) with 1 to 3 spatial axes, such as images "
            f"(B, C, H, W), got {got}; mix tables and trees with mixup"
        )
    require_float(x)
    if recipe.share.shape[1] != 2:
        raise ValueError(f"a masking mix joins two samples, got k = {recipe.share.shape[1]}; use mixup for more")
    return tuple(x.shape[2:])
