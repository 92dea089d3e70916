"""Argument checks whose messages name the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeVar

T = TypeVar("T")


def positive(name: str, value: float) -> float:
    """`value` if it is a number > 0 (infinity allowed), else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value <= 0:
        raise ValueError(f"{name} must be a number > 0, got {value!r}")
    return value


def non_negative(name: str, value: float) -> float:
    """`value` if it is a number >= 0, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be a number >= 0, got {value!r}")
    return value


def in_unit(name: str, value: float) -> float:
    """`value` if 0 <= value <= 1, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return value


def one_of(name: str, value: T, allowed: Collection[T]) -> T:
    """`value` if it is one of `allowed`, else ValueError."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def at_least(name: str, value: int, low: int) -> int:
    """`value` if it is an integer >= low, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return value
