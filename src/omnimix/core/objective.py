"""What a mixed batch is trained for: per-sample losses that read the recipe, and policies that change its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from .operation import Context
from .recipe import Recipe, Target, mix_labels, sum_of
from .task import Task


class Objective(ABC):
    """Per-sample losses of a mixed batch."""

    by_row: ClassVar[bool] = False
    """Whether the loss of a row follows from its output, the labels of its partners and its shares alone."""

    @abstractmethod
    def __call__(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        """(B,) losses, unreduced, without `recipe.loss_weight`.

        output: (B, ...). y: the targets of all rows (R, ...), guests included.
        """

    def mean(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        """The loss of the batch: the mean over samples, weighted by `recipe.loss_weight` where there is one."""
        losses = self(output, y, recipe, task)
        return (losses if recipe.loss_weight is None else losses * recipe.loss_weight).mean()


class MixedLoss(Objective):
    """sum_k label_share_k * loss(output, y_k) ("two-part"), or the loss against the mixed target ("soft").

    Equal for losses linear in the target. target: None takes the task's own: soft for regression, else two-part.
    """

    by_row = True

    def __init__(self, target: Target | None = None) -> None:
        if target not in (None, "two-part", "soft"):
            raise ValueError(f"target must be 'two-part', 'soft' or None, got {target!r}")
        self.target = target

    def __call__(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        if (self.target or task.mixed_target) == "soft" or recipe.maps(y):
            return task.losses(output, mix_labels(task.soft_target(y), recipe))
        share = recipe.label_share
        return sum_of(share[:, k] * task.losses(output, y[recipe.partner[:, k]]) for k in range(share.shape[1]))

    def mean(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        soft = (self.target or task.mixed_target) == "soft"
        if soft and recipe.loss_weight is None and type(self).__call__ is MixedLoss.__call__:
            return task.mean_loss(output, mix_labels(task.soft_target(y), recipe))
        return super().mean(output, y, recipe, task)


class LabelPolicy(ABC):
    """Sets the label shares after the operation or, where it says so, after the forward pass on the mixed inputs."""

    by_row: ClassVar[bool] = False
    """Whether it follows from the shares alone, and draws from the context's generator at most."""
    after: ClassVar[bool] = False
    """Whether it comes after the forward pass, with `context.output` and as `context.seen` what `watch` gave."""

    def watch(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Surrounds that pass."""
        return nullcontext()

    @abstractmethod
    def __call__(self, recipe: Recipe, context: Context) -> Recipe:
        """The recipe with other `label_share` or `loss_weight`."""
