"""Open-set scores: whether unknown classes are rejected while known ones are accepted and told apart.

    OSCR = area under (unknowns accepted, knowns accepted and right) as the threshold falls
    H-score = 2 a_k a_u / (a_k + a_u),   a_k: knowns accepted and right, a_u: unknowns rejected

Sources: Dhamija, Guenther, Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv 1811.04110; Fu et al.,
"Learning to Detect Open Classes for Universal Domain Adaptation", ECCV 2020. OSCR needs no threshold; an H-score whose
threshold was chosen on the target is an oracle's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def oscr(known: Tensor, right: Tensor, unknown: Tensor) -> float:
    """Open-set classification rate in [0, 1]; the accuracy where all knowns lie above all unknowns.

    known: (N,) confidence in samples of known classes, right: (N,) whether their predicted class is true, unknown: (M,)
    confidence in samples of unknown classes. A threshold accepts what is equal to it.
    """
    _check(known, right, unknown)
    scores = torch.cat((known, unknown)).double()
    hit = torch.cat((right.double() / len(known), torch.zeros_like(unknown, dtype=torch.float64)))
    wrong = torch.cat((torch.zeros_like(known, dtype=torch.float64), torch.full_like(unknown, 1.0).double()))
    _, place = torch.unique(scores, return_inverse=True)
    steps = torch.zeros(2, int(place.max()) + 1, dtype=torch.float64, device=scores.device)
    steps = steps.index_add(1, place, torch.stack((hit, wrong / len(unknown)))).flip(1)
    curve = torch.cat((steps.new_zeros(2, 1), steps.cumsum(dim=1)), dim=1)
    return float(torch.trapezoid(curve[0], curve[1]))


def h_score(known: Tensor, right: Tensor, unknown: Tensor, threshold: float) -> float:
    """The harmonic mean of a_k and a_u at a threshold of confidence; arguments as in `oscr`."""
    _check(known, right, unknown)
    accepted = float(((known >= threshold) & right.bool()).double().mean())
    rejected = float((unknown < threshold).double().mean())
    return 2 * accepted * rejected / (accepted + rejected) if accepted + rejected else 0.0


def _check(known: Tensor, right: Tensor, unknown: Tensor) -> None:
    if known.shape != right.shape or known.ndim != 1 or unknown.ndim != 1 or not len(known) or not len(unknown):
        raise ValueError(
            f"known and right must be (N,), unknown (M,), none empty, got {tuple(known.shape)}, "
            f"{tuple(right.shape)}, {tuple(unknown.shape)}"
        )
