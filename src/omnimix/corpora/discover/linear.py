"""A linear classifier of texts that learns from soft labels: TF-IDF, softmax, and a prior at its earlier weights.

    min_W  sum_i CE(t_i, softmax(W x_i + b)) + strength/2 |W - W_0|^2

t_i: a distribution over classes. W_0 is 0 in the first fit and the fitted W afterwards: many cheap annotations first,
few strong ones then, move the weights as far as the strong ones have something to say. Convex; solved by L-BFGS. Cost:
seconds for 10,000 documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ...core.checks import at_least, positive
from .embed import BLOCK, Array, Tfidf


class TfidfClassifier:
    """Class probabilities of texts. The words are chosen in the first fit.

    strength: of the prior, in documents; 1/strength is scikit-learn's C. steps: of L-BFGS at most. tolerance: of the
    largest derivative, for the mean loss.
    """

    kind = "linear"

    def __init__(
        self, tfidf: Tfidf | None = None, *, strength: float = 0.1, steps: int = 200, tolerance: float = 1e-5
    ) -> None:  # fmt: skip
        self.tfidf, self.strength = tfidf or Tfidf(), positive("strength", strength)
        self.steps, self.tolerance = at_least("steps", steps, 1), positive("tolerance", tolerance)
        self.weight: Array | None = None
        self.bias: Array | None = None

    def fit(
        self, texts: Sequence[str], targets: Array, validation: tuple[Sequence[str], Array] | None = None,
        generator: torch.Generator | None = None,
    ) -> TfidfClassifier:  # fmt: skip
        """Fit to (N, C) target distributions. Without chance; it needs neither validation nor a generator."""
        x = self.tfidf.fit_transform(texts) if self.weight is None else self.tfidf(texts)
        rows, classes = targets.shape
        if self.weight is None or self.bias is None:
            # from log-frequencies, since rare classes are known before any word is
            self.weight = np.zeros((x.shape[1], classes))
            self.bias = np.log(targets.mean(0) + 1 / (rows + classes))
        elif self.weight.shape[1] != classes:
            raise ValueError(f"the first fit had {self.weight.shape[1]} classes, these targets have {classes}")
        prior, size = self.weight, self.weight.size
        target = targets.astype(np.float32)
        transposed = x.T.tocsr()

        def loss(flat: Array) -> tuple[float, Array]:
            weight, bias = flat[:size].reshape(prior.shape), flat[size:]
            z = np.asarray(x @ weight.astype(np.float32)) + bias.astype(np.float32)
            log_p = log_softmax(z, axis=1)
            moved = weight - prior
            value = -float((target * log_p).sum(dtype=np.float64)) + self.strength / 2 * float((moved**2).sum())
            # targets may have rows that sum to 1 in float32 only
            error = np.exp(log_p) * target.sum(1, keepdims=True) - target
            slope = np.concatenate([
                (np.asarray(transposed @ error) + self.strength * moved).ravel(), error.sum(0, dtype=np.float64)
            ])  # fmt: skip
            return value / rows, slope / rows

        start = np.concatenate([prior.ravel(), self.bias])
        options = {"maxiter": self.steps, "gtol": self.tolerance, "ftol": 0.0, "maxcor": 6}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
        self.weight, self.bias = found[:size].reshape(prior.shape), found[size:]
        return self

    def probabilities(self, texts: Sequence[str]) -> Array:
        """(N, C) class probabilities."""
        if self.weight is None or self.bias is None:
            raise ValueError("fit the classifier first")
        weight = self.weight.astype(np.float32)
        parts = [
            softmax(np.asarray(self.tfidf(texts[i : i + BLOCK]) @ weight, dtype=np.float64) + self.bias, axis=1)
            for i in range(0, len(texts), BLOCK)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.weight.shape[1]))

    def state_dict(self) -> dict[str, Any]:
        if self.weight is None or self.bias is None:
            raise ValueError("fit the classifier first")
        return {
            "tfidf": self.tfidf.state_dict(), "strength": self.strength, "steps": self.steps,
            "tolerance": self.tolerance, "weight": torch.from_numpy(self.weight.astype(np.float32)),
            "bias": torch.from_numpy(self.bias),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TfidfClassifier:
        settings = {name: state[name] for name in ("strength", "steps", "tolerance")}
        found = cls(Tfidf.from_state(state["tfidf"]), **settings)
        found.weight, found.bias = state["weight"].numpy().astype(np.float64), state["bias"].numpy()
        return found
