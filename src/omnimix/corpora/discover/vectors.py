"""Domain2Vec's vectors: a data set as a distribution over meta-domains, a fixed vocabulary of kinds of text.

    v_D = (1/N) sum over N documents x of D of p(x),    V = [v_1 ... v_k],

with p(x) the probabilities that a classifier of n meta-domains gives, not its hard label and not its logits: hard
labels lose the overlap of related meta-domains. A mixture r of data sets then is V r; see `weigh.domain2vec`. Zhang et
al., "Domain2Vec: Vectorizing Datasets to Find the Optimal Data Mixture without Training", ICML 2025, arXiv 2506.10952.
Cost: the classifier on 1000 documents a data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch

from ...core import random
from ...core.checks import at_least, one_of
from ..annotation import Document
from ..mixture import Unit

Array = np.ndarray
FORMAT = "omnimix-dataset-vectors-1"


class Classifier(Protocol):
    """What tells the meta-domains of documents, as `TaxonomyClassifier`."""

    def probabilities(self, documents: Sequence[Document]) -> Array:
        """(N, n), rows that sum to 1."""
        ...


@dataclass(frozen=True, eq=False)
class DatasetVectors:
    """Data sets over meta-domains.

    meta: n names. datasets: k names. matrix: (n, k), a data set a column, each sums to 1. unit: of what the vectors are
    averages, so that V r is right for mixture weights r in this unit: "documents", or "tokens" when documents were
    weighted by their lengths. counts: (k,) documents that were looked at.
    """

    meta: tuple[str, ...]
    datasets: tuple[str, ...]
    matrix: Array
    counts: tuple[int, ...]
    unit: Unit = "documents"

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (len(self.meta), len(self.datasets)) or len(self.counts) != len(self.datasets):
            raise ValueError(
                f"the matrix must be ({len(self.meta)} meta-domains, {len(self.datasets)} data sets) with a count a "
                f"data set, got {matrix.shape} and {len(self.counts)} counts"
            )
        for name, column in zip(self.datasets, matrix.T, strict=True):
            if not (np.isfinite(column).all() and (column >= 0).all() and abs(column.sum() - 1) < 1e-6):
                raise ValueError(f"the vector of {name!r} must be >= 0 and sum to 1, it sums to {column.sum():.6g}")
        one_of("unit", self.unit, get_args(Unit))
        object.__setattr__(self, "matrix", matrix)

    def __getitem__(self, dataset: str) -> Array:
        """(n,) the vector of a data set."""
        return self.matrix[:, self.datasets.index(one_of("dataset", dataset, self.datasets))]

    def joined(self, other: DatasetVectors) -> DatasetVectors:
        """With the data sets of another table too: a new data set needs a column, and nothing is trained again."""
        if (other.meta, other.unit) != (self.meta, self.unit):
            raise ValueError("vectors are joined only over the same meta-domains, in the same order and unit")
        if set(other.datasets) & set(self.datasets):
            raise ValueError(f"in both tables: {', '.join(sorted(set(other.datasets) & set(self.datasets)))}")
        return DatasetVectors(
            self.meta, self.datasets + other.datasets, np.concatenate([self.matrix, other.matrix], axis=1),
            self.counts + other.counts, self.unit,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        body = {
            "format": FORMAT, "unit": self.unit, "meta": list(self.meta),
            "counts": dict(zip(self.datasets, self.counts, strict=True)),
            "vectors": {name: self[name].tolist() for name in self.datasets},
        }  # fmt: skip
        Path(path).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DatasetVectors:
        """Read what `save` wrote; ValueError that names the file for anything else."""
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            if body["format"] != FORMAT:
                raise ValueError(f"its format is {body['format']!r}, this version reads {FORMAT!r}")
            names, matrix = tuple(body["vectors"]), np.array(list(body["vectors"].values())).T
            counts = tuple(body["counts"][name] for name in names)
            return cls(tuple(body["meta"]), names, matrix, counts, body["unit"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not data set vectors that omnimix saved ({error})") from None


def sampled(
    documents: Sequence[Any], n: int = 1000, generator: torch.Generator | None = None
) -> list[Any]:  # fmt: skip
    """n different documents at random, or all of them, once, where there are no more."""
    if not len(documents):
        raise ValueError("there are no documents")
    if len(documents) <= at_least("n", n, 1):
        return list(documents)
    return [documents[i] for i in random.permutation(len(documents), random.resolve(generator))[:n].tolist()]


def mean_vector(probabilities: Array, lengths: Sequence[float] | Array | None = None) -> Array:
    """(n,) the vector of a data set from (N, n) probabilities of its documents. lengths: (N,) weights, as tokens."""
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or not (np.isfinite(p).all() and (p >= 0).all()):
        raise ValueError(f"probabilities must be (N, n) numbers >= 0 of one document or more, got {p.shape}")
    off = np.flatnonzero(np.abs(p.sum(1) - 1) > 1e-3)
    if len(off):
        raise ValueError(f"document {off[0]}: its probabilities sum to {p[off[0]].sum():.4g}; are they logits?")
    weight = np.ones(len(p)) if lengths is None else np.asarray(lengths, dtype=np.float64)
    if weight.shape != (len(p),) or not (weight > 0).all():
        raise ValueError(f"lengths must be a number > 0 for each of {len(p)} documents")
    v = weight @ p
    return np.asarray(v / v.sum())


def vectorize(
    datasets: Mapping[str, Sequence[Document]], classifier: Classifier, meta: Sequence[str], *, n: int = 1000,
    length: str | None = None, generator: torch.Generator | None = None,
) -> DatasetVectors:  # fmt: skip
    """The vectors of named data sets.

    meta: names of the classifier's columns. n: documents that are drawn of each. length: a column of numbers that
    weighs documents, as their tokens; None is the paper's plain mean over documents.
    """
    generator = random.resolve(generator)
    columns, counts = [], []
    for name, documents in datasets.items():
        some = sampled(documents, n, generator)
        if length is not None and any(length not in one for one in some):
            raise ValueError(f"data set {name!r}: no column {length!r} in some document")
        lengths = None if length is None else [float(one[length]) for one in some]
        columns.append(mean_vector(classifier.probabilities(some), lengths))
        counts.append(len(some))
    if not columns:
        raise ValueError("there are no data sets")
    unit: Unit = "documents" if length is None else "tokens"
    return DatasetVectors(tuple(meta), tuple(datasets), np.stack(columns, axis=1), tuple(counts), unit)
