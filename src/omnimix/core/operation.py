"""How samples are mixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .recipe import Recipe, rowwise
from .tree import Tree, tree_map

if TYPE_CHECKING:
    from .split import Split
    from .task import Task


@dataclass(frozen=True)
class Context:
    """What an operation may ask for beside the batch.

    y: the targets of all rows. network, task: what is being trained, where a method mixes the inputs of its batch and
    its operation `needs` them. extra: scalars that join the loss of the step. output, seen: of the forward pass on the
    mixed inputs, for label policies that come `after` it: what it gave, and what they watched.
    """

    generator: torch.Generator
    y: Tensor | None = None
    network: Split | None = None
    task: Task | None = None
    extra: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None
    seen: Any = None

    def trained(self, who: str) -> tuple[Split, Task, Tensor]:
        """(network, task, y) for `who` needs them; ValueError where one is not known."""
        if self.network is None or self.task is None or self.y is None:
            raise ValueError(
                f"{who} looks at the inputs through the network in training: use it in a method that has been set up, "
                "Mix(operation=...).setup(model, task), which mixes at 'input'; functions take the map itself, such as "
                "saliencymix(x, y, saliency=input_gradient(model, x, y))"
            )
        return self.network, self.task, self.y


class Operation(ABC):
    """Mixes the inputs of a batch, or its activations at a tap, as the recipe says."""

    by_row: ClassVar[bool] = False
    """Whether it draws nothing, and a mixed row follows from its partners and its shares alone."""
    labels_follow: ClassVar[bool] = True
    """Whether its label shares are what the samples contribute to the inputs."""
    needs: tuple[str, ...] = ()
    """("network",) where it looks at the inputs through the network in training."""

    @abstractmethod
    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        """x (R, ...) to the mixed (B, ...) and the recipe really applied (a clipped box changes the share)."""


class Saliency(ABC):
    """Where the content of an input lies; operations take one as an argument and pass on what it `needs`."""

    needs: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Maps (R, 1, *grid) >= 0 of the inputs x (R, C, *spatial), without gradient; the grid may be coarser."""


class Interpolate(Operation):
    """x~_i = sum_k share_ik x_partner(i,k): the convex combination of mixup, for tensors of any shape and trees.

    inplace: write over the inputs, for two samples of one batch; nothing else may need them.
    """

    by_row = True
    inplace: bool = False  # of the class, for subclasses with a constructor of their own

    def __init__(self, *, inplace: bool = False) -> None:
        self.inplace = inplace

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        return tree_map(lambda t: interpolate(t, recipe, self.inplace), x), recipe


def interpolate(x: Tensor, recipe: Recipe, inplace: bool = False) -> Tensor:
    """sum_k share[:, k] * x[partner[:, k]] for a floating-point x (R, ...); share 1 returns the rows bit for bit."""
    require_float(x)
    share, partner = recipe.share.to(x.device, x.dtype), recipe.partner.to(x.device)
    if inplace:
        require_own_rows(x, recipe)
        return blend_(x, partner[:, 1], rowwise(share[:, 1], x))
    if share.shape[1] == 2:
        weight = rowwise(share[:, 0], x)
        if recipe.halves(x):  # no rows need gathering
            own, guest = x.view(2, -1, *x.shape[1:]).unbind()
            return torch.lerp(guest, own, weight)
        return blend(x, partner[:, 1], weight)
    mixed = rowwise(share[:, 0], x) * x[partner[:, 0]]
    for k in range(1, share.shape[1]):
        mixed = torch.addcmul(mixed, rowwise(share[:, k], x), x[partner[:, k]])
    return mixed


def gather(x: Tensor, partner: Tensor) -> Tensor:
    """The rows `partner` of x; index_select is faster than indexing but forgets the memory format."""
    return x.index_select(0, partner) if x.is_contiguous() else x[partner]


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """weight * x_i + (1 - weight) * x_partner(i); weights 1 and 0 return own and partner's values bit for bit.

    x: (R, ...). partner: (B,) rows. weight: numbers or a mask in [0, 1], of x's type, that broadcast to (B, ...).
    """
    guest = gather(x, partner)  # written over: one allocation
    return guest.lerp_(x if x.shape == guest.shape else x[: partner.shape[0]], weight)


def blend_(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """`blend` in place, where `weight` is that of the partner."""
    return x.lerp_(gather(x, partner), weight)


def require_own_rows(x: Tensor, recipe: Recipe) -> None:
    """ValueError where x cannot be written over: guests in the batch, more than two samples, gradients."""
    if recipe.share.shape[1] != 2 or x.shape[0] != recipe.partner.shape[0] or x.requires_grad:
        raise ValueError(
            "inplace=True mixes two samples of one batch whose inputs need no gradient; got "
            f"k = {recipe.share.shape[1]}, {x.shape[0]} rows for {recipe.partner.shape[0]} samples, "
            f"requires_grad = {x.requires_grad}"
        )


def require_float(x: Tensor) -> None:
    """ValueError for integer tensors: bytes of images are mixed after conversion, token ids at a hidden tap."""
    if not x.is_floating_point():
        raise ValueError(
            f"inputs must be floating point to be mixed, got {x.dtype}; convert and normalise images first, "
            "mix token ids at the embedding (a hidden tap)"
        )


def spatial_size(x: Tree, recipe: Recipe, two: bool = True) -> tuple[int, ...]:
    """The sizes of the last 1 to 3 axes of x (R, C, *spatial), for operations that mix samples by masks.

    ValueError for trees, integers, tables (R, F), and, if `two`, recipes of more than two samples.
    """
    if not isinstance(x, Tensor) or not 3 <= x.ndim <= 5:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            "a masking mix needs one tensor (B, channels, *spatial) with 1 to 3 spatial axes, such as images "
            f"(B, C, H, W), got {got}; mix tables and trees with mixup"
        )
    require_float(x)
    if two and recipe.share.shape[1] != 2:
        raise ValueError(f"a masking mix joins two samples, got k = {recipe.share.shape[1]}; use mixup for more")
    return tuple(x.shape[2:])
