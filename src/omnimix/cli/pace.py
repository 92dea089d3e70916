"""The time left of a comparison whose methods differ in cost.

    left = elapsed * sum_u n_u (1 - f_u) s_u / sum_u n_u f_u s_u

u: units of n runs of one method of which the share f is done; s: the seconds of such a run, the mean of those that have
ended, else what its declared cost says beside them. The ratio holds for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """A unit: runs of one method, each of so many epochs. cost: declared, of an epoch, relative to plain training."""

    method: str
    runs: int
    epochs: int
    cost: float


@dataclass
class Pace:
    """What runs take, learnt from those that have ended."""

    units: Sequence[Work]
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By method, the epochs and seconds of ended runs."""

    def ended(self, method: str, epochs: int, seconds: float) -> None:
        """A run has ended well."""
        known = self._seen.get(method, (0, 0.0))
        self._seen[method] = known[0] + epochs, known[1] + seconds

    def done(self, fractions: Iterable[float]) -> float:
        """The share of the work that is done. fractions: of each unit, how much of it is."""
        rates = self._rates()
        work = [unit.runs * unit.epochs * rates[unit.method] for unit in self.units]
        return sum(float(f) * w for f, w in zip(fractions, work, strict=False)) / (sum(work) or 1.0)

    def left(self, fractions: Iterable[float], elapsed: float) -> float | None:
        """Seconds that remain; None before anything is done."""
        done = self.done(fractions)
        return elapsed * (1 - done) / done if done > 0 else None

    def _rates(self) -> Mapping[str, float]:
        """Seconds of an epoch by method."""
        costs = {unit.method: unit.cost for unit in self.units}
        mean = {name: seconds / epochs for name, (epochs, seconds) in self._seen.items() if epochs and seconds > 0}
        known = [mean[name] / costs[name] for name in mean if costs.get(name)]
        usual = sum(known) / len(known) if known else 1.0
        return {name: mean.get(name, usual * cost) for name, cost in costs.items()}
