"""SampleMix: every document gets a weight of its own, from its quality and from how much its region adds to diversity.

k-means over the whole corpus; d = compactness (mean distance of a cluster's members to its centroid) * separation (mean
distance of its centroid to the others); with q the quality and both scaled to 0..1,

    p_i = alpha d'_i + (1 - alpha) q'_i;   c_i = T exp(p_i / tau) / sum_j exp(p_j / tau) l_j,

the expected copies of a document of l_i tokens, which add up to the budget T: floor(c_i), and one more with the
probability that is left. Source: "SampleMix: A Sample-wise Pre-training Data Mixing Strategy by Coordinating Data
Quality and Diversity", EMNLP Findings 2025; no reference code. Cost: an embedding and a quality score a document,
k-means on a sample, and passes over four numbers a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core import checkpoint
from ..annotation import Annotator, Document, shown, texts
from ..discover.embed import Array, Embedder, embed
from ..discover.regroup import Groups, regroup
from ..proxy.documents import JSON_LINES, count_rows, objects, record_batches
from .base import QualityColumns, qualities
from .ordinal import OrdinalQuality
from .sampling import ALPHA, TAU, Blocks, Ratings, Sampling, measure, round_copies

FORMAT = "omnimix-samplemix-1"
CLUSTERS = 64
"""Ours: the paper's number is not known."""
PREFIX = "samplemix_"
READ = 8192


@dataclass(frozen=True, eq=False)
class SampleMix:
    """Rates documents; with the `sampling` of a corpus, also says how often each is to be drawn.

    groups: clusters of the corpus. quality: an annotator of quality. embedding: the column of embeddings, where groups
    have no embedder. tokens: the column of a document's tokens; None counts the bytes of its text. seed: of the draws,
    by a hash of the document. Writes samplemix_quality and samplemix_cluster, and samplemix_distance and
    samplemix_tokens; with sampling, in place of the latter two, samplemix_score and samplemix_copies.
    """

    groups: Groups
    quality: Annotator
    embedding: str | None = None
    text: str = "text"
    tokens: str | None = None
    sampling: Sampling | None = None
    seed: int = 0

    @classmethod
    def fit(
        cls, documents: Sequence[Document], quality: Annotator, *, clusters: int = CLUSTERS,
        embedder: Embedder | None = None, embedding: str | None = None, text: str = "text", tokens: str | None = None,
        seed: int = 0, generator: torch.Generator | None = None,
    ) -> SampleMix:  # fmt: skip
        """Clusters of these documents, or of a sample of a corpus.

        embedder: texts -> (N, D), default TF-IDF and SVD; or embedding: a column of embeddings in place of it.
        """
        if embedding is not None:
            groups, _ = regroup(embeddings=_column(documents, embedding), k=clusters, generator=generator)
        else:
            found = texts(documents, text)
            groups, _ = regroup(found, embedder=embedder, k=clusters, generator=generator)
        return cls(groups, quality, embedding, text, tokens, None, seed)

    def rate(self, documents: Sequence[Document]) -> Ratings:
        """The ratings of some documents; ValueError that tells which of them cannot be rated."""
        if self.embedding is not None:
            x = _column(documents, self.embedding)
        elif self.groups.embedder is None:
            raise ValueError("these clusters were made of embeddings: name their column")
        else:
            x = embed(texts(documents, self.text), self.groups.embedder)
        cluster = self.groups.assign(x)
        apart = x.astype(np.float64) - self.groups.centroids[cluster]
        return Ratings(
            qualities(self.quality, documents), cluster, np.linalg.norm(apart, axis=1), self._tokens(documents)
        )

    def measured(
        self, blocks: Blocks, budget: float, *, alpha: float = ALPHA, tau: float = TAU, cap: float = np.inf,
        scale: str = "min-max",
    ) -> SampleMix:  # fmt: skip
        """The same with the sampling of a corpus, whose ratings are gone through block by block."""
        sampling = measure(blocks, self.groups.centroids, budget, alpha=alpha, tau=tau, cap=cap, scale=scale)
        return replace(self, sampling=sampling)

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[Any]]:
        """The columns of one or more documents; what they say of one does not depend on the others."""
        found = self.rate(documents)
        columns = {"quality": found.quality, "cluster": found.cluster}
        if self.sampling is None:
            columns |= {"distance": found.distance, "tokens": found.tokens}
        else:
            score = self.sampling.score(found.quality, found.cluster)
            chance = np.array([_hashed(document, self.seed) for document in documents])
            columns |= {"score": score, "copies": round_copies(self.sampling.copies(score), chance)}
        return {PREFIX + name: values.tolist() for name, values in columns.items()}

    def _tokens(self, documents: Sequence[Document]) -> Array:
        if self.tokens is None:
            return np.array([len(text.encode("utf-8", "replace")) for text in texts(documents, self.text)])
        found = [document.get(self.tokens) for document in documents]
        for row, value in enumerate(found):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**53:
                raise ValueError(
                    f"document {row}: column {self.tokens!r} must hold a number of tokens, got {shown(value)}"
                )
        return np.array(found, dtype=np.int64)

    def save(self, folder: str | Path) -> None:
        """A folder of safetensors and JSON; ValueError for a quality or an embedder of another kind than ours."""
        path = Path(folder)
        if isinstance(self.quality, QualityColumns):
            quality: dict[str, Any] = {"columns": list(self.quality.columns), "highest": self.quality.highest}
        elif isinstance(self.quality, OrdinalQuality):
            quality = {"ordinal": self.quality.state_dict()}
        else:
            raise ValueError(
                f"a {type(self.quality).__name__} cannot be saved: annotate with it first, and read its column"
            )
        if self.embedding is None and not hasattr(self.groups.embedder, "state_dict"):
            raise ValueError("an embedder of your own cannot be saved: write its embeddings to a column, and name that")
        self.groups.save(path / "groups.safetensors")
        sampling = None if self.sampling is None else {n: _to_tensors(v) for n, v in vars(self.sampling).items()}
        names = ("embedding", "text", "tokens", "seed")
        checkpoint.save(path / "samplemix.safetensors", {
            "format": FORMAT, "quality": quality, "sampling": sampling, **{name: getattr(self, name) for name in names},
        })  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> SampleMix:
        """What `save` wrote; ValueError that names the folder for anything else."""
        path = Path(folder)
        if not (path / "samplemix.safetensors").is_file():
            raise ValueError(f"{path} holds no SampleMix (no samplemix.safetensors)")
        state = checkpoint.load(path / "samplemix.safetensors")
        if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: not a SampleMix that omnimix saved")
        kind, sampling = state.pop("quality"), state.pop("sampling")
        quality: Annotator = (
            OrdinalQuality.from_state(kind["ordinal"]) if "ordinal" in kind
            else QualityColumns(*kind["columns"], highest=kind["highest"])
        )  # fmt: skip
        found = None if sampling is None else Sampling(**{name: _from_tensors(v) for name, v in sampling.items()})
        return cls(Groups.load(path / "groups.safetensors"), quality, sampling=found, **state)


def read_ratings(files: Iterable[Path]) -> Iterator[Ratings]:
    """The ratings that `SampleMix.annotate` wrote beside documents, block by block."""
    names = [PREFIX + name for name in Ratings._fields]
    for file in files:
        for columns in _json_columns(file, names) if file.name.endswith(JSON_LINES) else _columns(file, names):
            yield Ratings(*(np.asarray(column) for column in columns))


def _columns(file: Path, names: Sequence[str]) -> Iterator[list[Any]]:
    if not count_rows(file):  # an empty shard has no new columns
        return
    for batch in record_batches(file, names, READ):
        yield [batch.column(name).to_numpy(zero_copy_only=False) for name in names]


def _json_columns(file: Path, names: Sequence[str]) -> Iterator[list[Any]]:
    rows: list[tuple[Any, ...]] = []
    for _, row in objects(file):
        rows.append(tuple(row[name] for name in names))
        if len(rows) == READ:
            yield list(zip(*rows, strict=True))
            rows = []
    if rows:
        yield list(zip(*rows, strict=True))


def _to_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_tensors, value))
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _from_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_from_tensors, value))
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _column(documents: Sequence[Mapping[str, Any]], name: str) -> Array:
    """(N, D) float32 embeddings; ValueError that tells which document has none."""
    rows: list[Array] = []
    for row, document in enumerate(documents):
        value = np.asarray(document.get(name, ()))
        if value.ndim != 1 or not len(value) or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ValueError(f"document {row}: column {name!r} must hold an embedding, a list of finite numbers")
        if rows and len(value) != len(rows[0]):
            raise ValueError(f"document {row}: its embedding has {len(value)} numbers, the first one {len(rows[0])}")
        rows.append(value.astype(np.float32))
    return np.stack(rows)


def _hashed(document: Document, seed: int) -> float:
    """A number in [0, 1) that depends on the document and the seed alone, not on its place in the corpus."""
    body = json.dumps(document, sort_keys=True, default=repr).encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=7, key=str(seed).encode()).digest(), "big") / 2**56
