"""A mixture: which share of training each named domain gets, constant or in phases, in a stated unit.

Weights are a point w on the simplex, sum_i w_i = 1; a schedule is a step function t -> w(t) of the fraction t of the
run that is done, counted in the mixture's own unit: the whole run consumes sum_p (t_{p+1} - t_p) w(t_p).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ..core.checks import in_unit, one_of, positive

Unit = Literal["tokens", "sequences", "documents"]
UNITS: tuple[Unit, ...] = ("tokens", "sequences", "documents")
FORMAT = "omnimix-mixture-1"
EXACT = 1e-12
"""A sum this close to 1 is left alone, so that what is written and read again keeps every bit."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with constant weights: from the fraction `start` to the fraction `end` of it."""

    start: float
    end: float
    weights: Mapping[str, float]

    @property
    def length(self) -> float:
        """The fraction of the run that the phase lasts."""
        return self.end - self.start


class Mixture:
    """Named domain weights, with their unit, their caps and where they come from. Immutable.

    weights: a number >= 0 for each domain, in any scale (they are divided by their sum), for a constant mixture; or
    pairs (start, weights) for a schedule, where start is the fraction of the run, counted in `unit`, at which these
    weights begin; the first is 0. A domain that a phase does not name has weight 0 there.
    unit: of what the weights are shares: "tokens", packed "sequences" or "documents".
    caps: the largest share that a domain may have in any phase. provenance: facts on how the weights came about, as
    JSON can hold them.

    ValueError for weights that are negative, not finite or all 0, for phases out of order, and for broken caps.
    """

    __slots__ = ("caps", "domains", "phases", "provenance", "unit")

    domains: tuple[str, ...]
    phases: tuple[Phase, ...]
    unit: Unit
    caps: Mapping[str, float]
    provenance: Mapping[str, Any]

    def __init__(
        self,
        weights: Mapping[str, float] | Iterable[tuple[float, Mapping[str, float]]],
        *,
        unit: str = "tokens",
        caps: Mapping[str, float] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        one_of("unit", unit, UNITS)
        given = [(0.0, weights)] if isinstance(weights, Mapping) else list(weights)
        starts = [float(in_unit("start", start)) for start, _ in given]
        if not given or starts[0] != 0 or any(b <= a for a, b in pairwise([*starts, 1.0])):
            raise ValueError(f"the starts of the phases must begin at 0 and increase, below 1, got {starts}")
        domains = tuple(dict.fromkeys(str(domain) for _, one in given for domain in one))
        phases = tuple(
            Phase(start, end, _normalised(one, domains))
            for (_, one), start, end in zip(given, starts, [*starts[1:], 1.0], strict=True)
        )
        limits = {str(domain): float(in_unit(f"caps[{domain!r}]", cap)) for domain, cap in (caps or {}).items()}
        for domain, cap in limits.items():
            one_of("caps", domain, domains)
            for phase in phases:
                if phase.weights[domain] > cap + 1e-9:
                    raise ValueError(
                        f"the cap of {domain!r} is {cap:g}, but its weight from {phase.start:g} of the run on is "
                        f"{phase.weights[domain]:g}"
                    )
        try:
            facts = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance must be what JSON can hold: {error}") from None
        values = {"domains": domains, "phases": phases, "unit": unit, "caps": limits, "provenance": facts}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Mixture does not change: make a new one instead of setting {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mixture) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.unit, *((p.start, frozenset(p.weights.items())) for p in self.phases)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        def shown(weights: Mapping[str, float]) -> str:
            return "{" + ", ".join(f"{domain!r}: {w:.4g}" for domain, w in weights.items()) + "}"

        inside = (
            shown(self.weights) if self.constant
            else "[" + ", ".join(f"({p.start:g}, {shown(p.weights)})" for p in self.phases) + "]"
        )  # fmt: skip
        return f"Mixture({inside}, unit={self.unit!r})"

    @property
    def constant(self) -> bool:
        """Whether the weights stay the same over the run."""
        return len(self.phases) == 1

    @property
    def weights(self) -> dict[str, float]:
        """The weights of a constant mixture; ValueError for a schedule, whose order no one vector can say."""
        if not self.constant:
            raise ValueError(
                f"the mixture has {len(self.phases)} phases: ask at(fraction), phases, or overall() for what the "
                "whole run consumes"
            )
        return dict(self.phases[0].weights)

    def at(self, fraction: float) -> dict[str, float]:
        """The weights when `fraction` (0 to 1) of the run is done; a phase holds from its start, inclusive."""
        in_unit("fraction", fraction)
        return dict(next(phase for phase in reversed(self.phases) if phase.start <= fraction).weights)

    def vector(self, domains: Sequence[str] | None = None, fraction: float = 0.0) -> np.ndarray:
        """(k,) float64 weights at a fraction of the run, in the order of `domains` (default: the mixture's own).

        ValueError where `domains` is not the mixture's domains in some order.
        """
        order = self.domains if domains is None else tuple(domains)
        if set(order) != set(self.domains) or len(order) != len(self.domains):
            missing, more = set(self.domains) - set(order), set(order) - set(self.domains)
            raise ValueError(f"domains must name the mixture's: {sorted(missing)} missing, {sorted(more)} unknown")
        weights = self.at(fraction)
        return np.array([weights[domain] for domain in order], dtype=np.float64)

    def overall(self) -> Mixture:
        """The constant mixture that consumes as much of every domain over the run: the control of a schedule."""
        total = {d: math.fsum(p.length * p.weights[d] for p in self.phases) for d in self.domains}
        return Mixture(total, unit=self.unit, provenance={"overall": self.to_dict()})

    def consumption(self, budget: float) -> dict[str, float]:
        """How much of every domain a run of `budget` units draws."""
        positive("budget", budget)
        return {d: budget * math.fsum(p.length * p.weights[d] for p in self.phases) for d in self.domains}

    def epochs(self, budget: float, sizes: Mapping[str, float], max_epochs: float | None = None) -> dict[str, float]:
        """How often a run of `budget` units goes through every domain; sizes: what each domain holds, in `unit`.

        ValueError for a drawn domain without size and, where `max_epochs` is given, for one drawn more often.
        """
        result = {}
        for domain, drawn in self.consumption(budget).items():
            if drawn and not sizes.get(domain, 0) > 0:
                raise ValueError(f"sizes must give {domain!r} a number of {self.unit} > 0, got {sizes.get(domain)!r}")
            result[domain] = drawn / sizes[domain] if drawn else 0.0
            if max_epochs is not None and result[domain] > max_epochs * (1 + 1e-9):
                raise ValueError(
                    f"a run of {budget:g} {self.unit} goes {result[domain]:.4g} times through {domain!r} "
                    f"({sizes[domain]:g} {self.unit}); max_epochs is {max_epochs:g}: lower its weight to "
                    f"{max_epochs * sizes[domain] / budget:.4g} or the budget"
                )
        return result

    def without(self, *removed: str) -> Mixture:
        """The mixture without some domains, the others' ratios kept; the removal experiment of a last phase."""
        for domain in removed:
            one_of("removed", domain, self.domains)
        kept = [d for d in self.domains if d not in removed]
        for phase in self.phases:
            if not any(phase.weights[d] for d in kept):
                raise ValueError(f"without {', '.join(removed)} nothing is left from {phase.start:g} of the run on")
        return Mixture(
            [(p.start, {d: p.weights[d] for d in kept}) for p in self.phases],
            unit=self.unit, provenance={**self.provenance, "removed": list(removed)},
        )  # fmt: skip

    def to_unit(self, unit: str, tokens: Mapping[str, float]) -> Mixture:
        """The same mixture in another unit; one of the two is "tokens".

        tokens: mean tokens of a document (or sequence) of every domain: w_document ~ w_token / tokens. The starts of
        phases move too, for a run that is half done in tokens need not be half done in documents. Caps, which are
        shares of the old unit, are dropped.
        """
        one_of("unit", unit, UNITS)
        if unit == self.unit:
            return self
        if "tokens" not in (unit, self.unit):
            raise ValueError(f"convert {self.unit} to tokens first, and tokens to {unit} then")
        for domain in self.domains:
            if not (tokens.get(domain, 0) > 0 and math.isfinite(tokens[domain])):
                raise ValueError(f"tokens must give {domain!r} a mean length > 0, got {tokens.get(domain)!r}")
        factor = {d: 1 / tokens[d] if self.unit == "tokens" else tokens[d] for d in self.domains}
        amounts = [{d: p.weights[d] * factor[d] for d in self.domains} for p in self.phases]
        lengths = [p.length * math.fsum(one.values()) for p, one in zip(self.phases, amounts, strict=True)]
        starts = [math.fsum(lengths[:i]) / math.fsum(lengths) for i in range(len(lengths))]
        return Mixture(zip(starts, amounts, strict=True), unit=unit, provenance=self.provenance)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` gives an equal mixture."""
        phases = [{"start": p.start, "weights": dict(p.weights)} for p in self.phases]
        body: dict[str, Any] = {"weights": phases[0]["weights"]} if self.constant else {"phases": phases}
        return {
            "format": FORMAT, "unit": self.unit, **body, "caps": dict(self.caps), "provenance": dict(self.provenance)
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mixture:
        """What `to_dict` made; ValueError for anything else."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or ("weights" in data) == ("phases" in data):
            raise ValueError(f'a mixture is an object with "format": "{FORMAT}" and "weights" or "phases"')
        if "weights" in data:
            weights: Any = data["weights"]
        else:
            weights = [(phase["start"], phase["weights"]) for phase in data["phases"]]
        rest = {name: data.get(name) for name in ("caps", "provenance")}
        return cls(weights, unit=data.get("unit", "tokens"), **cast(dict[str, Any], rest))

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Mixture:
        """Read what `save` wrote; ValueError that names the file for anything else."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None


def _normalised(weights: Mapping[str, float], domains: Sequence[str]) -> dict[str, float]:
    """A float for every domain, with sum 1."""
    for domain, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
            raise ValueError(f"the weight of {domain!r} must be a number, got {weight!r}")
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"the weight of {domain!r} must be a finite number >= 0, got {weight!r}")
    total = math.fsum(weights.values())
    if not total > 0:
        raise ValueError(f"some weight must be > 0, got {dict(weights)}")
    if abs(total - 1) <= EXACT:
        total = 1.0
    return {domain: float(weights.get(domain, 0.0)) / total for domain in domains}
