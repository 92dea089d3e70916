"""Draws of hyperparameters: equally many for every method, from the ranges that it declares and those of the training.

    value = quantile of the range at u,   u from hash(seed, method, parameter, number of the draw)

Every value has a hash of its own, so adding a parameter leaves the draws of the others as they are. Draw 0 is the
default. As in Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, arXiv 2007.01434; the
distributions are Optuna's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core import registry
from ..core.search import Choice, Log, Range
from .protocol import Protocol
from .spec import Spec, fingerprint

LR = Log(0.1, 5)
"""Of the learning rate, relative to the protocol's."""
WEIGHT_DECAY = Log(1e-6, 1e-2)


@dataclass(frozen=True)
class Draw:
    """parameters: of the method; budget: of its training. Both hold only what differs from the default."""

    number: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)


def draw(
    spec: Spec, number: int, seed: int, protocol: Protocol, *, keep_lr: bool, label_sd: Callable[[], float]
) -> Draw:
    """Draw `number` of a method for a seed. What the user gave is kept: parameters in `spec`, the rate if `keep_lr`.

    label_sd: the standard deviation of the training labels, the unit of some ranges.
    """
    if number == 0:
        return Draw()

    def value(name: str, within: Range) -> Any:
        found = sample(within, int(fingerprint([seed, spec.name, name, number])[:8], 16))
        if isinstance(within, Choice) or within.unit is None:
            return found
        return _rounded(found * label_sd())

    given = dict(spec.parameters)
    search = registry.info(spec.name).search
    parameters = {name: value(name, within) for name, within in search.items() if name not in given}
    budget = {"weight_decay": value("training.weight_decay", WEIGHT_DECAY)}
    if not keep_lr:
        budget["lr"] = _rounded(protocol.budget.lr * value("training.lr", LR))
    return Draw(number, parameters, budget)


def sample(within: Range, seed: int) -> Any:
    """One value of a range, numbers to four digits; the same for the same seed."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.samplers import RandomSampler

    distribution: BaseDistribution
    if isinstance(within, Choice):
        distribution = CategoricalDistribution(tuple(range(len(within.values))))
    else:
        distribution = FloatDistribution(within.low, within.high, log=isinstance(within, Log))
    # a random sampler looks at neither the study nor the trial
    found = RandomSampler(seed).sample_independent(None, None, "", distribution)  # type: ignore[arg-type]
    return within.values[found] if isinstance(within, Choice) else _rounded(found)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
