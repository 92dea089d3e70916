"""Wide residual networks WRN-depth-k: three stages of (depth - 4) / 6 pre-activation blocks, k times as wide.

Source: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from ..core.checks import at_least
from .preact_resnet import PreActResNet


def wide_resnet(
    input_shape: tuple[int, ...], outputs: int, depth: int = 28, k: int = 10, dropout: float = 0.0
) -> PreActResNet:
    """depth: 6 n + 4 (10, 16, 22, 28, 34, 40, ...). ValueError for others, with the nearest."""
    at_least("k", k, 1)
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        near = max(10, 6 * round((depth - 4) / 6) + 4)
        raise ValueError(f"the depth of a wide residual network must be 6 n + 4, got {depth}; the nearest is {near}")
    return PreActResNet(input_shape, outputs, 16, (16 * k, 32 * k, 64 * k), blocks, dropout)
