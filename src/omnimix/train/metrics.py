"""Scores of predictions: pure functions of (predictions, targets), in float64.

Classification: probabilities (N, C), class ids (N,). Multi-label: probabilities (N, C), multi-hot (N, C).
Regression: real values (N, D) or (N,), both alike. Calibration errors are in `calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean as mean

import torch
from torch import Tensor

from ..core.checks import one_of
from ..core.task import Task
from .calibration import adaptive_ece, brier, ece, nll


def accuracy(probabilities: Tensor, y: Tensor) -> float:
    """The share of rows whose most probable class is the true one."""
    return (probabilities.argmax(dim=1) == y).double().mean().item()


def label_accuracy(probabilities: Tensor, y: Tensor) -> float:
    """The share of labels predicted right at the threshold 0.5, mean over rows and labels."""
    return ((probabilities > 0.5) == (y > 0.5)).double().mean().item()


def label_nll(probabilities: Tensor, y: Tensor) -> float:
    """Binary cross-entropy in nats, mean over rows and labels."""
    return torch.nn.functional.binary_cross_entropy(probabilities.double(), y.double()).item()


def mean_average_precision(probabilities: Tensor, y: Tensor) -> float:
    """Average precision, mean over the labels that have a positive; NaN if none has."""
    from sklearn.metrics import average_precision_score

    some = (y > 0.5).any(dim=0)
    if not bool(some.any()):
        return math.nan
    return float(average_precision_score((y[:, some] > 0.5).numpy(), probabilities[:, some].double().numpy()))


def rmse(prediction: Tensor, y: Tensor) -> float:
    """Root of the mean squared error over rows and outputs."""
    return (prediction.double() - y.double()).square().mean().sqrt().item()


def mae(prediction: Tensor, y: Tensor) -> float:
    """Mean absolute error over rows and outputs."""
    return (prediction.double() - y.double()).abs().mean().item()


def mape(prediction: Tensor, y: Tensor) -> float:
    """Mean of |prediction - y| / |y| in percent over targets that are not 0; NaN if all are."""
    kept = y != 0
    target = y[kept].double()
    return 100 * ((prediction[kept].double() - target) / target).abs().mean().item()


def r2(prediction: Tensor, y: Tensor) -> float:
    """Coefficient of determination, mean over outputs; NaN where the targets of an output are all the same."""
    y, error = y.double(), prediction.double() - y.double()
    total = (y - y.mean(dim=0)).square().sum(dim=0)
    return torch.where(total > 0, 1 - error.square().sum(dim=0) / total, math.nan).mean().item()


Metric = Callable[[Tensor, Tensor], float]

METRICS: dict[str, dict[str, Metric]] = {
    "classification": {"accuracy": accuracy, "nll": nll, "ece": ece, "adaptive_ece": adaptive_ece, "brier": brier},
    "multilabel": {"accuracy": label_accuracy, "nll": label_nll, "map": mean_average_precision},
    "regression": {"rmse": rmse, "mae": mae, "mape": mape, "r2": r2},
}
"""By task; the first one is the headline, which is also reported per domain."""

HIGHER_IS_BETTER = frozenset({"accuracy", "map", "r2"})
OVER_DOMAINS = ("worst_domain", "mean_domain")
"""The headline of the worst domain, and its mean over domains, each of them counting the same whatever its size."""


def headline(task: Task) -> str:
    """The metric that stands for the task: accuracy, or RMSE."""
    return next(iter(METRICS[task.name]))


def higher_is_better(task: Task, metric: str) -> bool:
    """Whether to maximise `metric` ("loss", a metric of the task, or one of `OVER_DOMAINS`)."""
    return (headline(task) if metric in OVER_DOMAINS else metric) in HIGHER_IS_BETTER


def domain_scores(task: Task, prediction: Tensor, y: Tensor, domain: Tensor) -> dict[int, float]:
    """The headline metric of every domain."""
    metric = METRICS[task.name][headline(task)]
    return {int(d): metric(prediction[domain == d], y[domain == d]) for d in torch.unique(domain)}


def scores(
    task: Task, prediction: Tensor, y: Tensor, domain: Tensor | None = None, names: Iterable[str] | None = None
) -> dict[str, float]:
    """The metrics `names` (None: all of the task) of predictions as `Task.predict` gives them.

    With `domain` (N,), also "worst_domain" (largest RMSE, or smallest accuracy, of a domain), "mean_domain" where it is
    named, and with them the headline of each domain as "rmse@3". ValueError for a metric that the task does not have.
    """
    known = METRICS[task.name]
    wanted = [*known, *([] if domain is None else ["worst_domain"])] if names is None else list(names)
    found = {}
    for name in wanted:
        if name in OVER_DOMAINS:
            if domain is None:
                raise ValueError(f"the metric {name!r} needs data with a domain column")
            by_domain = domain_scores(task, prediction, y, domain)
            worst = min if headline(task) in HIGHER_IS_BETTER else max
            found[name] = mean(by_domain.values()) if name == "mean_domain" else worst(by_domain.values())
            found.update({f"{headline(task)}@{d}": value for d, value in by_domain.items()})
        else:
            found[name] = known[one_of("metric", name, [*known, *OVER_DOMAINS])](prediction, y)
    return found
