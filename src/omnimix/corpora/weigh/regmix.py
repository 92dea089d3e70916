"""RegMix: gradient-boosted trees on many small runs, a simulation of many more mixtures, and the mean of the best.

Fit L(w) to runs on random mixtures (see `design`), predict it for 10^5..10^6 draws from the prior, and average the top
128: w* = mean of the w with the lowest predicted L. It rests on rank invariance: mixtures keep their order from small
to large models. Liu et al., "RegMix: Data Mixture as Regression for Language Model Pre-training", ICLR 2025,
arXiv 2407.01492. Cost: the runs (512 of 1M parameters on 1B tokens in the paper, 3.5e18 FLOPs); the fit takes a second.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...core.checks import at_least, positive
from .base import Array, Regressor

BLOCK = 50
"""Trees after which the search for the lowest drops the mixtures that can no longer be among them."""


class LightGBM(Regressor):
    """Gradient-boosted trees with the constants of RegMix: learning rate 0.01, 1000 rounds, seed 42, one thread.

    The paper's notebook stops early on the test losses, which leaks them; here the rounds are fixed. Trees do not
    extrapolate beyond the mixtures of the fit, and with fewer than about 40 runs (20 a leaf) they are constant.
    """

    def __init__(self, rounds: int = 1000, learning_rate: float = 0.01, leaf: int = 20, seed: int = 42) -> None:
        self.rounds, self.leaf, self.seed = at_least("rounds", rounds, 1), at_least("leaf", leaf, 1), seed
        self.learning_rate = positive("learning_rate", learning_rate)

    def _fit(self, x: Array, y: Array) -> None:
        lightgbm = _library()
        parameters = {
            "objective": "regression", "learning_rate": self.learning_rate, "min_data_in_leaf": self.leaf,
            "seed": self.seed, "num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1,
        }  # fmt: skip
        data = lightgbm.Dataset(x, y, params={"verbosity": -1, "num_threads": 1})
        self.trees = lightgbm.train(parameters, data, num_boost_round=self.rounds)

    def predict(self, weights: Array) -> Array:
        return _part(self.trees, np.asarray(weights, dtype=np.float64), 0, self.rounds)

    def lowest(self, weights: Array, k: int, penalty: Array | None = None, threads: int = 2) -> Array:
        """Exactly the rows of `Regressor.lowest`, several times as fast for a million of them.

        After each block of trees a row goes whose sum so far, with the lowest leaf of every tree to come, still
        exceeds the k-th lowest full prediction among the most promising rows.
        """
        x = np.asarray(weights, dtype=np.float64)
        extra = np.zeros(len(x)) if penalty is None else np.asarray(penalty, dtype=np.float64)
        if len(x) < 50 * k:
            return super().lowest(x, k, extra)
        least = self._least_leaves()
        with ThreadPoolExecutor(threads) as pool:  # LightGBM's own threads wait for one another on a busy machine
            parts = np.array_split(np.arange(len(x)), threads)
            # a model each: which trees a prediction adds up is state that LightGBM keeps in the model
            trees = [self.trees, *(copy.deepcopy(self.trees) for _ in parts[1:])]
            found = np.concatenate(
                list(pool.map(lambda t, rows: rows[self._pruned(t, x[rows], extra[rows], k, least)], trees, parts))
            )
        return np.asarray(found[super().lowest(x[found], k, extra[found])])

    def _pruned(self, trees: Any, x: Array, extra: Array, k: int, least: Array) -> Array:
        """Rows among which the k lowest are, in their order."""
        still_to_come = np.append(np.cumsum(least[::-1])[::-1], 0.0)
        rows, total = np.arange(len(x)), extra
        bound = np.inf
        for first in range(0, self.rounds, BLOCK):
            total = total + _part(trees, x[rows], first, min(BLOCK, self.rounds - first))
            done = min(first + BLOCK, self.rounds)
            if len(rows) > 8 * k:
                promising = rows[np.argpartition(total, 2 * k)[: 2 * k]]
                full = _part(trees, x[promising], 0, self.rounds) + extra[promising]
                bound = min(bound, float(np.partition(full, k - 1)[k - 1]))
                # a margin for sums that are rounded in another order
                alive = total + still_to_come[done] <= bound + 1e-9 * abs(bound)
                rows, total = rows[alive], total[alive]
        return rows

    def _least_leaves(self) -> Array:
        """(trees,) the smallest value that each tree can add."""
        lines = self.trees.model_to_string().splitlines()
        leaves = [line.split("=", 1)[1].split() for line in lines if line.startswith("leaf_value=")]
        least = np.zeros(self.rounds)
        least[: len(leaves)] = [min(map(float, values)) for values in leaves]
        return least


def _part(trees: Any, x: Array, first: int, count: int) -> Array:
    """What `count` trees from the `first` on add to the predictions."""
    return np.asarray(trees.predict(x, start_iteration=first, num_iteration=count, num_threads=1))


def _library() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise ImportError('the regressor lightgbm needs its package: pip install "omnimix[corpora]"') from None
    return lightgbm
