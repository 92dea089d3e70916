"""RegMixup: the plain loss on clean samples plus the mixup loss on strong mixes, in one forward pass.

    loss = (loss(f(x), y) + eta * mixed loss(f(x~))) / (1 + eta),   lam ~ Beta(alpha, alpha), alpha large

Source: Pinto, Yang, Lim, Torr, Dokania, "RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out
Distribution Robustness", NeurIPS 2022, arXiv 2206.14502. Cost: 2. The default is the reference code's mean over all 2B
rows; reduction="sum" is the paper's sum, twice that at eta = 1, which with weight decay is another learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import non_negative, one_of
from ...core.method import Mix
from ...core.operation import Interpolate, Operation
from ...core.pairing import Pairing, RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Beta
from ...core.recipe import Mixed, Recipe, Views
from ...core.registry import register
from ...core.search import Log
from ...core.tree import Tree, tensors, tree_map

Reduction: TypeAlias = Literal["mean2n", "sum"]


def regmixup(
    x: Tree,
    y: Tensor,
    alpha: float = 20.0,
    *,
    operation: Operation | None = None,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """2B rows, the clean ones and then the mixed ones; `mixed.loss(criterion, model(mixed.x))` is their mean loss.

    x: float tensor (B, ...) or a tree of them. y: class ids (B,), soft or multi-label (B, C), real (B,) or (B, D).
    alpha >= 0 of Beta(alpha, alpha), large to mix strongly; 0: plain training. operation: None interpolates. lam: a
    number or (B,) values in [0, 1] in place of the draw. partner: (B,) rows in place of a random permutation.
    ValueError for arguments out of range.
    """
    mixed = mix_once(x, y, RandomPairing(), Beta(alpha), operation or Interpolate(), lam, partner, generator)
    done = mixed.recipe
    own = torch.zeros_like(done.share)
    own[:, 0] = 1.0
    mask = done.mask
    if mask is not None:
        mask = mask.expand(len(own), *mask.shape[1:])
        mask = torch.cat((torch.ones_like(mask), mask))
    recipe = Recipe(
        torch.cat((done.partner[:, :1].expand_as(done.partner), done.partner)),
        torch.cat((own, done.share)),
        torch.cat((own, done.label_share)),
        mask=mask,
        moved=None if done.moved is None else partial(_moved_below, moved=done.moved, count=len(own)),
    )
    return Mixed(_below(x, mixed.x), y, recipe)


def _moved_below(y: Tensor, moved: Callable[[Tensor], Views], count: int) -> Views:
    views = moved(y)
    if isinstance(views[0], tuple):
        raise ValueError("regmixup keeps label maps for operations that join pairs by a mask")
    return tuple(torch.cat((y[:count], view)) for view in views if isinstance(view, Tensor))


@register(
    "regmixup",
    paper="RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out Distribution Robustness, "
    "NeurIPS 2022, arXiv 2206.14502",
    cost=2.0,
    search={"alpha": Log(0.3, 32), "eta": Log(0.1, 3)},
)
class RegMixup(Mix):
    """Train on clean samples and, as a regulariser, on strong mixes of them.

    alpha: Beta(alpha, alpha), 20 for CIFAR-10 and 10 for CIFAR-100 in the paper; 0 mixes nothing: the loss is the
    plain one with "mean2n", 1 + eta times the plain one with "sum". eta: weight of the mixed loss. reduction: "mean2n"
    divides by 1 + eta (the reference, the default), "sum" does not (the paper). pairing, operation: None takes random
    partners and interpolation.
    """

    def __init__(
        self,
        alpha: float = 20.0,
        eta: float = 1.0,
        reduction: Reduction = "mean2n",
        *,
        pairing: Pairing | None = None,
        operation: Operation | None = None,
    ) -> None:
        super().__init__(pairing, Beta(alpha), operation)
        self.eta = non_negative("eta", eta)
        self.reduction = one_of("reduction", reduction, ("mean2n", "sum"))

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        count, mixed = len(batch), self.mix(batch, recipe)
        output = model(_below(batch.alone.x, mixed.x))  # one pass: batch norm sees clean and mixed rows together
        clean = self.task.losses(output[:count], batch.y[:count]).mean()
        losses = self.objective(output[count:], mixed.y, mixed.recipe, self.task)
        if mixed.recipe.loss_weight is not None:
            losses = losses * mixed.recipe.loss_weight
        total = clean + self.eta * losses.mean()
        total = total / (1 + self.eta) if self.reduction == "mean2n" else total
        while self._extra:
            total = total + self._extra.pop()
        return total


def _below(first: Tree, second: Tree) -> Tree:
    """The rows of `second` behind those of `first`, for trees of the same structure."""
    above = tensors(first)
    return tree_map(lambda t: torch.cat((next(above), t)), second)
