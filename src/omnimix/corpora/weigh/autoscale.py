"""AutoScale: the best amounts of data at two budgets, extrapolated to larger ones.

With the optimal amounts N1 and N2 at two small scales, the next is N3 = N2 N1^-1 N2 by domain, and so on in geometric
steps: the domains whose optimum grew faster grow further. Kang et al., "AutoScale: Scale-Aware Data Mixing for
Pre-Training LLMs", 2024, arXiv 2407.20177. Cost: two optimisations at small scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from scipy.optimize import brentq

from ...core.checks import positive
from ..mixture import Mixture


def autoscale(first: Mapping[str, float], second: Mapping[str, float], budget: float) -> Mixture:
    """The mixture for `budget` tokens from the optimal token amounts at two smaller budgets.

    N_i(t) = first_i (second_i / first_i)^t, with t such that sum_i N_i(t) = budget; t = 2 is the paper's N3. ValueError
    where the domains differ, an amount is not > 0, or the second budget is not the larger.
    """
    if set(first) != set(second):
        raise ValueError(f"both must name the same domains: {sorted(set(first) ^ set(second))} are only in one")
    growth = {d: positive(f"second[{d!r}]", second[d]) / positive(f"first[{d!r}]", n) for d, n in first.items()}
    small, large = math.fsum(first.values()), math.fsum(second.values())
    if not small < large <= positive("budget", budget):
        raise ValueError(f"budgets must grow: {small:g} (first), {large:g} (second), {budget:g} (budget)")

    def excess(t: float) -> float:
        return math.fsum(n * growth[d] ** t for d, n in first.items()) - budget

    end = 2.0
    while excess(end) < 0:
        end *= 2
    t = brentq(excess, 1.0, end, xtol=1e-12)
    return Mixture(
        {d: n * growth[d] ** t for d, n in first.items()}, provenance={"method": "autoscale", "budget": float(budget)}
    )  # fmt: skip
