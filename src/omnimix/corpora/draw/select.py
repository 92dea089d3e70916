"""Choose the documents of a training set: as many tokens of every domain as a mixture says, the best ones or any.

Within a domain d documents are taken in the order of their keys until the quota w_d * budget is reached, with

    key_i = score_i,   score_i / tau + Gumbel(0, 1),   or a random number:

the highest scores, a sample without replacement whose first pick is i with probability softmax(score / tau)_i, or any.
Wettig et al., "Organize the Web: Constructing Domains Enhances Pre-Training Data Curation", ICML 2025,
arXiv 2502.10341. Cost: a sort of the documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.checks import one_of, positive
from ...core.random import permutation, uniform
from ..mixture import Mixture

SEED = 42
SHORTAGES = ("redistribute", "repeat", "raise")


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
    tau: float | None = None,
    ids: Sequence[str] | Sequence[int] | np.ndarray | None = None,
    seed: int = SEED,
    generator: torch.Generator | None = None,
    shortage: str = "redistribute",
) -> Selected:
    """Which of N documents to train on, so that about `budget` tokens come in the shares of the mixture.

    domain: (N,) names. tokens: (N,) lengths > 0. mixture: constant weights in tokens. score: (N,) qualities, the
    highest are taken first; None takes documents at random. tau > 0: score / tau + Gumbel noise decides instead; small
    ones take the highest scores, infinity any document.
    ids: (N,) names of documents, or their texts. What is random then hangs on a document's id and the `seed` alone, so
    that the same documents are chosen in any order, in any process; equal scores are ordered by it too. generator: in
    place of ids; what is random then hangs on the order of the documents.
    shortage: what becomes of the tokens that a domain lacks. "redistribute" takes them from the others, in proportion
    to their weights; "repeat" takes its documents again, whole passes and then the first ones of another; "raise".

    No document is taken twice but with "repeat"; the last one of a domain is taken if that comes nearer to its quota.
    ValueError for weights of domains without documents, lengths that are not positive, NaN among the scores, and where
    neither score nor ids nor generator says which documents to take.
    """
    names, length = _columns(domain, tokens)
    weights = (mixture if isinstance(mixture, Mixture) else Mixture(mixture)).weights
    if isinstance(mixture, Mixture) and mixture.unit != "tokens":
        raise ValueError(f"quotas are in tokens, the mixture is in {mixture.unit}: use mixture.to_unit('tokens', ...)")
    positive("budget", budget), one_of("shortage", shortage, SHORTAGES)
    order = _order(names, length, score, tau, ids, seed, generator)
    rows = {name: order[names[order] == name] for name, weight in weights.items() if weight > 0}
    missing = [name for name, own in rows.items() if not len(own)]
    if missing:
        raise ValueError(f"the domain {missing[0]!r} has a weight, but no documents")
    size = {name: int(length[own].sum()) for name, own in rows.items()}
    quota, short = quotas(weights, size, budget, shortage)
    chosen = {name: _taken(own, length[own], quota[name], name in short) for name, own in rows.items()}
    taken = {name: int(length[own].sum()) for name, own in chosen.items()}
    return Selected(np.sort(np.concatenate([*chosen.values()])), taken, short)


def implicit_mixture(
    domain: Sequence[str] | np.ndarray,
    tokens: Sequence[int] | np.ndarray,
    score: Sequence[float] | np.ndarray,
    budget: float,
) -> Mixture:
    """The mixture of domains that a filter of quality makes: shares of the `budget` tokens of the highest scores.

    Training on random documents in these shares tells how much of the filter's gain is its mixture. Documents whose
    score is the lowest that is taken count in part, all alike: a constant score gives the shares of the corpus.
    ValueError for a budget above the tokens of all documents.
    """
    names, length = _columns(domain, tokens)
    value = _scores(score, len(names))
    if positive("budget", budget) > length.sum():
        raise ValueError(f"the documents have {length.sum()} tokens, less than the budget of {budget:g}: lower it")
    order = np.argsort(-value, kind="stable")
    lowest = value[order[np.searchsorted(np.cumsum(length[order]), budget)]]
    above, level = value > lowest, value == lowest
    part = above + level * (budget - length[above].sum()) / length[level].sum()
    kinds, which = np.unique(names, return_inverse=True)
    sums = np.bincount(which, weights=part * length, minlength=len(kinds))
    return Mixture(
        {str(name): float(total) for name, total in zip(kinds, sums, strict=True)},
        provenance={"method": "implicit mixture", "budget": float(budget), "documents": len(names)},
    )


def _columns(domain: Sequence[str] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    names, length = np.asarray(domain), np.asarray(tokens)
    if names.shape != length.shape or names.ndim != 1 or not len(names):
        raise ValueError(f"domain and tokens must be lists of equal length, got {names.shape} and {length.shape}")
    if not np.issubdtype(length.dtype, np.number) or not (length > 0).all():
        raise ValueError("tokens must be numbers > 0; leave empty documents out")
    return names, length


def _scores(score: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    value = np.asarray(score, dtype=np.float64)
    if value.shape != (count,) or np.isnan(value).any():
        raise ValueError(f"score must be a number for each of the {count} documents, without NaN")
    return value


def _order(
    names: np.ndarray, length: np.ndarray, score: Sequence[float] | np.ndarray | None, tau: float | None,
    ids: Sequence[str] | Sequence[int] | np.ndarray | None, seed: int, generator: torch.Generator | None,
) -> np.ndarray:  # fmt: skip
    """(N,) the documents, those to be taken first in front."""
    if ids is not None and generator is not None:
        raise ValueError("give ids with a seed, or a generator, not both")
    if score is None and tau is not None:
        raise ValueError(f"tau={tau!r} divides scores: give the score of every document")
    if ids is None and generator is None and (score is None or tau is not None):
        raise ValueError("give a score by which to choose; to choose at random, ids of the documents or a generator")
    value = np.zeros(len(names)) if score is None else _scores(score, len(names))
    if ids is not None:
        chance = _hashed(ids, (value, length, names), seed)
    elif generator is not None and score is None:
        return permutation(len(names), generator).cpu().numpy()
    elif generator is not None and tau is not None:
        chance = uniform(len(names), generator=generator).cpu().numpy()
    else:
        return np.argsort(-value, kind="stable")
    return np.lexsort((-chance, -noisy(value, chance, tau)))


def noisy(value: np.ndarray, chance: np.ndarray, tau: float | None) -> np.ndarray:
    """(N,) keys in the order of score / tau + Gumbel noise of the uniforms `chance`; the scores if tau is None."""
    if tau is None:
        return value
    noise = -np.log(-np.log(np.maximum(chance, np.finfo(np.float64).tiny)))
    # a small tau would overflow in score / tau
    return np.asarray(noise if np.isinf(positive("tau", tau)) else value + tau * noise)


def _hashed(ids: Sequence[str] | Sequence[int] | np.ndarray, facts: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """(N,) numbers in (0, 1) that hang on a document's id and the seed, not on its place.

    facts: (N,) arrays by which documents of the same id are told apart; those with the same facts are interchangeable.
    """
    listed = [str(one) for one in (ids.tolist() if isinstance(ids, np.ndarray) else ids)]
    if len(listed) != len(facts[0]):
        raise ValueError(f"ids must name each of the {len(facts[0])} documents, got {len(listed)}")
    key = str(seed).encode()
    digests = digests_of(listed, seed)
    found = np.frombuffer(b"".join(digests), dtype="<u8").copy()
    order = np.lexsort((*facts, found))
    place, same = np.arange(len(order)), np.diff(found[order], prepend=found[order[:1]] ^ np.uint64(1)) == 0
    nth = place - np.maximum.accumulate(np.where(same, 0, place))
    for at in np.flatnonzero(nth).tolist():
        again = _digest(digests[order[at]] + str(nth[at]).encode(), key)
        found[order[at]] = np.frombuffer(again, dtype="<u8")[0]
    return uniforms(found)


def digests_of(ids: Sequence[str], seed: int) -> list[bytes]:
    """Eight bytes for each id, which hang on it and the seed alone."""
    key = str(seed).encode()
    return [_digest(one.encode("utf-8", "replace"), key) for one in ids]


def uniforms(words: np.ndarray) -> np.ndarray:
    """(N,) numbers in (0, 1) of (N,) words of 64 random bits; a larger word gives no smaller number."""
    return np.asarray(((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52)


def _digest(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8, key=key).digest()


def _taken(own: np.ndarray, length: np.ndarray, quota: float, short: bool) -> np.ndarray:
    """Of the documents of a domain, in order of their keys, those that come nearest to the quota."""
    if not short:
        return own[: nearest(np.cumsum(length), quota)]
    passes = int(quota // length.sum())
    rest = own[: nearest(np.cumsum(length), quota - passes * float(length.sum()))]
    return np.concatenate([np.tile(own, passes), rest])


def quotas(
    weights: Mapping[str, float], size: Mapping[str, int], budget: float, shortage: str, unit: str = "tokens"
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Tokens wanted of each domain in `size`, and the domains that have less; see `select_documents` for `shortage`."""
    if shortage == "redistribute":
        return _redistributed(weights, size, budget)
    quota = {name: weights[name] * budget for name in size}
    short = tuple(name for name in size if quota[name] > size[name] * (1 + 1e-12))
    if short and shortage == "raise":
        raise ValueError(
            f"the domain {short[0]!r} has {size[short[0]]} {unit}, its share of the budget is {quota[short[0]]:.0f}: "
            "lower the budget or its weight, or let a shortage be 'redistribute' or 'repeat'"
        )
    return quota, short


def _redistributed(
    weights: Mapping[str, float], size: Mapping[str, int], budget: float
) -> tuple[dict[str, float], tuple[str, ...]]:
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


def nearest(reached: np.ndarray, quota: float) -> int:
    """How many documents come nearest to the quota; reached: (n,) tokens after each."""
    after = int(np.searchsorted(reached, quota))
    if after == len(reached):
        return after
    before = reached[after - 1] if after else 0
    return after + int(reached[after] - quota < quota - before)
