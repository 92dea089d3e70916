"""SWAD: the mean of all weights of training from where the validation loss settles to where it starts to rise.

    theta = mean of theta_t, t_s <= t <= t_e
    t_s: the first validation whose loss is the least of it and the N_s - 1 that follow
    t_e: the last validation with a loss <= (1 + r) mean(these N_s losses), before N_e above it in a row

Each validation stands for the steps since the one before. Source: Cha, Chun, Lee, Cho, Lee, Park, Lee, Park, "SWAD:
Domain Generalization by Seeking Flat Minima", NeurIPS 2021, arXiv 2102.08604, Algorithm 1. Cost: 1, and a pass over the
weights each step. As in the authors' code, training that ends within the window ends it at its last low loss, and
training that never settles gives the mean of its last validation interval. That code also averages up to two intervals
before t_s and counts that of t_s twice, which is not built here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, non_negative
from ...core.method import Method, Setup
from ...core.norm import ROWS, moving_norms, refresh_norms, some_rows
from ...core.registry import register
from ...core.search import Choice


class Mean:
    """The running mean of tensors by name, over `count` steps; at least in 32 bits."""

    def __init__(self, values: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.values, self.count = dict(values or {}), count

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], count: int = 1) -> None:
        """Let `values` in, as the mean of `count` steps."""
        self.count += count
        if not self.values:
            self.values = {n: (v if v.dtype == torch.float64 else v.float()).clone() for n, v in values.items()}
            return
        mine = list(self.values.values())
        theirs = [values[name].to(mean) for name, mean in self.values.items()]
        torch._foreach_lerp_(mine, theirs, count / self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "count": self.count}


class LossValley:
    """Which validation intervals SWAD averages, told their losses one after the other.

    patience: N_s, tolerance: N_e, ratio: r of the module's docstring. `mean` holds the intervals that are in.
    """

    def __init__(self, patience: int = 3, tolerance: int = 6, ratio: float = 0.3) -> None:
        self.patience, self.tolerance = at_least("patience", patience, 1), at_least("tolerance", tolerance, 1)
        self.ratio = non_negative("ratio", ratio)
        self.mean, self.over = Mean(), False
        self.threshold: float | None = None
        self.waiting: list[tuple[float, Mean]] = []
        """Until the loss settles, the last N_s intervals; then those since the last low loss."""

    def add(self, loss: float, interval: Mean) -> None:
        """The validation loss at the end of an interval, and the mean of its weights."""
        if self.over:
            return
        if self.threshold is not None:
            self._go_on(loss, interval)
            return
        self.waiting = [*self.waiting, (loss, interval)][-self.patience :]
        losses = [value for value, _ in self.waiting]
        if len(losses) == self.patience and losses[0] == min(losses):
            self.threshold = (1 + self.ratio) * sum(losses) / len(losses)
            found, self.waiting = self.waiting, []
            for each in found:
                self._go_on(*each)

    def _go_on(self, loss: float, interval: Mean) -> None:
        assert self.threshold is not None
        self.waiting.append((loss, interval))
        if loss <= self.threshold or not self.mean.count:
            for _, one in self.waiting:
                self.mean.add(one.values, one.count)
            self.waiting = []
        elif len(self.waiting) == self.tolerance:
            self.over, self.waiting = True, []

    def result(self) -> Mean | None:
        """The mean over the window as it is; before the loss settles, the last interval; None before any."""
        return self.mean if self.mean.count else self.waiting[-1][1] if self.waiting else None

    def state_dict(self) -> dict[str, Any]:
        waiting = [{"loss": loss, "interval": interval.state_dict()} for loss, interval in self.waiting]
        return {"mean": self.mean.state_dict(), "threshold": self.threshold, "over": self.over, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.threshold, self.over = Mean(**state["mean"]), state["threshold"], state["over"]
        self.waiting = [(value["loss"], Mean(**value["interval"])) for value in state["waiting"]]


@register(
    "swad",
    paper="SWAD: Domain Generalization by Seeking Flat Minima, NeurIPS 2021, arXiv 2102.08604",
    level="domains",
    search={"patience": Choice(1, 3), "ratio": Choice(0.2, 0.3)},
)
class SWAD(Method):
    """Average the weights of all steps from where the validation loss settles to where it starts to rise.

    patience >= 1, tolerance >= 1: validations in a row that must not fall below the first one for the loss to have
    settled, and that must be too high for it to have risen. ratio >= 0: how far above their level is too high. Tell
    `after_validation` the loss several times in training; `after_training` gives the network the mean weights, and
    its batch-norm layers, unless they are frozen, statistics of training samples.
    """

    follows_validation = True
    by_row = False

    def __init__(self, patience: int = 3, tolerance: int = 6, ratio: float = 0.3) -> None:
        self.settings = (patience, tolerance, ratio)
        self.valley = LossValley(*self.settings)

    def on_setup(self, given: Setup) -> None:
        self.valley, self.interval = LossValley(*self.settings), Mean()
        self.norms: list[str] = []

    def after_step(self) -> None:
        super().after_step()
        model = self._given().model
        self.interval.add({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
        self.norms = moving_norms(model)

    def after_validation(self, loss: float) -> None:
        if self.interval.count:
            self.valley.add(float(loss), self.interval)
            self.interval = Mean()

    @torch.no_grad()
    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Give `model` the mean weights; ValueError if the validation loss was never told."""
        found = self.valley.result()
        if found is None:
            raise ValueError("swad was never told a validation loss: call after_validation(loss) during training")
        weights = dict(self._given().model.named_parameters())
        for name, value in found.values.items():
            weights[name].copy_(value)
        if self.norms:
            refresh_norms(self._given().model, self.norms, some_rows(batches, ROWS, self.generator))

    def state_dict(self) -> dict[str, Any]:
        own = {"valley": self.valley.state_dict(), "interval": self.interval.state_dict(), "norms": self.norms}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.valley.load_state_dict(state["valley"])
        self.interval, self.norms = Mean(**state["interval"]), list(state["norms"])
