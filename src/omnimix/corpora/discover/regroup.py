"""R&B's regrouping: domains are clusters of what documents say, not where they come from.

k-means on embeddings for each k of a range; the k with the largest mean silhouette stays, where for a document with
mean distance a to its own cluster and b to the nearest other one

    s = (b - a) / max(a, b)  in -1..1.

Documents of the evaluation go to the nearest centroid of the TRAINING documents; their shares are the target q of
`RAndB`. Ge et al., "R&B: Domain Regrouping and Data Mixture Balancing for Efficient Foundation Model Training",
arXiv 2505.00358, 2025. Cost: embedding every document once, one k-means a k.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core import checkpoint, random
from ...core.checks import at_least
from ..annotation import Document, texts
from ..mixture import Mixture
from .embed import BLOCK, EMBEDDERS, Array, Embedder, TfidfSVD, embed

KS = (4, 8, 12, 16, 24, 32, 48, 64)
FORMAT = "omnimix-groups-1"


@dataclass(frozen=True, eq=False)
class Groups:
    """Clusters of documents, the largest first.

    centroids: (k, D). silhouettes: k tried -> mean silhouette, in -1..1. embedder: texts -> (N, D); None where a user
    brings embeddings. As an annotator it writes the cluster of each document's `text` into `column`.
    """

    centroids: Array
    silhouettes: Mapping[int, float] = field(default_factory=dict)
    embedder: Embedder | None = None
    column: str = "cluster"
    text: str = "text"

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def names(self) -> tuple[str, ...]:
        """cluster-00, cluster-01, ..."""
        width = max(2, len(str(len(self) - 1)))
        return tuple(f"cluster-{i:0{width}d}" for i in range(len(self)))

    def assign(self, embeddings: Array) -> Array:
        """(N,) the nearest centroid of each of (N, D) embeddings."""
        from sklearn.metrics import pairwise_distances_argmin

        x = np.asarray(embeddings, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.centroids.shape[1]:
            raise ValueError(f"embeddings must be (N, {self.centroids.shape[1]}) as in the fit, got {x.shape}")
        return np.asarray(pairwise_distances_argmin(x, self.centroids))

    def clusters(self, documents: Sequence[str]) -> Array:
        """(N,) the cluster of each text."""
        if self.embedder is None:
            raise ValueError("these groups were made of embeddings: use assign(embeddings), or give an embedder")
        return self.assign(embed(documents, self.embedder))

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[str]]:
        """The name of each document's cluster."""
        if not documents:
            return {self.column: []}
        return {self.column: [self.names[i] for i in self.clusters(texts(documents, self.text))]}

    def mixture(self, clusters: Array, lengths: Array | None = None) -> Mixture:
        """The shares of the clusters: the target q for R&B when the documents are those of an evaluation.

        clusters: (N,) of `assign`. lengths: (N,) tokens, for shares of tokens instead of documents.
        """
        shares = np.bincount(clusters, weights=lengths, minlength=len(self)).astype(np.float64)
        return Mixture(
            dict(zip(self.names, shares.tolist(), strict=True)), unit="documents" if lengths is None else "tokens",
            provenance={"method": "regroup", "k": len(self), "documents": len(clusters)},
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """One safetensors file; a callable of the user's own is not in it, and is given again to `load`."""
        kind = next((name for name, one in EMBEDDERS.items() if isinstance(self.embedder, one)), None)
        embedder: Any = self.embedder
        checkpoint.save(Path(path), {
            "format": FORMAT, "centroids": torch.from_numpy(self.centroids), "column": self.column, "text": self.text,
            "silhouettes": dict(self.silhouettes), "embedder": kind and [kind, embedder.state_dict()],
        })  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder | None = None) -> Groups:
        """What `save` wrote; ValueError that names the file for anything else."""
        state = checkpoint.load(Path(path))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path}: not groups that omnimix saved")
        if embedder is None and state["embedder"] is not None:
            kind, inner = state["embedder"]
            embedder = EMBEDDERS[kind].from_state(inner)
        return cls(state["centroids"].numpy(), state["silhouettes"], embedder, state["column"], state["text"])


def regroup(
    documents: Sequence[str] | None = None, *, embeddings: Array | None = None, embedder: Embedder | None = None,
    k: int | Iterable[int] = KS, subsample: int = 4000, fit_on: int = 50_000, minibatch_above: int = 20_000,
    restarts: int = 4, generator: torch.Generator | None = None,
) -> tuple[Groups, Array]:  # fmt: skip
    """Clusters of the training documents, and (N,) which one each is in.

    documents: texts; or embeddings: (N, D) finite numbers, as they are (a memory map of float32 is not copied).
    embedder: default TF-IDF and SVD, fitted to at most `fit_on` random texts; or any function texts -> (N, D).
    k: the number of clusters, or those to choose from. subsample: documents, the same for every k, on which silhouettes
    are measured; memory grows with its square (4000: 64 MB). minibatch_above: documents above which k-means works on
    batches of them. restarts: of k-means, the tightest stays.

    Warns when no silhouette is above 0: then the regrouping is not worth it. Silhouettes are a weak guide to the loss
    (R^2 of .05 to .9 in the paper). ValueError for k below 2 or not below N.
    """
    generator = random.resolve(generator)
    if (documents is None) == (embeddings is None):
        raise ValueError("give either documents or their embeddings")
    if embeddings is None:
        assert documents is not None
        embedder = embedder or TfidfSVD()
        if hasattr(embedder, "fit"):
            rows = random.permutation(len(documents), generator)[: at_least("fit_on", fit_on, 1)].tolist()
            embedder.fit([documents[i] for i in rows], generator)
        embeddings = embed(documents, embedder)
    x = np.asanyarray(embeddings, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"embeddings must be (N, D), got {x.shape}")
    for first in range(0, len(x), BLOCK):
        wrong = np.flatnonzero(~np.isfinite(x[first : first + BLOCK]).all(1))
        if len(wrong):
            raise ValueError(f"embeddings must be finite, row {first + wrong[0]} is not")
    ks = [k] if isinstance(k, int) else sorted(set(k))
    if not ks or ks[0] < 2 or ks[-1] >= len(x):
        raise ValueError(f"k must be 2 to {len(x) - 1}, below the number of documents, got {ks}")
    sample = random.permutation(len(x), generator)[: at_least("subsample", subsample, 3)].numpy()
    distances = _distances(x[np.sort(sample)])
    best, silhouettes = None, {}
    for count in ks:
        centroids, clusters = _kmeans(x, count, restarts, minibatch_above, generator)
        silhouettes[count] = _silhouette(distances, clusters[np.sort(sample)], count)
        if best is None or silhouettes[count] > best[0]:
            best = silhouettes[count], centroids, clusters
    assert best is not None
    if best[0] <= 0:
        warnings.warn(
            f"the best silhouette is {best[0]:.3g}: documents are as near to other clusters as to their own, and the "
            "regrouping is hardly worth it",
            stacklevel=2,
        )
    return Groups(best[1], silhouettes, embedder), best[2]


@dataclass(frozen=True)
class Overlap:
    """How clusters and given domains agree.

    table: (k, d) documents of each cluster and domain. purity: the share of documents in the largest domain of their
    cluster, in total and by cluster. chance: the purity of one cluster, the largest domain's share. nmi: normalised
    mutual information, 0 (independent) to 1.
    """

    domains: tuple[str, ...]
    table: Array
    purity: float
    purities: Array
    chance: float
    nmi: float

    @property
    def sizes(self) -> Array:
        """(k,) documents of each cluster."""
        return np.asarray(self.table.sum(1))


def overlap(clusters: Array, domains: Sequence[Any], k: int | None = None) -> Overlap:
    """Compare (N,) clusters with the (N,) domains that documents come from."""
    from sklearn.metrics import normalized_mutual_info_score

    names, which = np.unique(np.asarray(domains), return_inverse=True)
    if np.shape(clusters) != which.shape or not len(which):
        raise ValueError(f"clusters and domains must be lists of equal length, got {len(clusters)} and {len(which)}")
    table = np.zeros((max(k or 0, int(np.max(clusters)) + 1), len(names)), dtype=np.int64)
    np.add.at(table, (clusters, which), 1)
    sizes, largest = table.sum(1), table.max(1)
    return Overlap(
        tuple(map(str, names)), table, float(largest.sum() / len(which)), largest / np.maximum(sizes, 1),
        float(table.sum(0).max() / len(which)), float(normalized_mutual_info_score(which, clusters)),
    )  # fmt: skip


def _distances(x: Array) -> Array:
    from sklearn.metrics import euclidean_distances

    return np.asarray(euclidean_distances(x))


def _silhouette(distances: Array, clusters: Array, k: int) -> float:
    """The mean silhouette, from (n, n) distances."""
    from sklearn.metrics import silhouette_score

    seen = len(np.unique(clusters))
    if seen < 2:
        raise ValueError(
            f"the {len(clusters)} documents for the silhouette are all alike, there is nothing to group: take others, "
            "or another embedding"
        )
    if seen >= len(clusters):
        raise ValueError(
            f"k={k}: the {len(clusters)} documents for the silhouette are in {seen} clusters: take fewer clusters, "
            "or a larger subsample"
        )
    return float(silhouette_score(distances, clusters, metric="precomputed"))


def _kmeans(x: Array, k: int, restarts: int, minibatch_above: int, generator: torch.Generator) -> tuple[Array, Array]:
    """(k, D) centroids by size, the largest first, and (N,) the cluster of each row; empty clusters go."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    seed = int(random.integers(2**31, 1, generator=generator))
    if len(x) > minibatch_above:
        found = MiniBatchKMeans(k, n_init=restarts, random_state=seed, batch_size=max(4096, 8 * k)).fit(x)
    else:
        found = KMeans(k, n_init=at_least("restarts", restarts, 1), random_state=seed).fit(x)
    sizes = np.bincount(found.labels_, minlength=k)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    place = np.empty(k, dtype=np.int64)
    place[order] = np.arange(len(order))
    return np.ascontiguousarray(found.cluster_centers_[order], dtype=np.float32), place[found.labels_]
