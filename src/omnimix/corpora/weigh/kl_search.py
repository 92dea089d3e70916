"""WebOrganizer's search: draw mixtures around a centre, pull it to the best that stay near the corpus, and draw again.

    w*_t = mean of the `top` of N draws around c_{t-1} with the lowest  L(w) + gamma KL(w || p);
    c_0 = p,   c_t = (1 - eta) c_{t-1} + eta w*_t,   t = 1..T;   the proposal is c_T.

Wettig et al., "Organize the Web: Constructing Domains Enhances Pre-Training Data Curation", ICML 2025, arXiv
2502.10341: N = 500,000, T = 15, gamma = 0.002, eta = 0.2, and no domain above 6.5 times its share p of the corpus. The
authors published no code of the search; the step is our reading of its description. With T = 1, eta = 1 and gamma = 0
it is RegMix's simulation. Cost: T simulations (of trees, 4 minutes of a core in all), no runs beside the fitted ones.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import rel_entr

from ...core import random
from ...core.checks import at_least, in_unit, non_negative, positive
from .base import Array, Regressor
from .design import MixtureDesign
from .propose import FLOOR, water_fill

BLOCK = 1 << 18
"""Mixtures that are held at a time."""


def kl_search(
    regressor: Regressor, prior: Array, caps: Array | None = None, *, kl: float = 0.002, upsampling: float = 6.5,
    candidates: int = 500_000, top: int = 128, iterations: int = 15, pull: float = 0.2,
    strength: tuple[float, float] = (0.1, 5.0), generator: torch.Generator | None = None,
) -> Array:  # fmt: skip
    """(k,) the centre after `iterations` rounds.

    prior: (k,) shares p > 0 of the corpus, in any scale. caps: (k,) largest weights. kl: gamma, in the unit of the
    losses. upsampling: no domain above this times its share; infinity lifts it. candidates: N draws in a round. pull:
    eta in 0..1, how far the centre goes. strength: smallest and largest concentration of the Dirichlet draws. What a
    draw has above a cap goes to its other domains in proportion. ValueError for caps that leave too little.
    """
    p = np.asarray(prior, dtype=np.float64)
    if p.ndim != 1 or not (np.isfinite(p) & (p > 0)).all():
        raise ValueError(f"prior must give every domain a share > 0, got {p}")
    p = p / p.sum()
    if at_least("top", top, 1) > at_least("candidates", candidates, 1):
        raise ValueError(f"top must be at most the number of candidates, {candidates}, got {top}")
    non_negative("kl", kl), in_unit("pull", pull), at_least("iterations", iterations, 1)
    most = np.minimum(positive("upsampling", upsampling) * p, 1.0)
    most = most if caps is None else np.minimum(most, caps)
    if most.sum() < 1 - 1e-12:
        raise ValueError(
            f"the caps, of which upsampling={upsampling:g} times the share is one, leave {most.sum():.4g} of the "
            "weight: raise upsampling or the other caps"
        )
    generator = random.resolve(generator)
    centre = water_fill(p, most)
    for _ in range(iterations):
        around = {str(i): max(weight, FLOOR) for i, weight in enumerate(centre.tolist())}
        design = MixtureDesign(around, temperature=1.0, strength=strength, cap=None, minimum=0.0)
        kept, values = np.empty((0, len(p))), np.empty(0)
        for first in range(0, candidates, BLOCK):
            drawn = design.candidates(min(BLOCK, candidates - first), generator)
            drawn = water_fill(np.maximum(drawn, FLOOR), most)
            far = kl * rel_entr(drawn, p).sum(1)
            best = regressor.lowest(drawn, min(top, len(drawn)), far)
            kept = np.concatenate([kept, drawn[best]])
            values = np.concatenate([values, regressor.predict(drawn[best]) + far[best]])
        centre = (1 - pull) * centre + pull * kept[np.argsort(values, kind="stable")[:top]].mean(0)
    return np.asarray(centre / centre.sum())
