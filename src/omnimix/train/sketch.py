"""The predictions of a test set in a few numbers, enough to draw them: how sure and how right, or how near the truth.

Classification: counts, summed confidences and hits of `BINS` equal bins of the largest probability (a reliability
diagram). Multi-label: the same of every label's probability. Regression: for each of up to `OUTPUTS` outputs, `BINS`
equal shares of the rows by their true value: its mean, and mean, 10 % and 90 % quantile of the predictions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.task import Task

BINS = 15
OUTPUTS = 4


def sketch(task: Task, prediction: Tensor, y: Tensor) -> dict[str, Any]:
    """What to keep of `predictions`, as JSON has it: {"reliability": ...} or {"bands": ...}; {} for dense targets.

    prediction, y: as `evaluate.predict` gives them.
    """
    if task.name == "regression":
        return {"bands": [bands(prediction[:, d], y[:, d]) for d in range(min(OUTPUTS, y.shape[1]))]}
    if task.name == "multilabel":
        return {"reliability": reliability(prediction.flatten(), (y > 0.5).flatten())}
    if prediction.ndim != 2 or y.ndim != 1:
        return {}
    confidence, chosen = prediction.max(dim=1)
    return {"reliability": reliability(confidence, chosen == y)}


def reliability(confidence: Tensor, hit: Tensor, bins: int = BINS) -> dict[str, list[float]]:
    """{"count", "confidence", "hits"}: rows, summed confidence and right ones of equal bins (lo, hi] of [0, 1].

    confidence: (N,) probabilities. hit: (N,) whether each came true. A confidence of exactly 0 is in the first bin.
    """
    edges = torch.arange(1, bins, dtype=confidence.dtype, device=confidence.device) / bins
    place = torch.bucketize(confidence, edges)
    count = place.bincount(minlength=bins)
    total = place.bincount(confidence.double(), minlength=bins)
    hits = place.bincount(hit.double(), minlength=bins)
    return {
        "count": count.tolist(),
        "confidence": [round(value, 6) for value in total.tolist()],
        "hits": [int(value) for value in hits.tolist()],
    }


def bands(prediction: Tensor, y: Tensor, bins: int = BINS) -> dict[str, list[float]]:
    """{"true", "mean", "low", "high"}: a number for each of up to `bins` equal shares of the rows (N,) by y."""
    order = torch.argsort(y, stable=True)
    found: dict[str, list[float]] = {"true": [], "mean": [], "low": [], "high": []}
    edge = torch.tensor([0.1, 0.9], dtype=torch.float64)
    for rows in torch.tensor_split(order, min(bins, len(order))):
        low, high = prediction[rows].double().quantile(edge).tolist()
        mean = prediction[rows].double().mean().item()
        for name, value in (("true", y[rows].double().mean().item()), ("mean", mean), ("low", low), ("high", high)):
            found[name].append(float(f"{value:.6g}"))
    return found
