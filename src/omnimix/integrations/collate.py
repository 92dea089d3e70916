"""Mixing inside a DataLoader: batches arrive mixed, with soft targets, and the training loop stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from ..core.batch import Batch
from ..core.recipe import Mixed


class Collate:
    """A collate function that mixes; see `collate`. Works in loader workers, each with a random stream of its own."""

    def __init__(self, mix: Callable[..., Mixed], num_classes: int | None, options: dict[str, Any]) -> None:
        self.mix, self.num_classes, self.options = mix, num_classes, options

    def __call__(self, samples: Sequence[Any]) -> tuple[Any, Tensor]:
        batch = Batch.of(default_collate(list(samples)))
        mixed = self.mix(batch.x, batch.y, **self.options)
        return mixed.x, mixed.soft_target(self.num_classes)


def collate(mix: Callable[..., Mixed], num_classes: int | None = None, **options: Any) -> Collate:
    """`DataLoader(..., collate_fn=collate(mixup, num_classes=10, alpha=0.2))` yields (mixed x, soft target) batches.

    mix: a function such as `omnimix.mixup` or `omnimix.cutmix`; options go to it. num_classes: needed where y holds
    class ids; the targets are then (B, num_classes). Losses linear in the target, such as `F.cross_entropy`, take them
    as they are. Use it for training loaders only: evaluation never mixes. ValueError for anything
    but a function of (x, y), such as a Method or an unknown option.
    """
    try:
        inspect.signature(mix).bind(None, None, **options)
    except TypeError as error:
        raise ValueError(
            "collate needs a function of a batch such as omnimix.mixup, and its options; "
            f"got {mix!r} with {options}: {error}"
        ) from error
    return Collate(mix, num_classes, options)
