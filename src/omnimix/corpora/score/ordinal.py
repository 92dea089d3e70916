"""A quality scorer learned from ratings on an ordered scale: how probable is it that a document reaches each level?

    P(q >= m | x) = sigmoid(w_m x + b_m),  m = 1..M;  q(x) = sum_m P(q >= m | x)  in 0..M,

fitted by binary cross-entropy on the targets [q >= m], so that a near miss costs less than a far one, which a plain
classifier does not know. The quality scorer of SampleMix (EMNLP Findings 2025) is such a head on a small encoder; here
it stands on TF-IDF and on what a text looks like. Cost: seconds for some thousand ratings.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from ...core.checks import at_least, positive
from ..annotation import Document, texts
from ..discover.embed import CHARACTERS, Array, Tfidf
from .base import QUALITY

LEVELS = 10
SURFACE = (
    "characters", "letters", "capitals", "digits", "marks", "blanks", "lines", "repeated lines", "short lines",
    "words", "word length", "different words", "sentence length", "ended lines", "packed size",
)  # fmt: skip


class OrdinalQuality:
    """Learns the ratings 0..levels of documents and writes the expected rating of others into the column `name`.

    tfidf: the words. strength: of the L2 prior of the weights, in documents. steps: of L-BFGS at most.
    """

    def __init__(
        self, levels: int = LEVELS, *, tfidf: Tfidf | None = None, strength: float = 1.0, steps: int = 200,
        text: str = "text", name: str = QUALITY,
    ) -> None:  # fmt: skip
        self.levels, self.tfidf = at_least("levels", levels, 1), tfidf or Tfidf()
        self.strength, self.steps = positive("strength", strength), at_least("steps", steps, 1)
        self.text, self.name = text, name
        self.mean = self.scale = self.weight = self.bias = np.empty(0)

    def fit(self, documents: Sequence[Document], ratings: Sequence[float] | Array) -> OrdinalQuality:
        """Learn (N,) ratings, whole numbers 0..levels; ValueError that tells which document has another. No chance."""
        rated = np.asarray(ratings, dtype=np.float64)
        if rated.shape != (len(documents),):
            raise ValueError(f"give a rating for each of {len(documents)} documents, got shape {rated.shape}")
        wrong = np.flatnonzero(~((rated >= 0) & (rated <= self.levels) & (rated == np.round(rated))))
        if len(wrong):
            raise ValueError(
                f"document {wrong[0]}: its rating is {rated[wrong[0]]:g}; ratings are whole numbers 0 to {self.levels}"
            )
        if len(np.unique(rated)) < 2:
            raise ValueError("all ratings are the same: there is nothing to learn")
        found = texts(documents, self.text)
        looks = surface(found)
        self.mean, self.scale = looks.mean(0), np.where(looks.std(0) > 0, looks.std(0), 1.0)
        self.tfidf.fit(found)
        self._solve(self._features(found), ordinal_targets(rated, self.levels))
        return self

    def logits(self, contents: Sequence[str]) -> Array:
        """(N, levels) of P(q >= m)."""
        if not len(self.weight):
            raise ValueError("fit the ratings first")
        return np.asarray(self._features(contents) @ self.weight) + self.bias

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[float]]:
        return {self.name: expected(self.logits(texts(documents, self.text))).tolist()}

    def _features(self, contents: Sequence[str]) -> Any:
        looks = (surface(contents) - self.mean) / self.scale
        return sparse.hstack([self.tfidf(contents), sparse.csr_matrix(looks)], format="csr", dtype=np.float64)

    def _solve(self, x: Any, target: Array) -> None:
        rows, levels = target.shape
        size = x.shape[1] * levels
        transposed = x.T.tocsr()

        def loss(flat: Array) -> tuple[float, Array]:
            weight, bias = flat[:size].reshape(-1, levels), flat[size:]
            z = np.asarray(x @ weight) + bias
            value = -float((target * log_expit(z) + (1 - target) * log_expit(-z)).sum())
            error = expit(z) - target
            slope = np.concatenate([
                (np.asarray(transposed @ error) + self.strength * weight).ravel(), error.sum(0)
            ])  # fmt: skip
            return (value + self.strength / 2 * float((weight**2).sum())) / rows, slope / rows

        rate = (target.sum(0) + 0.5) / (rows + 1)  # levels that nobody or everybody reaches
        start = np.concatenate([np.zeros(size), np.log(rate / (1 - rate))])
        options = {"maxiter": self.steps, "gtol": 1e-6, "ftol": 0.0}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
        self.weight, self.bias = found[:size].reshape(-1, levels), found[size:]

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("mean", "scale", "weight", "bias")}
        return {
            "levels": self.levels, "strength": self.strength, "steps": self.steps, "text": self.text,
            "name": self.name, "tfidf": self.tfidf.state_dict(), **arrays,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> OrdinalQuality:
        settings = {name: state[name] for name in ("strength", "steps", "text", "name")}
        found = cls(state["levels"], tfidf=Tfidf.from_state(state["tfidf"]), **settings)
        for name in ("mean", "scale", "weight", "bias"):
            setattr(found, name, state[name].numpy())
        return found


def ordinal_targets(ratings: Array, levels: int = LEVELS) -> Array:
    """(N, levels) of (N,) ratings: [q >= 1, q >= 2, ...]; 3 of 10 gives 1, 1, 1, 0, 0, 0, 0, 0, 0, 0."""
    return (np.asarray(ratings)[:, None] >= np.arange(1, levels + 1)).astype(np.float64)


def expected(logits: Array) -> Array:
    """(N,) the expected rating, 0 to M, of (N, M) logits."""
    return np.asarray(expit(logits).sum(1))


def surface(contents: Sequence[str], characters: int = CHARACTERS) -> Array:
    """(N, 15) what texts look like, in the order of `SURFACE`: kinds of characters, lines, words, repetition."""
    return np.array([_looks(text[:characters]) for text in contents]).reshape(-1, len(SURFACE))


def _looks(text: str) -> list[float]:
    size = max(1, len(text))
    lines = [line for line in (part.strip() for part in text.split("\n")) if line]
    words = text.split()
    count, rows = max(1, len(words)), max(1, len(lines))
    letters = sum(map(str.isalpha, text))
    return [
        np.log1p(len(text)), letters / size, sum(map(str.isupper, text)) / max(1, letters),
        sum(map(str.isdigit, text)) / size, len(re.findall(r"[.,;:!?]", text)) / size,
        sum(map(str.isspace, text)) / size, rows / size, 1 - len(set(lines)) / rows,
        sum(len(line) < 30 for line in lines) / rows, np.log1p(len(words)),
        sum(map(len, words)) / count, len({word.lower() for word in words[:500]}) / min(count, 500),
        np.log1p(count / max(1, len(re.findall(r"[.!?](?:\s|$)", text)))),
        sum(line[-1] in ".!?\"'" for line in lines) / rows, len(zlib.compress(text.encode("utf-8", "replace"))) / size,
    ]  # fmt: skip
