"""What a run may spend and how: epochs, batches, optimiser, schedule, selection and device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.checks import at_least, in_unit, non_negative, one_of, positive

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")


@dataclass(frozen=True)
class Budget:
    """The same for every method of a comparison; ValueError for values out of range.

    batch_size: anchors per optimiser step, over all devices; guests that a method asks for come on top. momentum is for
    sgd. clip: largest gradient norm. schedule, by epoch e = 0, 1, ...: "constant"; "cosine", lr (1 + cos(pi e /
    epochs)) / 2; "step", lr times 0.1 at each of `milestones`. drop_last: leave out the last, smaller batch.
    planned: the epochs that schedules are made for, where a run stops before; None: all of `epochs`.
    select: keep the weights of the epoch with the "best" validation `metric` ("loss", a metric of the task, or where
    there are domains "worst_domain" or "mean_domain"; the first of equals), or the "last". augment: random crop and
    flip of images before mixing. order: "shuffled", or "domains": equally many rows of each domain in every batch.
    accelerator: "auto" takes the CPU for tables of numbers, else a GPU where there is one. strategy, for several
    devices: "ddp", each holds all weights; "fsdp", each holds a share of weights, gradients and optimiser states.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    clip: float | None = None
    drop_last: bool = True
    select: str = "best"
    metric: str = "loss"
    augment: bool = False
    order: str = "shuffled"
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "ddp"
    planned: int | None = None

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("devices", self.devices, 1)
        if self.planned is not None:
            at_least("planned", self.planned, self.epochs)
        if not math.isfinite(positive("lr", self.lr)):
            raise ValueError(f"lr must be finite, got {self.lr}")
        in_unit("momentum", self.momentum)
        non_negative("weight_decay", self.weight_decay)
        if self.clip is not None:
            positive("clip", self.clip)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("order", self.order, ("shuffled", "domains"))
        one_of("select", self.select, ("best", "last"))
        one_of("precision", self.precision, PRECISIONS)
        one_of("strategy", self.strategy, ("ddp", "fsdp"))
        if self.strategy == "fsdp" and self.devices == 1:
            raise ValueError("strategy='fsdp' shards the weights over several devices, got devices = 1")
        one_of("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones are the epochs at which schedule='step' lowers the rate; got milestones={self.milestones} "
                f"with schedule={self.schedule!r}"
            )
        for milestone in self.milestones:
            at_least("milestones", milestone, 1)
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of devices = {self.devices}")

    def rate(self, epoch: int) -> float:
        """The learning rate of epoch 0, 1, ..."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / (self.planned or self.epochs))) / 2
        return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
