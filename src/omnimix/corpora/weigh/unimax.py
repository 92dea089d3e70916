"""UniMax: every domain the same, but none more often than max_epochs times through.

From the smallest domain on, each gets u_i = min(remaining budget / remaining domains, max_epochs n_i); w_i ~ u_i. What
a small domain cannot take is shared out over the larger ones. Chung et al., "UniMax: Fairer and More Effective Language
Sampling for Large-Scale Multilingual Pretraining", ICLR 2023, arXiv 2304.09151. Cost: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ...core.checks import positive
from ..mixture import Mixture


def unimax(sizes: Mapping[str, float], budget: float, max_epochs: float = 4.0, *, unit: str = "tokens") -> Mixture:
    """The mixture for a run of `budget` units over domains that hold `sizes` of them.

    ValueError where all domains together, max_epochs times, are less than the budget.
    """
    positive("budget", budget)
    positive("max_epochs", max_epochs)
    small_first = sorted((positive(f"sizes[{d!r}]", n), d) for d, n in sizes.items())
    most = max_epochs * math.fsum(n for n, _ in small_first)
    if most < budget * (1 - 1e-12):
        raise ValueError(
            f"the domains hold {most / max_epochs:g} {unit}, {max_epochs:g} times that is less than the budget "
            f"{budget:g}: raise max_epochs to {max_epochs * budget / most:.4g}, or lower the budget"
        )
    taken: dict[str, float] = {}
    left = budget
    for position, (size, domain) in enumerate(small_first):
        taken[domain] = min(left / (len(small_first) - position), max_epochs * size)
        left -= taken[domain]
    facts = {"method": "unimax", "budget": float(budget), "max_epochs": float(max_epochs)}
    return Mixture({domain: taken[domain] for domain in sizes}, unit=unit, provenance=facts)
