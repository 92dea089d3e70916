"""Empirical risk minimisation: no mixing; the baseline of every comparison.

    loss = mean_i loss(f(x_i), y_i)

Source: Vapnik, "Principles of risk minimization for learning theory", NeurIPS 1991. Cost: 1.
"""

from __future__ import annotations

from ...core.method import Method
from ...core.registry import register


@register("erm", paper="Principles of risk minimization for learning theory, NeurIPS 1991")
class ERM(Method):
    """Plain training on the samples as they are."""
