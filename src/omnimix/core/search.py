"""Ranges of hyperparameters that a method's card declares, so that every method can be tuned as hard as the others.

`@register("mixup", ..., search={"alpha": Log(0.1, 8)})`. A range is plain data; whoever tunes draws from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .checks import one_of, positive

Unit: TypeAlias = Literal["label_sd"]
"""What drawn numbers are multiplied by: the standard deviation of the training labels."""


@dataclass(frozen=True)
class Uniform:
    """A number in [low, high], all equally likely; ValueError unless low < high, both finite."""

    low: float
    high: float
    unit: Unit | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs finite low < high, got low = {self.low!r}, high = {self.high!r}")
        one_of("unit", self.unit, ("label_sd", None))


@dataclass(frozen=True)
class Log(Uniform):
    """A number in [low, high], low > 0, its logarithm uniform."""

    def __post_init__(self) -> None:
        positive("low", self.low)
        super().__post_init__()


@dataclass(frozen=True, init=False)
class Choice:
    """One of `values`, all equally likely: numbers, words, True, False or None; ValueError for fewer than two."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(values) < 2:
            raise ValueError(f"a choice needs two values or more, got {values!r}")
        object.__setattr__(self, "values", values)


Range: TypeAlias = Uniform | Choice
