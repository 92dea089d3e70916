"""Choose the documents of a training set: as many tokens of every domain as a mixture says, the best ones or any.

Within a domain documents are taken in order of score (highest first) or at random until the quota w_i * budget is
reached; what a domain cannot fill goes to the others in proportion to their weights, as long as they have documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.checks import positive
from ...core.random import permutation
from ..mixture import Mixture


@dataclass(frozen=True)
class Selected:
    """index: the chosen documents, in their order. tokens: what each domain gives. short: domains that ran out."""

    index: np.ndarray
    tokens: dict[str, int]
    short: tuple[str, ...]


def select_documents(
    domain: Sequence[str] | np.ndarray,
    tokens: Sequence[int] | np.ndarray,
    mixture: Mixture | Mapping[str, float],
    budget: float,
    *,
    score: Sequence[float] | np.ndarray | None = None,
    generator: torch.Generator | None = None,
) -> Selected:
    """Which of N documents to train on, so that about `budget` tokens come in the shares of the mixture.

    domain: (N,) names. tokens: (N,) lengths > 0. mixture: constant weights in tokens. score: (N,) qualities, the
    highest are taken first; None takes documents at random, by `generator`. No document is taken twice; the last one
    of a domain is taken if that comes nearer to its quota. ValueError for weights of domains without documents, lengths
    that are not positive, NaN among the scores, and when neither score nor generator is given.
    """
    names, length = np.asarray(domain), np.asarray(tokens)
    if names.shape != length.shape or names.ndim != 1 or not len(names):
        raise ValueError(f"domain and tokens must be lists of equal length, got {names.shape} and {length.shape}")
    if not np.issubdtype(length.dtype, np.number) or not (length > 0).all():
        raise ValueError("tokens must be numbers > 0; leave empty documents out")
    weights = (mixture if isinstance(mixture, Mixture) else Mixture(mixture)).weights
    if isinstance(mixture, Mixture) and mixture.unit != "tokens":
        raise ValueError(f"quotas are in tokens, the mixture is in {mixture.unit}: use mixture.to_unit('tokens', ...)")
    positive("budget", budget)
    if score is None:
        if generator is None:
            raise ValueError("give a score by which to choose, or a generator to choose at random")
        order = permutation(len(names), generator).cpu().numpy()
    else:
        value = np.asarray(score, dtype=np.float64)
        if value.shape != names.shape or np.isnan(value).any():
            raise ValueError(f"score must be a number for each of the {len(names)} documents, without NaN")
        order = np.argsort(-value, kind="stable")
    rows = {name: order[names[order] == name] for name, weight in weights.items() if weight > 0}
    missing = [name for name, own in rows.items() if not len(own)]
    if missing:
        raise ValueError(f"the domain {missing[0]!r} has a weight, but no documents")
    quota, short = _quotas(weights, {name: int(length[own].sum()) for name, own in rows.items()}, budget)
    chosen = {name: own[: _nearest(np.cumsum(length[own]), quota[name])] for name, own in rows.items()}
    taken = {name: int(length[own].sum()) for name, own in chosen.items()}
    return Selected(np.sort(np.concatenate([*chosen.values()])), taken, short)


def _quotas(
    weights: Mapping[str, float], size: Mapping[str, int], budget: float
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Tokens wanted of each domain, and the domains that are taken whole."""
    whole: dict[str, float] = {}
    while True:
        open_to = {name: weights[name] for name in size if name not in whole}
        rest, total = budget - sum(whole.values()), sum(open_to.values())
        wanted = {name: rest * weight / total for name, weight in open_to.items()}
        full = [name for name, want in wanted.items() if want > size[name]]
        if not full:
            return {**whole, **wanted}, tuple(whole)
        whole.update({name: float(size[name]) for name in full})
        if len(whole) == len(size):
            return whole, tuple(whole)


def _nearest(reached: np.ndarray, quota: float) -> int:
    """How many documents come nearest to the quota; reached: (n,) tokens after each."""
    after = int(np.searchsorted(reached, quota))
    if after == len(reached):
        return after
    before = reached[after - 1] if after else 0
    return after + int(reached[after] - quota < quota - before)
