"""SaM: for a new domain pick the helpful experts in two ways, merge those of each, and join what the two models find.

A = the m experts whose texts are most like the target's: cos(mean embedding of the target, mean embedding of k), both
less the mean over all domains. B = the m experts that agree best on a few sentences of the target: micro-F1 against its
labels or, without any, against what most experts predict. theta_A = theta_0 + merge of the changes of A, B alike; the
answer is the union of what both predict. Ding et al., "Selecting and merging: towards adaptable and scalable named
entity recognition with large language models", ACL 2025, arXiv:2506.22813; what its public text leaves open (m, the
vote, the union, the operator) is settled here. No training; merged models are kept.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...core.checks import at_least, one_of
from .base import Merger
from .ties import Ties

Found = Collection[Hashable]
"""What a model predicts for one sentence, as (mention, type) pairs."""


class SelectAndMerge:
    """A registry of experts over one base, and the models that are merged from them for a target.

    base: its state dict. merger: an operator that takes a base. m: experts of each set. kept: merged models that are
    held, the least recently used are dropped. ValueError for m < 1 and for an operator without a base.
    """

    def __init__(self, base: Mapping[str, Tensor], merger: Merger | None = None, *, m: int = 3, kept: int = 8) -> None:
        self.base, self.merger = base, merger or Ties(density=0.6)
        if self.merger.base != "required":
            raise ValueError(f"merger must be one that takes a base, as Ties, got {self.merger.name}")
        self.m, self.kept = at_least("m", m, 1), at_least("kept", kept, 1)
        self.experts: dict[str, Mapping[str, Tensor]] = {}
        self.embeddings: dict[str, Tensor] = {}
        self._cache: OrderedDict[tuple[str, ...], dict[str, Tensor]] = OrderedDict()

    def add(self, name: str, expert: Mapping[str, Tensor], embeddings: Tensor) -> None:
        """Register an expert: its state dict and the embeddings (sentences, d) of its domain's texts."""
        if name in self.experts:
            raise ValueError(f"there is an expert {name!r} already; remove it first")
        if embeddings.dim() != 2 or not len(embeddings):
            raise ValueError(f"embeddings must be of shape (sentences, d), got {tuple(embeddings.shape)}")
        self.experts[name], self.embeddings[name] = expert, embeddings.double().mean(0)

    def remove(self, name: str) -> None:
        """Forget an expert, and the merged models that it is in."""
        del self.experts[name], self.embeddings[name]
        for names in [names for names in self._cache if name in names]:
            del self._cache[names]

    def by_similarity(self, target: Tensor) -> dict[str, float]:
        """The m experts nearest to the embeddings (sentences, d) of the target's texts, and their similarities."""
        self._some()
        own = target.double().mean(0)
        means = torch.stack([*self.embeddings.values(), own])
        means = means - means.mean(0)
        scores = torch.nn.functional.cosine_similarity(means[:-1], means[-1:], dim=1)
        return self._best(dict(zip(self.embeddings, scores.tolist(), strict=True)))

    def by_samples(
        self, predictions: Mapping[str, Sequence[Found]], gold: Sequence[Found] | None = None, *, alone: bool = False
    ) -> dict[str, float]:
        """The m experts with the best micro-F1 on sampled sentences of the target, and their scores.

        predictions: of every expert, sentence by sentence. gold: their labels; None: what most experts predict. alone:
        leave an expert out of the vote that it is measured by. ValueError if an expert's predictions are missing.
        """
        self._some()
        if missing := sorted(set(self.experts) - set(predictions)):
            raise ValueError(f"predictions must hold every expert, {missing[0]!r} is missing")
        scores = {}
        for name in self.experts:
            voters = [predictions[other] for other in self.experts if not (alone and other == name)]
            scores[name] = micro_f1(predictions[name], vote(voters) if gold is None else gold)
        return self._best(scores)

    def merged(self, names: Collection[str]) -> dict[str, Tensor]:
        """The state dict merged from these experts; from the cache if it was asked for before."""
        key = tuple(sorted(set(names)))
        if unknown := set(key) - set(self.experts):
            raise ValueError(f"there is no expert {sorted(unknown)[0]!r}; there are {', '.join(self.experts)}")
        if key not in self._cache:
            self._cache[key] = self.merger([self.experts[name] for name in key], self.base)
            while len(self._cache) > self.kept:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def answers(
        self,
        target: Tensor,
        predictions: Mapping[str, Sequence[Found]],
        predict: Callable[[Mapping[str, Tensor]], Sequence[Found]],
        gold: Sequence[Found] | None = None,
        *,
        how: Literal["union", "intersection"] = "union",
    ) -> list[set[Hashable]]:
        """What the models of both sets find, joined. predict: sentences' predictions of a state dict."""
        similar, able = self.by_similarity(target), self.by_samples(predictions, gold)
        scores = self._scores(predictions, gold)
        means = [sum(scores[name] for name in chosen) / len(chosen) for chosen in (similar, able)]
        first, second = (predict(self.merged(chosen)) for chosen in (similar, able))
        if means[1] > means[0]:
            first, second = second, first
        return [integrate(one, other, how=how) for one, other in zip(first, second, strict=True)]

    def _scores(self, predictions: Mapping[str, Sequence[Found]], gold: Sequence[Found] | None) -> dict[str, float]:
        wanted = vote([predictions[name] for name in self.experts]) if gold is None else gold
        return {name: micro_f1(predictions[name], wanted) for name in self.experts}

    def _some(self) -> None:
        if not self.experts:
            raise ValueError("there are no experts yet: add(name, expert, embeddings)")

    def _best(self, scores: Mapping[str, float]) -> dict[str, float]:
        order = sorted(scores, key=lambda name: (-scores[name], name))[: self.m]
        return {name: scores[name] for name in order}


def vote(predictions: Sequence[Sequence[Found]]) -> list[set[Hashable]]:
    """What more than half of the models predict, sentence by sentence."""
    found = []
    for sentence in zip(*predictions, strict=True):
        count = Counter(item for one in sentence for item in set(one))
        found.append({item for item, times in count.items() if 2 * times > len(predictions)})
    return found


def micro_f1(predicted: Sequence[Found], gold: Sequence[Found]) -> float:
    """2 hits / (predicted + wanted) over all sentences; 0 where there is neither."""
    hits = sum(len(set(one) & set(other)) for one, other in zip(predicted, gold, strict=True))
    total = sum(len(set(one)) + len(set(other)) for one, other in zip(predicted, gold, strict=True))
    return 2 * hits / total if total else 0.0


def integrate(first: Found, second: Found, *, how: Literal["union", "intersection"] = "union") -> set[Hashable]:
    """What two models find, as (mention, type) pairs; where types of a mention differ, that of the first is taken."""
    one_of("how", how, ("union", "intersection"))
    if how == "intersection":
        return set(first) & set(second)
    known = {item[0] for item in first if isinstance(item, tuple)}
    return set(first) | {item for item in second if not (isinstance(item, tuple) and item[0] in known)}
