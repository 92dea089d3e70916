"""From runs to a mixture: fit a regressor, test it on other runs, propose, and put the baselines beside it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...core.checks import one_of
from ..mixture import Mixture
from .base import Array, Mean, Regressor
from .bimix import BiMix
from .design import MixtureDesign
from .dmo import AtBudget, TransferLaw
from .kl_search import kl_search
from .linear import OLS, Ridge
from .mixing_laws import MixingLaw
from .propose import convex, simulate, slsqp
from .regmix import LightGBM
from .run_table import RunTable
from .scores import DomainRanking, Score, domain_ranking, score, spearman
from .temperature import proportional, uniform

REGRESSORS: dict[str, type[Regressor]] = {
    "lightgbm": LightGBM, "ols": OLS, "ridge": Ridge, "mixing-law": MixingLaw, "bimix": BiMix,
    "transfer-law": TransferLaw,
}  # fmt: skip
PROPOSERS = ("simulate", "convex", "slsqp", "kl-search")
AVERAGE = "average"
"""The target that is the mean of all loss columns."""


@dataclass(frozen=True)
class Test:
    """What a regressor predicted for runs that it was not fitted to."""

    name: str
    runs: tuple[str, ...]
    predicted: Array
    measured: Array
    score: Score
    ranking: float
    """The rank correlation of the one-domain-weight ranking."""

    @property
    def best(self) -> int:
        """The position of the run with the lowest prediction."""
        return int(self.predicted.argmin())

    @property
    def place_of_best(self) -> int:
        """Which place that run takes by measured loss; 1 is the lowest."""
        return int((self.measured < self.measured[self.best]).sum()) + 1


@dataclass(frozen=True)
class How:
    """How a mixture is proposed; None where the regressor decides, or the proposer.

    candidates, top: of "simulate", and of each round of "kl-search". kl: of "convex" (0 by default) and "kl-search"
    (0.002). sizes: what the domains hold, for the proportional baseline, the simulation and caps; None: the mean of the
    fitted runs stands for their shares. caps: (k,) largest weights. extrapolate: whether a domain may get more weight
    than in any fitted run; a regressor knows nothing of such mixtures, and a linear one has its optimum there.
    parameters: more of `kl_search`: iterations, pull, upsampling, strength.
    """

    proposer: str | None = None
    candidates: int = 100_000
    top: int = 128
    kl: float | None = None
    seed: int = 42
    sizes: Mapping[str, float] | None = None
    caps: Array | None = None
    budget: float | None = None
    extrapolate: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The outcome for one regressor and one target."""

    regressor: str
    target: str
    domains: tuple[str, ...]
    model: Regressor
    tests: tuple[Test, ...]
    proposal: Mixture
    predicted: Mapping[str, float]
    """Predicted losses of the proposal and of the baselines "proportional" and "uniform"."""
    rivals: Mapping[str, Mixture]
    ranking: DomainRanking
    level: float
    """The mean loss of the fitted runs: the prediction of who knows nothing."""
    sizes_from: str
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The object that `omnimix weigh fit --json` prints."""
        return {
            "regressor": self.regressor,
            "target": self.target,
            "tests": [test.score.to_dict() for test in self.tests],
            "proposal": self.proposal.weights,
            "baselines": {
                "one-domain-weight": {
                    "domain": self.domains[self.ranking.domain],
                    "tests": [{"n": t.score.n, "spearman": _null(t.ranking)} for t in self.tests],
                },
                "constant": {
                    "predicted": self.level,
                    "tests": [
                        {"n": t.score.n, "mae": float(np.abs(t.measured - self.level).mean()),
                         "mse": float(((t.measured - self.level) ** 2).mean())}
                        for t in self.tests
                    ],
                },
                **{
                    name: {"weights": mixture.weights, "predicted": _null(self.predicted[name])}
                    | ({"shares_from": self.sizes_from} if name == "proportional" else {})
                    for name, mixture in self.rivals.items()
                },
            },
        }  # fmt: skip


def parse(text: str, parameters: Mapping[str, Any]) -> Callable[[int | None], Regressor]:
    """A function that makes the regressor `text` with `parameters`, told the position of its domain where it needs one.

    ValueError for an unknown name or parameter.
    """
    kind = REGRESSORS[one_of("regressor", text, REGRESSORS)]
    allowed = [name for name in inspect.signature(kind).parameters if name != "domain"]
    for name in parameters:
        if name not in allowed:
            raise ValueError(f"{text} has no parameter {name!r}; it takes {', '.join(allowed) or 'none'}")
    if kind.own_domain:
        return lambda domain: kind(domain, **parameters)  # type: ignore[call-arg]
    return lambda domain: kind(**parameters)


def fit(table: RunTable, target: str, make: Callable[[int | None], Regressor]) -> Regressor:
    """The regressor of a loss column; for "average", the mean of one for each column."""
    columns = table.metrics if target == AVERAGE else (table.metric(target),)
    parts = []
    for column in columns:
        own = table.own_domain(column) if _needs_domain(make) else None
        parts.append(make(own).fit(table.weights, table.loss(column)))
    return parts[0] if len(parts) == 1 else Mean(parts)


def study(
    table: RunTable, target: str, name: str, make: Callable[[int | None], Regressor],
    tests: Sequence[tuple[str, RunTable]] = (), how: How | None = None,
) -> Study:  # fmt: skip
    """Fit, test and propose. tests: name and runs; their domains may be in another order. See `How`."""
    how = how or How()
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fit(table, target, make)
        losses = _loss(table, target)
        ranking = domain_ranking(table.weights, losses)
        done = tuple(_test(model, ranking, label, other.ordered(table.domains), target) for label, other in tests)
        notes += dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))
    shares = Mixture(dict(zip(table.domains, table.weights.mean(0).tolist(), strict=True)))
    sizes = shares.weights if how.sizes is None else {d: how.sizes.get(d, 0.0) for d in table.domains}
    over_weights: Regressor = model
    if table.amounts:
        if how.budget is None:
            raise ValueError("a law over token amounts needs --budget, in the unit of the mixtures' file")
        over_weights = AtBudget(model, how.budget)
    if not (how.extrapolate or table.amounts):
        most = table.weights.max(0)
        how = replace(how, caps=most if how.caps is None else np.minimum(most, how.caps))
    proposal = Mixture(
        dict(zip(table.domains, propose(over_weights, sizes, how).tolist(), strict=True)),
        provenance={"method": name, "target": target, "runs": len(table), "proposer": how.proposer or model.proposer},
    )
    rivals = {"proportional": proportional(sizes), "uniform": uniform(table.domains)}
    predicted = {
        label: _predict(over_weights, mixture.vector(table.domains))
        for label, mixture in {"proposal": proposal, **rivals}.items()
    }
    origin = "the mean of the fitted runs" if how.sizes is None else "the given sizes"
    return Study(
        name, target if target == AVERAGE else table.metric(target), table.domains, model, done, proposal, predicted,
        rivals, ranking, float(losses.mean()), origin, tuple(notes),
    )  # fmt: skip


def propose(model: Regressor, sizes: Mapping[str, float], how: How) -> Array:
    """(k,) proposed weights over the domains of `sizes`, in their order."""
    proposer = one_of("proposer", how.proposer or model.proposer, PROPOSERS)
    k, generator = len(sizes), torch.Generator().manual_seed(how.seed)
    if how.kl and proposer not in ("convex", "kl-search"):
        raise ValueError(f"--kl belongs to the proposers convex and kl-search, not to {proposer}")
    for name in how.parameters:
        allowed = ("iterations", "pull", "upsampling", "strength") if proposer == "kl-search" else ()
        if name not in allowed:
            raise ValueError(f"{proposer} has no parameter {name!r}; it takes {', '.join(allowed) or 'none'}")
    shares = np.array(list(sizes.values()), dtype=np.float64)
    if proposer == "kl-search":
        given = {**how.parameters, **({} if how.kl is None else {"kl": how.kl})}
        return kl_search(
            model, shares, how.caps, candidates=how.candidates, top=how.top, generator=generator, **given
        )  # fmt: skip
    if proposer == "simulate":
        design = MixtureDesign(sizes, temperature=1.0, strength=(1.0, 1.0), strengths=1, cap=None)
        if how.caps is not None:
            design.caps = np.minimum(design.caps, how.caps)
        return simulate(model, design.candidates(how.candidates, generator), how.top)
    if proposer == "convex":
        return convex(model, k, how.caps, prior=shares if how.kl else None, kl=how.kl or 0.0)
    return slsqp(model, k, how.caps, generator=generator)


def epoch_caps(domains: Sequence[str], sizes: Mapping[str, float], budget: float, max_epochs: float) -> Array:
    """(k,) the largest weights with which a run of `budget` goes at most max_epochs times through each domain."""
    missing = [d for d in domains if d not in sizes]
    if missing:
        raise ValueError(f"sizes has no number for {', '.join(missing)}")
    return np.array([min(max_epochs * sizes[d] / budget, 1.0) for d in domains])


def invariance(tests: Sequence[Test], tables: Sequence[RunTable]) -> list[tuple[str, str, int, float]]:
    """(name, other name, n, rank correlation of measured losses) where two tests ran the same mixtures."""
    found = []
    for i, first in enumerate(tables):
        for j in range(i + 1, len(tables)):
            second = tables[j].ordered(first.domains)
            at = {tuple(row): position for position, row in enumerate(second.weights.round(9))}
            pairs = [(a, at[key]) for a, row in enumerate(first.weights.round(9)) if (key := tuple(row)) in at]
            if len(pairs) > 2:
                rows, others = np.array(pairs).T
                rho = spearman(tests[i].measured[rows], tests[j].measured[others])
                found.append((tests[i].name, tests[j].name, len(pairs), rho))
    return found


def _test(model: Regressor, ranking: DomainRanking, name: str, table: RunTable, target: str) -> Test:
    predicted, measured = model.predict(table.weights), _loss(table, target)
    ranked = spearman(ranking.ranks(table.weights), measured)
    return Test(name, table.runs, predicted, measured, score(predicted, measured), ranked)


def _loss(table: RunTable, target: str) -> Array:
    return np.asarray(table.losses.mean(1) if target == AVERAGE else table.loss(target))


def _predict(model: Regressor, weights: Array) -> float:
    """NaN where the law is not defined at these weights."""
    try:
        return float(model.predict(weights[None])[0])
    except ValueError:
        return math.nan


def _needs_domain(make: Callable[[int | None], Regressor]) -> bool:
    return make(0).own_domain


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
