"""Are probabilities right? Scores of probabilities (N, C) against class ids (N,).

    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|   over bins b of the largest probability

Conventions of RegMixup (NeurIPS 2022, arXiv 2206.14502): 15 bins, half open (lo, hi]; adaptive bins hold equal shares
of the samples. Unlike its code, the lowest confidence falls into the first adaptive bin instead of none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import at_least


def ece(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins; a confidence of exactly 0 falls in none."""
    at_least("bins", bins, 1)
    confidence, correct = _confidence(probabilities, y)
    edges = torch.arange(bins + 1, dtype=confidence.dtype, device=confidence.device) / bins
    return _gap(confidence, correct, torch.bucketize(confidence, edges) - 1, bins)


def adaptive_ece(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error over bins between interpolated quantiles of the confidences; needs the whole set."""
    at_least("bins", bins, 1)
    confidence, correct = _confidence(probabilities, y)
    ordered, count = confidence.sort().values, len(confidence)
    at = torch.linspace(0, count, bins + 1, dtype=torch.float64, device=confidence.device).clamp(max=count - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=count - 1)
    edges = torch.lerp(ordered[low].double(), ordered[high].double(), at - low)
    return _gap(confidence, correct, (torch.bucketize(confidence.double(), edges) - 1).clamp(min=0), bins)


def brier(probabilities: Tensor, y: Tensor) -> float:
    """mean_n sum_c (p_nc - 1[c = y_n])^2, between 0 and 2."""
    p = _checked(probabilities, y).double()
    own = p.gather(1, y.long().unsqueeze(1)).squeeze(1)
    return float((p.square().sum(dim=1) - 2 * own + 1).mean())


def nll(probabilities: Tensor, y: Tensor) -> float:
    """mean_n -log p_n(y_n); probabilities below the smallest normal number of their type count as that number."""
    p = _checked(probabilities, y)
    own = p.gather(1, y.long().unsqueeze(1)).clamp(min=torch.finfo(p.dtype).tiny)
    return float(-own.double().log().mean())


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The T > 0 that minimises the cross-entropy of logits / T, on held-out data."""
    from scipy.optimize import minimize_scalar

    z = _checked(logits, y).double()

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(z * torch.tensor(-log_t).exp(), y.long()))

    return float(torch.tensor(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x).exp())


def _checked(scores: Tensor, y: Tensor) -> Tensor:
    if scores.ndim != 2 or y.ndim != 1 or len(scores) != len(y) or len(y) == 0 or y.is_floating_point():
        raise ValueError(
            f"need (N, C) scores and (N,) class ids with N >= 1, got {tuple(scores.shape)} and {tuple(y.shape)} of "
            f"{y.dtype}"
        )
    return scores


def _confidence(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = _checked(probabilities, y).max(dim=1)
    return confidence, predicted == y


def _gap(confidence: Tensor, correct: Tensor, place: Tensor, bins: int) -> float:
    inside = place >= 0
    excess = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    excess.index_add_(0, place[inside], (confidence.double() - correct.double())[inside])
    return float(excess.abs().sum() / len(confidence))
