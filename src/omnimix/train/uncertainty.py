"""Is an input unlike the training data? Scores from logits (N, K), larger meaning more uncertain, and how they rank.

Entropy, 1 - max probability, energy (Liu et al., NeurIPS 2020) and Dempster-Shafer (Sensoy et al., NeurIPS 2018), as
used by RegMixup (NeurIPS 2022, arXiv 2206.14502).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.checks import positive


def entropy(logits: Tensor) -> Tensor:
    """-sum_k p_k log p_k, in nats."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def doubt(logits: Tensor) -> Tensor:
    """1 - max_k p_k."""
    return 1 - logits.softmax(dim=1).amax(dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T log sum_k exp(z_k / T)."""
    positive("temperature", temperature)
    return -temperature * (logits / temperature).logsumexp(dim=1)


def dempster_shafer(logits: Tensor) -> Tensor:
    """K / (K + sum_k exp z_k), computed without overflow."""
    return torch.sigmoid(math.log(logits.shape[1]) - logits.logsumexp(dim=1))


SCORES = {"entropy": entropy, "doubt": doubt, "energy": energy, "dempster-shafer": dempster_shafer}


def detect(inside: Tensor, outside: Tensor) -> dict[str, dict[str, float]]:
    """AUROC and AUPR (average precision) of every score at telling `outside` logits (positive) from `inside` ones."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = torch.cat((torch.zeros(len(inside)), torch.ones(len(outside)))).numpy()
    logits, found = torch.cat((inside, outside)).double(), {}
    for name, score in SCORES.items():
        values = score(logits).cpu().numpy()
        found[name] = {
            "auroc": float(roc_auc_score(truth, values)),
            "aupr": float(average_precision_score(truth, values)),
        }
    return found
