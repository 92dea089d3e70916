"""What the targets mean: losses per sample, soft targets and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import at_least
from .recipe import Target, one_hot


class Task(ABC):
    """The meaning of `y` and of the model's output (B, outputs, ...)."""

    name: ClassVar[str]
    mixed_target: ClassVar[Target] = "two-part"
    """How a mixed loss is formed unless the user says otherwise."""

    def __init__(self, outputs: int) -> None:
        self.outputs = at_least("outputs", outputs, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.outputs})"

    @abstractmethod
    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """(B,) losses of the outputs against hard or soft targets."""

    def mean_loss(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean of `losses`; a task may take it in one operation."""
        return self.losses(output, y).mean()

    @abstractmethod
    def soft_target(self, y: Tensor) -> Tensor:
        """Targets that can be averaged: (R, outputs, ...) floats."""

    @abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """Probabilities, or real values, of the shape of `output`."""


def _mean(losses: Tensor) -> Tensor:
    if losses.ndim > 1:
        return losses.view(-1) if losses.numel() == len(losses) else losses.flatten(1).mean(dim=1)
    return losses


class Classification(Task):
    """One of `outputs` classes; y: ids (R,), soft (R, C), or dense ids (R, H, W) with logits (R, C, H, W)."""

    name = "classification"

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        return _mean(F.cross_entropy(output, y if y.is_floating_point() else y.long(), reduction="none"))

    def soft_target(self, y: Tensor) -> Tensor:
        return y if y.is_floating_point() else one_hot(y, self.outputs)

    def predict(self, output: Tensor) -> Tensor:
        return output.softmax(dim=1)


class MultiLabel(Task):
    """Any of `outputs` labels; y: multi-hot or soft (R, C); binary cross-entropy, mean over labels."""

    name = "multilabel"

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        return _mean(F.binary_cross_entropy_with_logits(output, y.to(output.dtype), reduction="none"))

    def soft_target(self, y: Tensor) -> Tensor:
        return y.to(torch.get_default_dtype())

    def predict(self, output: Tensor) -> Tensor:
        return output.sigmoid()


class Regression(Task):
    """`outputs` real values; y: (R, D) or, with one output, (R,); squared error, mean over values."""

    name = "regression"
    mixed_target = "soft"

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        return _mean(F.mse_loss(*self._pair(output, y), reduction="none"))

    def mean_loss(self, output: Tensor, y: Tensor) -> Tensor:
        if type(self).losses is not Regression.losses:
            return super().mean_loss(output, y)
        return F.mse_loss(*self._pair(output, y))

    def _pair(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        target = self.soft_target(y).to(output.dtype)
        output = output.unsqueeze(1) if output.ndim == 1 else output
        if output.shape != target.shape:
            raise ValueError(f"regression outputs {tuple(output.shape)} and targets {tuple(y.shape)} do not match")
        return output, target

    def soft_target(self, y: Tensor) -> Tensor:
        return y.unsqueeze(1) if y.ndim == 1 else y

    def predict(self, output: Tensor) -> Tensor:
        return output


def infer_task(y: Tensor, outputs: int | None = None) -> Task:
    """The task that `y` suggests: integers are class ids, (R, C) floats of 0 and 1 multi-label or one-hot, else real.

    outputs: the number of classes or values where known.
    """
    if not y.is_floating_point():
        return Classification(outputs or int(y.max()) + 1)
    if y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()):
        return (Classification if bool((y.sum(dim=1) == 1).all()) else MultiLabel)(outputs or y.shape[1])
    return Regression(outputs or (1 if y.ndim == 1 else y.shape[1]))
