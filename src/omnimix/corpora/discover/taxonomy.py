"""WebOrganizer's domains: a taxonomy that people define, learned from annotations, and written beside every document.

A large language model labels some documents (see `annotator`); a small classifier learns its soft labels t_i by

    min  sum_i CE(t_i^(1/T) / |t_i^(1/T)|_1, p(x_i)),

many cheap annotations first and few strong ones then, and annotates the corpus. Wettig et al., "Organize the Web:
Constructing Domains Enhances Pre-Training Data Curation", ICML 2025, arXiv 2502.10341. Cost: the annotations, a minute
of training (a linear classifier by default), and one pass over the corpus.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ...core import checkpoint
from ...core.checks import in_unit, positive
from ..annotation import Document, shown, texts
from .embed import Array
from .finetune import TransformerClassifier
from .linear import TfidfClassifier

FORMAT = "omnimix-taxonomy-classifier-1"
FEW = 5
"""Examples of a label below which its accuracy says little."""


@dataclass(frozen=True)
class Taxonomy:
    """A way to divide documents. name: of the column, as "topic". labels: at least two, with what each includes.

    question: what a language model is asked to decide, as "what the page is about".
    """

    name: str
    labels: Mapping[str, str]
    question: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.labels, str) or len(self.labels) < 2:
            raise ValueError(f"a taxonomy needs two labels or more, got {self.labels!r}")
        given = self.labels if isinstance(self.labels, Mapping) else dict.fromkeys(self.labels, "")
        if len(given) != len(self.labels):
            raise ValueError(f"labels must differ, got {list(self.labels)}")
        object.__setattr__(self, "labels", {str(label): str(text) for label, text in given.items()})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, labels: Sequence[Any]) -> Array:
        """(N,) positions of labels, given by name or as positions; ValueError that tells which document is wrong."""
        place = {name: i for i, name in enumerate(self.names)}
        found = np.empty(len(labels), dtype=np.int64)
        for row, label in enumerate(labels):
            number = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
            at = label if number and 0 <= label < len(self) else place.get(label) if isinstance(label, str) else None
            if at is None:
                raise ValueError(
                    f"document {row}: {self.name} is {shown(label)}; allowed are {', '.join(map(repr, self.names))}, "
                    f"or 0 to {len(self) - 1}"
                )
            found[row] = at
        return found

    def soft(self, labels: Sequence[Any], confidence: Sequence[float] | Array | None = None) -> Array:
        """(N, C) distributions from labels and how probable each is; what is left is shared by the other labels."""
        rows, count = self.ids(labels), len(self)
        sure = np.ones(len(rows)) if confidence is None else np.asarray(confidence, dtype=np.float64)
        if sure.shape != rows.shape or not ((sure > 0) & (sure <= 1)).all():
            raise ValueError(f"confidence must be a number in (0, 1] for each of {len(rows)} documents, got {sure}")
        found = np.repeat((1 - sure)[:, None] / (count - 1), count, axis=1)
        found[np.arange(len(rows)), rows] = sure
        return found

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "labels": dict(self.labels), "question": self.question}

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Taxonomy:
        """What `save` wrote, or the same by hand: {"name": .., "labels": {label: what it includes}, "question": ..}."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'{path}: a taxonomy is {{"name": .., "labels": {{..}}, "question": ..}} ({error})'
            ) from None


class Model(Protocol):
    """What learns and tells class probabilities of texts: `TfidfClassifier`, `TransformerClassifier`."""

    def fit(
        self, texts: Sequence[str], targets: Array, validation: tuple[Sequence[str], Array] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any: ...  # fmt: skip

    def probabilities(self, texts: Sequence[str]) -> Array: ...


class TaxonomyClassifier:
    """Learns a taxonomy from annotated documents and annotates others.

    model: default `TfidfClassifier()`. columns: what of a document is read, joined by empty lines; WebOrganizer reads
    ("url", "text"). temperature: T of the soft labels; above 1 softens them. least_confidence: annotations whose most
    probable label is less probable are left out. Writes the columns `name` and `name_confidence`.
    """

    def __init__(
        self, taxonomy: Taxonomy, model: Model | None = None, *, columns: Sequence[str] = ("text",),
        temperature: float = 1.0, least_confidence: float = 0.0,
    ) -> None:  # fmt: skip
        self.taxonomy, self.model = taxonomy, model or TfidfClassifier()
        self.columns, self.temperature = tuple(columns), positive("temperature", temperature)
        self.least_confidence = in_unit("least_confidence", least_confidence)

    def fit(
        self, documents: Sequence[Document], targets: Array, *,
        validation: tuple[Sequence[Document], Array] | None = None, generator: torch.Generator | None = None,
    ) -> TaxonomyClassifier:  # fmt: skip
        """Fit to (N, C) target distributions, as of `Taxonomy.soft` or an annotator; again, for a second stage.

        validation: documents and their targets, by whose worst label a transformer chooses its epoch. Warns of labels
        without an example. Returns itself.
        """
        target = self._distributions(documents, targets)
        kept = np.flatnonzero(target.max(1) >= self.least_confidence)
        if not len(kept):
            raise ValueError(f"no annotation is as sure as least_confidence={self.least_confidence}")
        absent = set(range(len(self.taxonomy))) - set(target[kept].argmax(1).tolist())
        if absent:
            names = ", ".join(self.taxonomy.names[i] for i in sorted(absent))
            warnings.warn(f"{self.taxonomy.name}: no example of {names}; they will not be found", stacklevel=2)
        tempered = target[kept] ** (1 / self.temperature)
        checked = None
        if validation is not None:
            checked = texts(validation[0], self.columns), self._distributions(*validation)
        given = texts([documents[i] for i in kept.tolist()], self.columns)
        self.model.fit(given, tempered / tempered.sum(1, keepdims=True), checked, generator)
        return self

    def probabilities(self, documents: Sequence[Document]) -> Array:
        """(N, C) how probable each label is."""
        return self.model.probabilities(texts(documents, self.columns))

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[Any]]:
        """The most probable label of each document, and how probable it is."""
        p = self.probabilities(documents)
        best = p.argmax(1)
        name = self.taxonomy.name
        return {
            name: [self.taxonomy.names[i] for i in best],
            f"{name}_confidence": p[np.arange(len(p)), best].tolist(),
        }

    def save(self, folder: str | Path) -> None:
        """A folder with classifier.json and the weights as safetensors; nothing is pickled."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, TfidfClassifier):
            checkpoint.save(path / "model.safetensors", self.model.state_dict())
        elif isinstance(self.model, TransformerClassifier):
            self.model.save(path / "model")
        else:
            raise ValueError(f"only the classifiers of omnimix are saved, not {type(self.model).__name__}")
        about = {
            "format": FORMAT, "model": self.model.kind, "taxonomy": self.taxonomy.to_dict(),
            "columns": list(self.columns), "temperature": self.temperature,
            "least_confidence": self.least_confidence,
        }  # fmt: skip
        # last, so that a folder that has it is whole
        (path / "classifier.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> TaxonomyClassifier:
        """What `save` wrote; ValueError that names the folder for anything else. device: of a transformer."""
        path = Path(folder)
        try:
            about = json.loads((path / "classifier.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a classifier that omnimix saved ({error})") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            known = about.get("format") if isinstance(about, dict) else about
            raise ValueError(f"{path}: its format is {known!r}, this version reads {FORMAT!r}")
        model: Model
        if about["model"] == TfidfClassifier.kind:
            model = TfidfClassifier.from_state(checkpoint.load(path / "model.safetensors"))
        else:
            model = TransformerClassifier.load(path / "model", device)
        return cls(
            Taxonomy(**about["taxonomy"]), model, columns=about["columns"], temperature=about["temperature"],
            least_confidence=about["least_confidence"],
        )  # fmt: skip

    def _distributions(self, documents: Sequence[Document], targets: Array) -> Array:
        p = np.asarray(targets, dtype=np.float64)
        if p.shape != (len(documents), len(self.taxonomy)):
            raise ValueError(
                f"targets must be ({len(documents)}, {len(self.taxonomy)}) probabilities, got {p.shape}; make them of "
                "labels by taxonomy.soft(labels)"
            )
        wrong = np.flatnonzero(~(np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-3)))
        if len(wrong):
            raise ValueError(f"document {wrong[0]}: its target is no distribution over the labels: {p[wrong[0]]}")
        return p


@dataclass(frozen=True)
class Agreement:
    """How often the most probable label is the annotator's, among n annotations that are sure enough.

    accuracy: of all, with its 95 % interval (Wilson). by_label: label -> (accuracy, n), for labels that occur. macro:
    their mean. worst: the lowest of them. few: labels with fewer than 5 examples, whose accuracy says little.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    macro: float
    worst: float
    worst_label: str
    by_label: Mapping[str, tuple[float, int]]
    majority: float
    """The accuracy of always saying the most frequent label."""

    @property
    def few(self) -> tuple[str, ...]:
        return tuple(label for label, (_, n) in self.by_label.items() if n < FEW)


def agreement(
    taxonomy: Taxonomy, probabilities: Array, targets: Array, least_confidence: float = 0.0
) -> Agreement:  # fmt: skip
    """Compare (N, C) probabilities with the annotations (N, C) whose most probable label is at least that probable.

    WebOrganizer reports 0, 0.5 and 0.75. ValueError where no annotation is as sure.
    """
    from scipy.stats import binomtest

    p, t = np.asarray(probabilities), np.asarray(targets)
    if p.shape != t.shape or p.ndim != 2 or p.shape[1] != len(taxonomy):
        raise ValueError(f"probabilities and targets must be (N, {len(taxonomy)}), got {p.shape} and {t.shape}")
    sure = t.max(1) >= in_unit("least_confidence", least_confidence)
    if not sure.any():
        raise ValueError(f"no annotation is as sure as least_confidence={least_confidence}")
    true = t[sure].argmax(1)
    right = p[sure].argmax(1) == true
    counts = np.bincount(true, minlength=len(taxonomy))
    rates = np.bincount(true, weights=right, minlength=len(taxonomy)) / np.maximum(counts, 1)
    by_label = {
        name: (float(rate), int(n)) for name, rate, n in zip(taxonomy.names, rates, counts, strict=True) if n
    }  # fmt: skip
    worst = min(by_label, key=lambda label: by_label[label][0])
    found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Agreement(
        len(right), float(right.mean()), (float(found.low), float(found.high)),
        float(np.mean([rate for rate, _ in by_label.values()])), by_label[worst][0], worst, by_label,
        float(counts.max() / len(right)),
    )  # fmt: skip
