"""Loss curves as power laws, L(s) = c + k s^-alpha, to read off the loss at steps or sizes that were not trained.

Several curves may share one exponent, as in the data mixing laws (Ye et al., ICLR 2025, arXiv 2403.16952). For a given
alpha the best c, k >= 0 are a linear least-squares problem, so that only alpha is searched. Cost: none beside the runs.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from ...core.checks import positive
from .base import Array

EXPONENTS = np.geomspace(0.01, 4.0, 60)
"""Where the search for alpha begins."""


class PowerLaws:
    """m curves c_j + k_j s^-alpha with one alpha. Constants: `alpha`, `floor` (m,) for c and `scale` (m,) for k."""

    def fit(self, sizes: Array, losses: Array) -> PowerLaws:
        """sizes: (n,) numbers > 0 (steps, tokens or parameters). losses: (m, n), one curve a row. Returns itself."""
        s, y = np.asarray(sizes, dtype=np.float64), np.atleast_2d(np.asarray(losses, dtype=np.float64))
        if y.shape[1] != len(s) or len(np.unique(s)) < 3:
            raise ValueError(f"a power law needs losses at three sizes or more, got {y.shape} losses at {len(s)} sizes")
        if not (np.isfinite(y).all() and np.isfinite(s).all() and (s > 0).all()):
            raise ValueError("sizes must be finite and > 0, and losses finite")
        self.unit = float(np.exp(np.log(s).mean()))  # near 1 the two columns of the linear problem are alike in size

        def error(log_alpha: float) -> float:
            return self._solve(s, y, float(np.exp(log_alpha)))[2]

        grid = np.log(EXPONENTS)
        best = int(np.argmin([error(a) for a in grid]))
        within = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        found = minimize_scalar(error, bounds=within, method="bounded", options={"xatol": 1e-10})
        self.alpha = float(np.exp(found.x))
        self.floor, self.scale, self.residual = self._solve(s, y, self.alpha)
        return self

    def _solve(self, s: Array, y: Array, alpha: float) -> tuple[Array, Array, float]:
        basis = np.stack([np.ones_like(s), (s / self.unit) ** -alpha], axis=1)
        solved = [nnls(basis, row) for row in y]
        constants = np.array([one[0] for one in solved])
        return constants[:, 0], constants[:, 1], float(sum(one[1] ** 2 for one in solved))

    def predict(self, size: float) -> Array:
        """(m,) the loss of every curve at a size."""
        return np.asarray(self.floor + self.scale * (positive("size", size) / self.unit) ** -self.alpha)
