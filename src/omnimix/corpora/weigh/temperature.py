"""Weights by size: proportional, tempered, uniform.

w_i ~ n_i^(1/T): T = 1 is proportional to size, T = 2 the square root, T = infinity uniform. From multilingual
pre-training (Conneau and Lample, "Cross-lingual Language Model Pretraining", NeurIPS 2019, arXiv 1901.07291, with
alpha = 1/T). Cost: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..mixture import Mixture


def temperature(sizes: Mapping[str, float], t: float = 1.0, *, unit: str = "tokens") -> Mixture:
    """The mixture of domains that hold `sizes`, in `unit`. t >= 1, or infinity; a domain of size 0 gets weight 0."""
    if isinstance(t, bool) or not isinstance(t, (int, float)) or not t >= 1:
        raise ValueError(f"t must be a number >= 1 (1: proportional to size, infinity: uniform), got {t!r}")
    shares = Mixture(sizes).weights
    weights = {domain: share ** (1 / t) if share else 0.0 for domain, share in shares.items()}
    return Mixture(weights, unit=unit, provenance={"method": "temperature", "t": t if math.isfinite(t) else "inf"})


def proportional(sizes: Mapping[str, float], *, unit: str = "tokens") -> Mixture:
    """Weights in proportion to what each domain holds."""
    return temperature(sizes, 1.0, unit=unit)


def uniform(domains: Mapping[str, float] | list[str] | tuple[str, ...], *, unit: str = "tokens") -> Mixture:
    """The same weight for every domain."""
    return temperature(dict.fromkeys(domains, 1.0), math.inf, unit=unit)
