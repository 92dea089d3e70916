"""Documents as vectors: TF-IDF, its truncated SVD (latent semantic analysis), and encoders from a folder.

TF-IDF: (1 + log n_td) (log((1 + N) / (1 + N_t)) + 1) for term t in document d, rows of unit length; its SVD U S V^T
keeps the D largest singular values, and a document x becomes x V / |x V|. Deerwester et al., "Indexing by latent
semantic analysis", JASIS 1990; scikit-learn computes both. Cost: a few ms a document; an encoder its forward pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import random
from ...core.checks import at_least, one_of

Array = np.ndarray
Embedder = Callable[[Sequence[str]], Array]
"""N texts -> (N, D). One that has `fit(texts, generator)` is fitted before its first use."""
CHARACTERS = 50_000
"""Where longer texts are cut, as WebOrganizer cuts them for its annotator."""
BLOCK = 2048
"""Texts that are embedded at a time."""


class Tfidf:
    """Texts as sparse rows over the most frequent words, of unit length (0 without a known word).

    features: how many words at most. ngrams: up to how many words in a row are one feature. least: documents in which
    a feature must occur.
    """

    def __init__(
        self, features: int = 30_000, *, ngrams: int = 1, least: int = 2, characters: int = CHARACTERS
    ) -> None:  # fmt: skip
        self.features, self.ngrams = at_least("features", features, 1), at_least("ngrams", ngrams, 1)
        self.least, self.characters = at_least("least", least, 1), at_least("characters", characters, 1)
        self.words: Any = None

    def fit(self, texts: Sequence[str]) -> Tfidf:
        """Choose the words and count in how many texts they are; ValueError where none is left."""
        self.fit_transform(texts)
        return self

    def fit_transform(self, texts: Sequence[str]) -> Any:
        """`fit`, and the rows of the texts, which are then read once."""
        words = self._words(max_features=self.features, min_df=self.least)
        try:
            x = words.fit_transform(self._cut(texts))
        except ValueError as error:
            raise ValueError(
                f"no word is in {self.least} or more of the {len(texts)} texts ({error}): give more texts or a smaller "
                "`least`"
            ) from None
        self.words = words
        return x

    def __call__(self, texts: Sequence[str]) -> Any:
        """(N, V) scipy CSR matrix, float32."""
        if self.words is None:
            raise ValueError("fit the words first")
        return self.words.transform(self._cut(texts))

    @property
    def terms(self) -> list[str]:
        """The features, by column."""
        return list(self.words.get_feature_names_out())

    def state_dict(self) -> dict[str, Any]:
        return {
            "features": self.features, "ngrams": self.ngrams, "least": self.least, "characters": self.characters,
            "terms": self.terms, "idf": torch.from_numpy(np.asarray(self.words.idf_, dtype=np.float32)),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Tfidf:
        found = cls(state["features"], ngrams=state["ngrams"], least=state["least"], characters=state["characters"])
        found._restore(state["terms"], state["idf"].numpy())
        return found

    def __getstate__(self) -> dict[str, Any]:
        # scikit-learn notes addresses while it works, by which the same words would be told apart
        words = self.words and (self.terms, np.asarray(self.words.idf_, dtype=np.float32))
        return {**vars(self), "words": words}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.words is not None:
            self._restore(*self.words)

    def _restore(self, terms: Sequence[str], idf: Array) -> None:
        self.words = self._words(vocabulary={term: i for i, term in enumerate(terms)})
        self.words.idf_ = idf

    def _words(self, **rest: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, self.ngrams), dtype=np.float32, **rest)

    def _cut(self, texts: Sequence[str]) -> list[str]:
        return [text[: self.characters] for text in texts]


class TfidfSVD:
    """(N, D) float32 rows of unit length: TF-IDF in its D main directions. A text without a known word is all 0."""

    def __init__(self, dimensions: int = 64, tfidf: Tfidf | None = None) -> None:
        self.dimensions, self.tfidf = at_least("dimensions", dimensions, 2), tfidf or Tfidf()
        self.directions: Array | None = None

    def fit(self, texts: Sequence[str], generator: torch.Generator | None = None) -> TfidfSVD:
        """Words and directions of these texts; ValueError for fewer texts or words than dimensions."""
        from sklearn.decomposition import TruncatedSVD

        x = self.tfidf.fit_transform(texts)
        if min(x.shape) <= self.dimensions:
            raise ValueError(
                f"{x.shape[0]} texts with {x.shape[1]} different words have fewer than {self.dimensions + 1} "
                "directions: give more texts, or fewer dimensions"
            )
        seed = int(random.integers(2**31, 1, generator=random.resolve(generator)))
        self.directions = TruncatedSVD(self.dimensions, random_state=seed).fit(x).components_.astype(np.float32)
        return self

    def __call__(self, texts: Sequence[str]) -> Array:
        if self.directions is None:
            raise ValueError("fit the directions first")
        return unit_rows(np.asarray(self.tfidf(texts) @ self.directions.T))

    def describe(self, points: Array, words: int = 6) -> list[list[str]]:
        """The words that weigh most at each of (k, D) points: what a cluster is about."""
        if self.directions is None:
            raise ValueError("fit the directions first")
        terms = self.tfidf.terms
        top = np.argsort(-(np.asarray(points) @ self.directions), axis=1, kind="stable")[:, :words]
        return [[terms[i] for i in row] for row in top]

    def state_dict(self) -> dict[str, Any]:
        assert self.directions is not None
        return {"tfidf": self.tfidf.state_dict(), "directions": torch.from_numpy(self.directions)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TfidfSVD:
        found = cls(len(state["directions"]), Tfidf.from_state(state["tfidf"]))
        found.directions = state["directions"].numpy()
        return found


class Encoder:
    """(N, D) float32 rows of unit length from a transformers encoder in a local folder.

    pooling: "mean" over the tokens that are no padding, or "cls", the first token; None reads it from the folder of
    sentence-transformers, and is "mean" elsewhere. prefix: what the encoder wants before every text. length: tokens at
    which a text is cut. Nothing is downloaded.
    """

    def __init__(
        self, folder: str | Path, *, pooling: str | None = None, prefix: str = "", length: int = 512, batch: int = 32,
        device: str | torch.device | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {folder}: download the encoder first, nothing is downloaded here")
        self.pooling = one_of("pooling", pooling or _pooling(self.folder), ("mean", "cls"))
        self.prefix, self.length, self.batch = prefix, at_least("length", length, 1), at_least("batch", batch, 1)
        transformers = library()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        self.model = transformers.AutoModel.from_pretrained(self.folder, local_files_only=True, dtype=dtype).eval()
        if device is not None:
            self.model.to(device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Array:
        # equal lengths share a batch, so that little is padding
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for first in range(0, len(order), self.batch):
            rows = order[first : first + self.batch]
            tokens = self.tokenizer(
                [self.prefix + texts[i][:CHARACTERS] for i in rows], truncation=True, max_length=self.length,
                padding=True, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            found[rows] = pooled(self.model(**tokens).last_hidden_state, tokens.attention_mask, self.pooling).cpu()
        return unit_rows(found)

    def state_dict(self) -> dict[str, Any]:
        """Where it is and how it is asked; the weights stay in their folder."""
        return {
            "folder": str(self.folder), "pooling": self.pooling, "prefix": self.prefix, "length": self.length,
            "batch": self.batch,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Encoder:
        return cls(**state)

    def contents(self) -> dict[str, Any]:
        """All that decides its rows, and nothing that they change."""
        return {**self.state_dict(), "folder": None, **contents(self.model, self.tokenizer)}


EMBEDDERS: dict[str, Any] = {"tfidf-svd": TfidfSVD, "encoder": Encoder}


def contents(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Hashes of the weights of a transformers model, and of a tokenizer without what its last call has set."""
    shape = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    total = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        words = dict(sorted(tokenizer.get_vocab().items()))
    else:
        words = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    facts = [type(tokenizer).__name__, words, tokenizer.special_tokens_map, tokenizer.padding_side]
    return {
        "model": total.hexdigest(), "tokenizer": hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    }  # fmt: skip


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(B, D) float32 of hidden states (B, T, D) and their mask (B, T): the mean of the valid ones, or the first."""
    mask = mask.to(torch.float32)
    if pooling == "cls":  # with padding on the left the first token is not at 0
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(1)].float()
    return (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def embed(texts: Sequence[str], embedder: Embedder, block: int = BLOCK) -> Array:
    """(N, D) float32, a block of texts at a time; ValueError for an embedder whose rows are not finite or too few."""
    found: Array | None = None
    for first in range(0, len(texts), block):
        part = texts[first : first + block]
        rows = np.asarray(embedder(part), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(part) or not np.isfinite(rows).all():
            raise ValueError(f"the embedder must give {len(part)} finite rows for as many texts, got {rows.shape}")
        if found is None:
            found = np.empty((len(texts), rows.shape[1]), dtype=np.float32)
        found[first : first + len(rows)] = rows
    if found is None:
        raise ValueError("there are no texts to embed")
    return found


def unit_rows(x: Array) -> Array:
    """Rows of length 1; a row of 0 stays."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1), dtype=np.float32)


def library() -> Any:
    """The package transformers, or what to install."""
    try:
        import transformers
    except ImportError:
        raise ImportError('a transformer needs its package: pip install "omnimix[trainers]"') from None
    return transformers


def _pooling(folder: Path) -> str:
    """What a folder of sentence-transformers says of its pooling; ValueError for a kind that is not built here."""
    modules, settings = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if modules.exists():
        kinds = [str(one["type"]).rsplit(".", 1)[-1] for one in json.loads(modules.read_text(encoding="utf-8"))]
        if not set(kinds) <= {"Transformer", "Pooling", "Normalize"}:
            raise ValueError(
                f"{modules}: layers {', '.join(kinds)}; give sentence-transformers' encode as the embedder"
            )
    if not settings.exists():
        return "mean"
    said = json.loads(settings.read_text(encoding="utf-8"))
    modes = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise ValueError(
            f"{settings}: pooling by {', '.join(modes)}; give sentence-transformers' encode as the embedder"
        )
    return known[modes[0]]
