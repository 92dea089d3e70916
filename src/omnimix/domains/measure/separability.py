"""How well domains can be told apart by features (N, F): by a linear classifier, and by nearest neighbours.

    A-distance = 2 (1 - 2 error)      purity = mean share of the k nearest neighbours that have a sample's own domain

Source of the A-distance: Ben-David, Blitzer, Crammer, Pereira, "Analysis of Representations for Domain Adaptation",
NeurIPS 2006. The classifier is logistic regression on standardised features, tested by cross-validation, and domains
weigh alike whatever their sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import at_least

LARGEST = 2**24
"""Distances held at once."""


def linear_domain_accuracy(features: Tensor, domain: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """The mean over domains of the share of samples whose domain (N,) a linear classifier tells; chance is 1 / D.

    folds >= 2: of cross-validation, in each of which every domain must have a sample. seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    at_least("folds", folds, 2)
    counts = torch.unique(domain, return_counts=True)[1]
    if len(counts) < 2 or int(counts.min()) < folds:
        raise ValueError(f"two domains or more with {folds} samples or more each are needed, got {counts.tolist()}")
    x, y = features.detach().flatten(1).double().cpu().numpy(), domain.cpu().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(balanced_accuracy_score(y, cross_val_predict(model, x, y, cv=split)))


def proxy_a_distance(source: Tensor, target: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """The A-distance of features (N, F) and (M, F): 2 for separable ones, about 0, and by chance below, for alike."""
    domain = torch.cat((torch.zeros(len(source)), torch.ones(len(target)))).long()
    both = torch.cat((source.flatten(1).cpu(), target.flatten(1).cpu()))
    return 2 * (2 * linear_domain_accuracy(both, domain, folds=folds, seed=seed) - 1)


def domain_purity(features: Tensor, domain: Tensor, k: int = 10) -> float:
    """The mean share of the k nearest other samples, by Euclidean distance, that are of a sample's own domain (N,)."""
    at_least("k", k, 1)
    z, count = features.detach().flatten(1), len(features)
    if k >= count:
        raise ValueError(f"k = {k} neighbours need more than {k} samples, got {count}")
    own = []
    for rows in torch.split(torch.arange(count, device=z.device), max(1, LARGEST // count)):
        distance = torch.cdist(z[rows], z)
        distance[torch.arange(len(rows)), rows] = torch.inf
        near = distance.topk(k, largest=False).indices
        own.append((domain[near] == domain[rows].unsqueeze(1)).double().mean(dim=1))
    return float(torch.cat(own).mean())
