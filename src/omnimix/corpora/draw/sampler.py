"""Draw training rows by domain weights that may change in the middle of a run.

Step t takes B rows, n_i(t) of domain i:  counts="exact" keeps n_i near its plan, the sum of B w_i(s) over steps s <= t,
by largest remainders of what is owed; counts="random" draws every row's domain. The rows of a domain come in random
order, all once before any comes again.

What a step takes follows from the seed, the weights and the counts so far, not from who reads it: the state is a few
numbers, another number of ranks or workers goes on with it, and weights that change lose and repeat no row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ...core.checks import at_least, one_of
from ..mixture import Mixture
from .permute import permuted

Counts = Literal["exact", "random"]
Batches = Literal["mixed", "one-domain"]
AHEAD = 512
"""Rows of a domain that are computed together."""
REMEMBERED = 4096
"""For how many drawn batches the state can still be told: loaders fetch ahead of the training."""


class _State(NamedTuple):
    """After some steps: rows drawn (k,), rows owed by the plan (k,), and the weights (k,) where they were set."""

    drawn: np.ndarray
    plan: np.ndarray
    weights: np.ndarray | None


class DomainSampler(Sampler[list[int]]):
    """Yields batches of row numbers; a `batch_sampler` for PyTorch's DataLoader.

    sizes: rows of each domain, laid one after the other: row r of the domain named second is number sizes[first] + r,
    as `ConcatDataset` counts. mixture: a `Mixture`, constant or scheduled, or weights by name. batch_size: rows of a
    step over all ranks. steps: of the whole run; schedules are told by it. rank, ranks: which part of every batch to
    give, every ranks-th row. counts: "exact" or "random". batches: "mixed", or "one-domain": all rows of a step
    from one. rows: what a row is; weights in tokens fit "sequences" of equal length.

    `set_weights` changes the weights; `state_dict(step)` is the state after that many steps, for loaders that have
    fetched further. One pass over the sampler gives what is left of the run. ValueError for weights of empty or unknown
    domains, batches that ranks cannot share, and states of other runs.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        mixture: Mixture | Mapping[str, float],
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        counts: Counts = "exact",
        batches: Batches = "mixed",
        rows: Literal["sequences", "documents"] = "sequences",
    ) -> None:
        self.batch_size, self.steps = at_least("batch_size", batch_size, 1), at_least("steps", steps, 1)
        self.seed, self.ranks = at_least("seed", seed, 0), at_least("ranks", ranks, 1)
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must lie in 0..{ranks - 1}, got {rank}")
        if batch_size % ranks:
            raise ValueError(f"batch_size counts the rows of all ranks: {batch_size} cannot be shared by {ranks} ranks")
        self.rank, self.domains = rank, tuple(sizes)
        self.counts: Counts = one_of("counts", counts, ("exact", "random"))
        self.batches: Batches = one_of("batches", batches, ("mixed", "one-domain"))
        self.sizes = np.array([at_least(f"sizes[{name!r}]", size, 0) for name, size in sizes.items()], dtype=np.int64)
        self.start = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture, unit=rows)
        of = one_of("rows", rows, ("sequences", "documents"))
        fitting = ("sequences", "tokens") if of == "sequences" else ("documents",)
        if self.mixture.unit not in fitting:
            raise ValueError(
                f"the mixture's weights are shares of {self.mixture.unit}, but rows are {rows}: convert them by "
                f"mixture.to_unit({rows!r}, mean tokens of a row by domain)"
            )
        self._phases = [self._vector(phase.weights) for phase in self.mixture.phases]
        self._ahead: np.ndarray | None = None
        if batch_size <= AHEAD // 2:
            self._ahead, self._from = np.empty((len(sizes), AHEAD), dtype=np.int64), np.full(len(sizes), -AHEAD)
        self.step = 0
        self._now = _State(np.zeros_like(self.sizes), np.zeros(len(self.sizes)), None)
        self._past: deque[tuple[int, _State]] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return self.steps - self.step

    def __iter__(self) -> Iterator[list[int]]:
        while self.step < self.steps:
            yield self.draw().tolist()

    def draw(self) -> np.ndarray:
        """(batch_size / ranks,) the row numbers of this rank in the next step."""
        if self.step >= self.steps:
            raise ValueError(f"all {self.steps} steps are drawn")
        self._past.append((self.step, self._now))
        source = np.random.Generator(np.random.Philox(key=[self.seed, self.step]))
        weights = self.weights_now()
        plan = self._now.plan + self.batch_size * weights
        count = self._share_out(plan, weights, source)
        domain = np.repeat(np.arange(len(count)), count)
        nth = self._now.drawn[domain] + np.arange(self.batch_size) - np.repeat(np.cumsum(count) - count, count)
        mine = source.permutation(self.batch_size)[self.rank :: self.ranks]
        rows = self._rows(domain[mine], nth[mine])
        self._now = _State(self._now.drawn + count, plan, self._now.weights)
        self.step += 1
        return rows

    def weights_now(self) -> np.ndarray:
        """(k,) the weights of the next step."""
        if self._now.weights is not None:
            return self._now.weights
        done = min(self.step, self.steps - 1) / self.steps
        return self._phases[sum(phase.start <= done for phase in self.mixture.phases) - 1]

    def _share_out(self, plan: np.ndarray, weights: np.ndarray, source: np.random.Generator) -> np.ndarray:
        """(k,) how many rows of each domain the step takes."""
        if self.batches == "one-domain":
            owed = plan - self._now.drawn
            chosen = source.choice(len(plan), p=weights) if self.counts == "random" else _first(owed, weights)
            return np.where(np.arange(len(plan)) == chosen, self.batch_size, 0)
        if self.counts == "random":
            drawn: np.ndarray = source.multinomial(self.batch_size, weights)
            return drawn
        return largest_remainders(np.where(weights > 0, plan - self._now.drawn, 0.0), self.batch_size, weights > 0)

    def _rows(self, domain: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """The number of the nth row (0, 1, ..., over all epochs) that is drawn of each domain.

        For small batches, some hundred rows of a domain are computed together, which costs little more than one.
        """
        if self._ahead is None:
            return self._numbers(domain, nth)
        place = nth - self._from[domain]
        beyond = (place < 0) | (place >= AHEAD)
        if beyond.any():
            new = np.unique(domain[beyond])
            self._from[new] = self._now.drawn[new]
            there = self._from[new][:, None] + np.arange(AHEAD)
            self._ahead[new] = self._numbers(np.repeat(new, AHEAD), there.ravel()).reshape(there.shape)
            place = nth - self._from[domain]
        found: np.ndarray = self._ahead[domain, place]
        return found

    def _numbers(self, domain: np.ndarray, nth: np.ndarray) -> np.ndarray:
        epoch, place = np.divmod(nth, self.sizes[domain])
        rows: np.ndarray = self.start[domain] + permuted(place, self.sizes[domain], self.seed, domain, epoch)
        return rows

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """From the next step on, draw by these weights instead of the mixture's.

        Every rank must call it before it draws the same step. What was owed under the old weights is forgotten.
        """
        vector = self._vector(Mixture(weights).weights)
        self._now = _State(self._now.drawn, self._now.drawn.astype(np.float64), vector)

    def drawn(self) -> dict[str, int]:
        """Rows drawn so far by domain, over all ranks; divided by the sizes, the epochs."""
        return dict(zip(self.domains, self._now.drawn.tolist(), strict=True))

    def _vector(self, weights: Mapping[str, float]) -> np.ndarray:
        unknown = [name for name, weight in weights.items() if weight and name not in self.domains]
        if unknown:
            raise ValueError(f"sizes name no domain {unknown[0]!r}; there are {', '.join(self.domains)}")
        vector = np.array([weights.get(name, 0.0) for name in self.domains])
        empty = np.flatnonzero((vector > 0) & (self.sizes == 0))
        if len(empty):
            raise ValueError(f"the domain {self.domains[empty[0]]!r} has a weight, but no rows")
        shares: np.ndarray = vector / vector.sum()
        return shares

    def _facts(self) -> dict[str, Any]:
        sizes = dict(zip(self.domains, self.sizes.tolist(), strict=True))
        names = ("seed", "batch_size", "steps", "counts", "batches")
        return {"sizes": sizes, "mixture": self.mixture.to_dict(), **{name: getattr(self, name) for name in names}}

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """The state after `step` steps (default: all that were drawn): lists and numbers, as JSON holds them.

        ValueError for steps not yet drawn, and for those more than 4096 batches back.
        """
        known = {**dict(self._past), self.step: self._now}
        if (step := self.step if step is None else step) not in known:
            raise ValueError(f"step must lie in {min(known)}..{self.step}, got {step}")
        state = known[step]
        weights = None if state.weights is None else state.weights.tolist()
        return {
            "run": self._facts(), "step": step, "drawn": state.drawn.tolist(), "plan": state.plan.tolist(),
            "weights": weights,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with whatever number of ranks."""
        mine, other = self._facts(), state["run"]
        for name, value in mine.items():
            if other.get(name) != value:
                raise ValueError(f"the state is of a run with another {name}: {other.get(name)!r}, here {value!r}")
        weights = None if state["weights"] is None else np.array(state["weights"])
        self.step = int(state["step"])
        self._now = _State(np.array(state["drawn"], dtype=np.int64), np.array(state["plan"]), weights)
        self._past.clear()


def largest_remainders(owed: np.ndarray, total: int, allowed: np.ndarray) -> np.ndarray:
    """(k,) whole numbers >= 0 of sum `total` near `owed` (k,): floors, and one more where most is left.

    allowed: (k,) where there may be any. Equal remainders go to those named first.
    """
    count: np.ndarray = np.floor(np.where(allowed, owed, 0.0).clip(min=0)).astype(np.int64)
    left = owed - count
    places, missing = np.flatnonzero(allowed), total - int(count.sum())
    while missing > 0:
        most = places[np.argsort(-left[places], kind="stable")][:missing]
        count[most] += 1
        left[most] -= 1
        missing -= len(most)
    while missing < 0:  # some domains had got more than their plan
        some = np.flatnonzero(count > 0)
        least = some[np.argsort(left[some], kind="stable")][:-missing]
        count[least] -= 1
        left[least] += 1
        missing += len(least)
    return count


def _first(owed: np.ndarray, weights: np.ndarray) -> int:
    """The domain of positive weight to which most is owed."""
    return int(np.where(weights > 0, owed, -np.inf).argmax())
