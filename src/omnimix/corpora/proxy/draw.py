"""Which sequences a step trains on: domains by weights that may change at every step, sequences without replacement.

Within a domain all sequences come once, in random order, before any comes again. The draws depend on the seed and on
the weights only: every rank draws the whole batch and keeps its own rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...core.random import permutation


class Draw:
    """sizes: (k,) sequences of each domain."""

    def __init__(self, sizes: np.ndarray, seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = np.zeros(len(sizes), dtype=np.int64)
        """(k,) sequences drawn so far; divided by `sizes`, the epochs of each domain."""
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def by_weights(self, weights: torch.Tensor, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(domain, index), (B,) each: every row's domain is drawn independently with probabilities `weights` (k,)."""
        if not (torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(f"domain weights must be finite, >= 0 and not all 0, got {weights.tolist()}")
        domain = torch.multinomial(weights.double(), batch, replacement=True, generator=self.generator)
        return self._take(domain.numpy())

    def one_domain(self, weights: torch.Tensor, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The same with one domain for the whole batch."""
        domain = int(torch.multinomial(weights.double(), 1, generator=self.generator))
        return self._take(np.full(batch, domain))

    def equally(self, domains: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """As equally many rows of each of `domains` as go into the batch; which get one more is drawn."""
        each, more = divmod(batch, len(domains))
        extra = permutation(len(domains), self.generator)[:more].numpy()
        return self._take(np.concatenate((np.repeat(domains, each), domains[extra])))

    def _take(self, domain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.empty(len(domain), dtype=np.int64)
        for number in np.unique(domain).tolist():
            if not self.sizes[number]:
                raise ValueError(f"domain {number} has a weight, but no sequences")
            rows = np.flatnonzero(domain == number)
            place = self.drawn[number] + np.arange(len(rows))
            epoch, within = np.divmod(place, self.sizes[number])
            for one in np.unique(epoch).tolist():
                index[rows[epoch == one]] = self._permuted(number, one)[within[epoch == one]]
            self.drawn[number] += len(rows)
        return domain, index

    def _permuted(self, domain: int, epoch: int) -> np.ndarray:
        if self._order.get(domain, (-1, None))[0] != epoch:
            own = torch.Generator().manual_seed((self.seed * 1_000_003 + domain) * 1_000_003 + epoch & (2**62 - 1))
            self._order[domain] = epoch, permutation(int(self.sizes[domain]), own).numpy()
        return self._order[domain][1]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "drawn": torch.from_numpy(self.drawn.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.drawn = state["drawn"].numpy().copy()
