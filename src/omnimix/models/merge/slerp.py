"""SLERP: interpolation along the great circle between the flattened tensors of two models.

v(t) = sin((1-t) W)/sin W a + sin(t W)/sin W b with cos W = a.b / (|a| |b|); linear where |cos W| > 0.9995, and for
tensors that are zero or have a single entry. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; for
weights as merge tools do, tensor by tensor with the magnitudes left in the sum.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.checks import in_unit
from .base import Block, Blocks, Merger
from .source import working

STRAIGHT = 0.9995


def slerp(a: Tensor, b: Tensor, t: float = 0.5, *, dtype: torch.dtype | None = None) -> Tensor:
    """The point at share t of the way from a to b, tensors of one shape.

    t in [0, 1]. dtype: of the result, default that of a. ValueError for opposite tensors, between which no path is
    shortest.
    """
    merger = Slerp(t)
    work = working(a.dtype)
    block = Block([a.to(work).reshape(-1), b.to(work).reshape(-1)], None, "", 0)
    return merger.combine(block, merger.measure(lambda: iter([block]))).reshape(a.shape).to(dtype or a.dtype)


class Slerp(Merger):
    """SLERP of two whole models, tensor by tensor. t: share of the way from the first to the second."""

    name: ClassVar[str] = "slerp"
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    def __init__(self, t: float = 0.5) -> None:
        self.t = in_unit("t", t)

    def measure(self, blocks: Blocks) -> tuple[float, float]:
        """The factors of the two tensors."""
        dot = left = right = 0.0
        name, entries = "", 0
        for block in blocks():
            a, b = block.models
            dot, left, right = dot + _dot(a, b), left + _dot(a, a), right + _dot(b, b)
            name, entries = block.name, entries + a.numel()
        if not math.isfinite(dot + left + right):  # NaN, or too large to be squared: the merged values are refused
            return math.nan, math.nan
        size = math.sqrt(left) * math.sqrt(right)
        cosine = min(1.0, max(-1.0, dot / size)) if size else 1.0
        if cosine < -STRAIGHT and 0 < self.t < 1 and entries > 1:
            raise ValueError(f"tensor {name!r} has opposite values in the two models: no path between them is shortest")
        if abs(cosine) > STRAIGHT:
            return 1 - self.t, self.t
        angle = math.acos(cosine)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)

    def combine(self, block: Block, found: Any) -> Tensor:
        (a, b), (left, right) = block.models, found
        if left + right == 1.0:
            return torch.lerp(a, b, right)
        merged: Tensor = a * left
        return merged.add_(b, alpha=right)


def _dot(a: Tensor, b: Tensor) -> float:
    """In pieces whose float32 sums stay exact enough."""
    pieces = zip(torch.split(a, 2**16), torch.split(b, 2**16), strict=True)
    return float(torch.stack([torch.dot(x, y) for x, y in pieces]).double().sum())
