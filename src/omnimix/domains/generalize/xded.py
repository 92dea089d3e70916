"""XDED: samples of one class in different domains learn from their common average; maps of first layers lose style.

    loss = CE + lam T^2 mean_i KL(softmax(o_c(i) / T) || softmax(o_i / T)),   o_c: mean output of class c in the batch

o_c is a constant for gradients. UniStyle: after each tap, in training and in prediction, h <- (h - m) / s with the mean
and (unbiased) deviation of each channel. Source: Lee, Kim, Kwak, "Cross-Domain Ensemble Distillation for Domain
Generalization", ECCV 2022, arXiv 2211.14058. Cost: 1. Batches hold some classes with equally many samples of every
domain; a batch draws its classes without replacement, so that classes are the groups that the authors' code forms. For
dense targets o_i is the output of a pixel and o_c the mean over the pixels of a class in the batch (the authors' code
mixes up channels and places there); batches are the caller's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import standardize
from ...core.checks import at_least, non_negative, positive
from ...core.method import Setup
from ...core.registry import register
from ...core.sampler import by_class_and_domain
from ...core.search import Choice, Log
from ...core.taps import Taps
from .base import ByDomain


def ensemble_distillation(output: Tensor, group: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 times the mean divergence of each row of logits (B, C) from the mean logits of its group (B,)."""
    same = (group.unsqueeze(1) == group).to(output.dtype)
    teacher = (same / same.sum(dim=1, keepdim=True)) @ output.detach()
    student = F.log_softmax(output / temperature, dim=1)
    return temperature**2 * F.kl_div(student, F.softmax(teacher / temperature, dim=1), reduction="batchmean")


def pixel_distillation(output: Tensor, label: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 times the mean divergence of each pixel's logits (B, C, *spatial) from the mean logits of its class.

    label: (B, *spatial) ids; pixels of an id that is no class, such as 255, have nothing to learn and count as zero.
    """
    flat, y = output.movedim(1, -1).flatten(0, -2), label.flatten()
    known = (y >= 0) & (y < flat.shape[1])
    place = y.where(known, 0).long()
    weight = known.to(flat.dtype)
    sums = flat.new_zeros(flat.shape[1], flat.shape[1]).index_add(0, place, flat.detach() * weight.unsqueeze(1))
    count = weight.new_zeros(flat.shape[1]).index_add(0, place, weight)
    teacher = (sums / count.clamp(min=1).unsqueeze(1))[place]
    student = F.log_softmax(flat / temperature, dim=1)
    losses = F.kl_div(student, F.softmax(teacher / temperature, dim=1), reduction="none").sum(dim=1)
    return temperature**2 * (losses * weight).mean()


@register(
    "xded",
    paper="Cross-Domain Ensemble Distillation for Domain Generalization, ECCV 2022, arXiv 2211.14058",
    tasks=("classification",),
    level="domains",
    inputs=("image",),
    search={"lam": Log(0.1, 10), "unistyle": Choice(True, False)},
)
class XDED(ByDomain):
    """Distil the common average of a class over domains into its samples, and take the style out of first layers.

    lam >= 0: the weight of distillation. temperature > 0; None: 4, for dense targets (B, *spatial) 2. per_class:
    samples of each class in a batch. unistyle: standardise maps at the taps. taps: names of modules that give maps
    (B, C, *spatial); None: the network's first two.
    """

    needs = ("domain", "label")

    def __init__(
        self,
        lam: float = 5.0,
        temperature: float | None = None,
        per_class: int = 16,
        *,
        unistyle: bool = True,
        taps: Sequence[str] | None = None,
    ) -> None:
        self.lam = non_negative("lam", lam)
        self.temperature = None if temperature is None else positive("temperature", temperature)
        self.per_class, self.unistyle, self.tap_names = at_least("per_class", per_class, 1), unistyle, taps

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        assert given.table is not None
        labels = _class(given.table["label"])
        self.labels = labels if labels.ndim == 1 else None
        self.groups = given.table["domain"]
        self.rewrites = {}
        if self.unistyle:
            self.taps = Taps(given.model, self.tap_names, given.split)
            self.rewrites = dict.fromkeys(self.taps.names, standardize)

    def batches(self, size: int, steps: int, generator: torch.Generator) -> list[Tensor] | None:
        if self.labels is None:
            return None
        return by_class_and_domain(self.labels, self.groups, size, self.per_class, steps, generator)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self.predict(model, batch.x)
        label = _class(batch.y)
        if label.shape != output.shape[:1] + output.shape[2:]:
            raise ValueError(
                f"xded distils one output a sample (B, C) or a pixel (B, C, *spatial), the network gives "
                f"{tuple(output.shape)} for labels {tuple(batch.y.shape)}"
            )
        if output.ndim == 2:
            distilled = ensemble_distillation(output, label, self.temperature or 4.0)
        else:
            distilled = pixel_distillation(output, label, self.temperature or 2.0)
        return self.task.mean_loss(output, batch.y) + self.lam * distilled

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.mean_loss(self.predict(model, batch.x), batch.y)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        if not self.rewrites:
            return super().predict(model, x)
        with self.taps.rewrite(self.rewrites, model):
            return super().predict(model, x)


def _class(y: Tensor) -> Tensor:
    """Ids of one-hot or soft targets, or what ids there are."""
    return y.argmax(dim=1) if y.is_floating_point() else y
