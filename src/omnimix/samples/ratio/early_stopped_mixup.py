"""Early-stopped mixup: mix for the first part of training, then train on the samples as they are.

    loss_t = mixed loss if t < T_stop, plain loss from T_stop on;   T_stop = stop * planned steps

Source: Zou, Cao, Li, Gu, "The Benefits of Mixup for Feature Learning", ICML 2023, arXiv 2303.08433. Cost: 1. Mixing
stops, training does not: optimiser state, schedule and data order go on untouched. The label share may differ from
the input share (`label_ratio`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit
from ...core.method import Method, Mix, Setup
from ...core.ratio import Beta
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ..label.ratio import LabelRatio, LabelShare


@register(
    "early-stopped-mixup",
    paper="The Benefits of Mixup for Feature Learning, ICML 2023, arXiv 2303.08433",
    search={"stop": Uniform(0.2, 1), "alpha": Log(0.1, 32)},
)
class EarlyStopped(Method):
    """Mix for the first `stop` of all planned steps, then train on the samples as they are.

    stop: share of the steps; 0 is plain training, 1 never stops. alpha: Beta(alpha, alpha) of the inputs' shares.
    label_ratio: "same", or another share for the labels (see `LabelRatio`). method: any Method to stop in place of
    mixup; alpha and label_ratio are then its own affair (ValueError if given too). Needs setup(..., steps=...) and
    `after_step()`; the inner method draws from the same generator, so stop = 1 is bit for bit the method itself, and
    from the switch on nothing is drawn.
    """

    def __init__(
        self,
        stop: float = 0.8,
        alpha: float = 1.0,
        label_ratio: LabelShare = "same",
        method: Method | None = None,
    ) -> None:
        self.stop = in_unit("stop", stop)
        if method is not None and (alpha != 1.0 or label_ratio != "same"):
            raise ValueError("alpha and label_ratio belong to the built-in mixup; set them on `method` itself")
        self.inner = Mix(ratio=Beta(alpha), labels=LabelRatio(label_ratio)) if method is None else method
        self.needs = self.inner.needs
        self.streams = self.inner.streams  # type: ignore[misc]  # here they depend on the instance

    def on_setup(self, given: Setup) -> None:
        if given.steps is None:
            raise ValueError("stop is a share of the whole training: pass setup(..., steps=planned optimiser steps)")
        self.switch = round(self.stop * given.steps)
        """The first step that does not mix."""
        self.inner.setup(
            given.model,
            given.task,
            given.table,
            validation=given.validation,
            steps=given.steps,
            split=given.split,
            generator=self.generator,
        )

    @property
    def mixing(self) -> bool:
        """Whether the current step mixes."""
        self._given()
        return self.steps_done < self.switch

    @property
    def mixer(self) -> Mix | None:
        return self.inner.mixer

    @property
    def by_row(self) -> bool:
        return self.inner.by_row

    def drawn(self, batch: Batch) -> Recipe | None:
        return self.inner.drawn(batch) if self.mixing else None

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.inner.rows(index) if self.mixing else (index, None)

    def plan(self, batches: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor | None]]:
        left = self.switch - self.steps_done
        if left > 0:
            yield from self.inner.plan(batches[:left])
        yield from ((index, None) for index in batches[max(left, 0) :])

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        if self.mixing:
            return self.inner.loss(model, batch, **streams)
        return super().loss(model, batch)

    def step(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, *args: Any, **kw: Any) -> Tensor:
        if self.mixing:
            return self.inner.step(model, batch, optimizer, *args, **kw)
        return super().step(model, batch, optimizer, *args, **kw)

    def after_step(self) -> None:
        if self.mixing:
            self.inner.after_step()
        super().after_step()

    def after_epoch(self) -> None:
        self._given()
        if self.steps_done <= self.switch:  # an epoch that ends on the switch was mixed to its last step
            self.inner.after_epoch()

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        return self.inner.predict(model, x)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.inner.load_state_dict(state["inner"])
