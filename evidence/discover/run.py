"""Domains made of real web pages: what a linear classifier learns of WebOrganizer's topics and formats, what R&B's
regrouping finds, and whether Domain2Vec's vectors give a hidden mixture back.

    python evidence/discover/run.py [--data FOLDER] [--seeds 5] [--documents N]

FOLDER holds weborganizer/documents.jsonl.gz (default: OMNIMIX_DATA): pages with topic, format and how sure a language
model was of them. Every seed splits the pages anew: 55 % to learn from, 22 % to describe data sets, the rest to test.
Every finished seed is kept beside --out and not done again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import record_all

from omnimix.corpora.discover import (
    Taxonomy,
    TfidfClassifier,
    TfidfSVD,
    agreement,
    mean_vector,
    overlap,
    regroup,
)
from omnimix.corpora.discover.vectors import DatasetVectors
from omnimix.corpora.weigh.domain2vec import align, domain2vec

KINDS = ("topic", "format")
COUNT = 24
TAXONOMY = {kind: Taxonomy(kind, [f"{kind} {i}" for i in range(COUNT)]) for kind in KINDS}
KS = (4, 8, 16, 24, 32, 48)
HIDDEN = 5
"""Data sets in a hidden mixture."""
VALIDATION = (50, 200, 1000)
CHEAP_WRONG = 0.4
"""The share of labels of the cheap annotator that are another topic."""
STRONG = 600
NAMES = {
    "accuracy": "accuracy",
    "worst": "accuracy of the worst label",
    "sure": "accuracy where the annotator is 75 % sure",
}


def read(folder: Path, most: int | None) -> list[dict[str, Any]]:
    with gzip.open(folder / "weborganizer" / "documents.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:most]]


class Pages:
    """The pages of one seed, and their words, which are counted once for all classifiers."""

    def __init__(self, rows: list[dict[str, Any]], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(rows))
        ends = np.cumsum([round(0.55 * len(rows)), round(0.22 * len(rows))])
        self.learn, self.describe, self.test = np.split(order, ends)
        self.texts = [row["text"] for row in rows]
        self.ids = {kind: np.array([row[f"{kind}_id"] for row in rows]) for kind in KINDS}
        self.sure = {kind: np.array([row[f"{kind}_confidence"] for row in rows]) for kind in KINDS}

    def text(self, rows: np.ndarray) -> list[str]:
        return [self.texts[i] for i in rows]

    def soft(self, kind: str, rows: np.ndarray) -> np.ndarray:
        return TAXONOMY[kind].soft(self.ids[kind][rows].tolist(), self.sure[kind][rows])

    def hard(self, kind: str, rows: np.ndarray) -> np.ndarray:
        return np.eye(COUNT)[self.ids[kind][rows]]


def classifiers(pages: Pages, seed: int) -> tuple[dict[str, Any], TfidfClassifier]:
    """Accuracies on the test pages by kind and arm, and the topic classifier that learned soft labels."""
    found: dict[str, Any] = {}
    learned = None
    for kind in KINDS:
        for arm in ("soft labels", "hard labels"):
            target = (pages.soft if arm == "soft labels" else pages.hard)(kind, pages.learn)
            model = TfidfClassifier().fit(pages.text(pages.learn), target)
            found[f"{kind}, {arm}"] = scores(pages, kind, model)
            if learned is None:
                learned = model
        counts = np.bincount(pages.ids[kind][pages.learn], minlength=COUNT)
        majority = float((pages.ids[kind][pages.test] == counts.argmax()).mean())
        found[f"{kind}, majority"] = {"accuracy": majority}
    rng = np.random.default_rng(1000 + seed)
    strong, cheap = pages.learn[:STRONG], pages.learn[STRONG:]
    wrong = rng.random(len(cheap)) < CHEAP_WRONG
    other = (pages.ids["topic"][cheap] + rng.integers(1, COUNT, len(cheap))) % COUNT
    labels = np.where(wrong, other, pages.ids["topic"][cheap])
    noisy, true = np.eye(COUNT)[labels], pages.hard("topic", strong)
    only = TfidfClassifier().fit(pages.text(strong), true)
    both = TfidfClassifier().fit(pages.text(np.concatenate([cheap, strong])), np.concatenate([noisy, true]))
    staged = TfidfClassifier().fit(pages.text(cheap), noisy)
    found["stages, cheap only"] = scores(pages, "topic", staged)
    staged.fit(pages.text(strong), true)
    for arm, model in {"strong only": only, "one stage, both": both, "cheap, then strong": staged}.items():
        found[f"stages, {arm}"] = scores(pages, "topic", model)
    assert learned is not None
    return found, learned


def scores(pages: Pages, kind: str, model: TfidfClassifier) -> dict[str, float]:
    p, t = model.probabilities(pages.text(pages.test)), pages.soft(kind, pages.test)
    all_of, sure = agreement(TAXONOMY[kind], p, t), agreement(TAXONOMY[kind], p, t, 0.75)
    return {"accuracy": all_of.accuracy, "worst": all_of.worst, "sure": sure.accuracy}


def clusters(pages: Pages, seed: int) -> dict[str, Any]:
    """Silhouettes, and how the clusters of the chosen k and of 24 agree with topics and formats."""
    generator = torch.Generator().manual_seed(seed)
    embedder = TfidfSVD(64)
    embedder.fit(pages.text(pages.learn), generator)
    points, fresh = embedder(pages.text(pages.learn)), embedder(pages.text(pages.test))
    groups, _ = regroup(embeddings=points, k=KS, generator=generator)
    as_many, _ = regroup(embeddings=points, k=COUNT, generator=generator)
    found: dict[str, Any] = {
        "silhouettes": {str(k): value for k, value in groups.silhouettes.items()},
        "k": max(groups.silhouettes, key=lambda k: groups.silhouettes[k]),
    }
    for name, one in {"chosen": groups, "24": as_many}.items():
        for kind in KINDS:
            agreed = overlap(one.assign(fresh), pages.ids[kind][pages.test].tolist())
            found[f"{name}, {kind}"] = {"nmi": agreed.nmi, "purity": agreed.purity, "chance": agreed.chance}
    return found


def mixtures(pages: Pages, model: TfidfClassifier, seed: int) -> dict[str, Any]:
    """L1 errors of the mixture found from validation pages that were drawn by a hidden one, by data sets, N and arm."""
    rng = np.random.default_rng(2000 + seed)
    describe, test = (model.probabilities(pages.text(rows)) for rows in (pages.describe, pages.test))
    hard = np.eye(COUNT)[describe.argmax(1)], np.eye(COUNT)[test.argmax(1)]
    words = model.tfidf(pages.text(pages.describe)), model.tfidf(pages.text(pages.test))
    errors: dict[str, Any] = {}
    for kind in KINDS:
        own, other = pages.ids[kind][pages.describe], pages.ids[kind][pages.test]
        sets = [int(i) for i in np.unique(own) if (own == i).sum() >= 5 and (other == i).sum() >= 5]
        v, v_hard = (np.stack([mean_vector(p[own == i]) for i in sets], 1) for p in (describe, hard[0]))
        centres = np.stack([np.asarray(words[0][own == i].mean(0)).ravel() for i in sets])
        size = np.array([(own == i).sum() for i in sets], dtype=float)
        for n in VALIDATION:
            truth = np.zeros(len(sets))
            truth[rng.choice(len(sets), HIDDEN, replace=False)] = rng.dirichlet(np.ones(HIDDEN))
            drawn = np.concatenate([
                rng.choice(np.flatnonzero(other == i), count)
                for i, count in zip(sets, rng.multinomial(n, truth), strict=True)
            ])  # fmt: skip
            q, q_hard = mean_vector(test[drawn]), mean_vector(hard[1][drawn])
            table = DatasetVectors(TAXONOMY["topic"].names, tuple(map(str, sets)), v, tuple(int(s) for s in size))
            generator = torch.Generator().manual_seed(seed)
            searched = {
                top: domain2vec(table, q, solver="search", top=top, generator=generator).vector() for top in (1, 100)
            }
            mean = np.asarray(words[1][drawn].mean(0)).ravel()
            near = unit(centres) @ unit(mean[None])[0]
            neighbours = np.asarray((words[1][drawn] @ words[0].T).argmax(1)).ravel()
            arms = {
                "uniform": np.full(len(sets), 1 / len(sets)),
                "sizes": size / size.sum(),
                "nearest pages": shares(own[neighbours], sets),
                "cosine of mean words": np.maximum(near, 0) / np.maximum(near, 0).sum(),
                **{distance: align(v, q, distance=distance) for distance in ("huber", "l2", "l1", "js")},
                "l2, hard labels": align(v_hard, q_hard, distance="l2"),
                "search, best": searched[1],
                "search, mean of 100": searched[100],
            }
            errors[f"{kind}s, N={n}"] = {arm: float(np.abs(r - truth).sum()) for arm, r in arms.items()}
    return errors


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def shares(labels: np.ndarray, sets: list[int]) -> np.ndarray:
    counts = np.array([(labels == i).sum() for i in sets], dtype=float)
    return counts / counts.sum()


def measure(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    started = time.process_time()
    pages = Pages(rows, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        learned, model = classifiers(pages, seed)
        found = {"classifiers": learned, "clusters": clusters(pages, seed), "mixtures": mixtures(pages, model, seed)}
    return {**found, "seconds": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", ".")))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--documents", type=int, help="fewer pages, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("differences between arms need two seeds or more")
    runs = asked.out.with_name(asked.out.stem + "-runs.json")
    kept: dict[str, Any] = json.loads(runs.read_text()) if runs.exists() else {}
    rows = read(asked.data, asked.documents)
    for seed in range(asked.seeds):
        if str(seed) not in kept:
            kept[str(seed)] = measure(rows, seed)
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            runs.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"seed {seed}: {kept[str(seed)]['seconds']:.0f} s of processor time", flush=True)
    done = [kept[str(seed)] for seed in range(asked.seeds)]
    outcomes: dict[str, Any] = {}
    for group, baseline in (("topic", "majority"), ("format", "majority"), ("stages", "strong only")):
        for what in ("accuracy", "worst", "sure"):
            arms = {
                name.split(", ", 1)[1]: [run["classifiers"][name][what] for run in done]
                for name, one in done[0]["classifiers"].items() if name.startswith(group) and what in one
            }  # fmt: skip
            outcomes[f"{group}: {NAMES[what]}"] = arms, baseline if baseline in arms else next(iter(arms)), True
    for kind in KINDS:
        for what in ("nmi", "purity"):
            arms = {name: [run["clusters"][f"{name}, {kind}"][what] for run in done] for name in ("24", "chosen")}
            if what == "purity":
                arms["one cluster"] = [run["clusters"][f"24, {kind}"]["chance"] for run in done]
            outcomes[f"clusters and {kind}s: {what}"] = arms, "24", True
    silhouettes = {f"k={k}": [run["clusters"]["silhouettes"][str(k)] for run in done] for k in KS}
    outcomes["silhouette"] = silhouettes, f"k={KS[0]}", True
    for name, one in done[0]["mixtures"].items():
        arms = {arm: [run["mixtures"][name][arm] for run in done] for arm in one}
        outcomes[f"mixture of {name}: L1 error"] = arms, "uniform", False
    settings = {
        "documents": len(rows), "seeds": asked.seeds, "ks": KS, "hidden": HIDDEN, "cheap labels wrong": CHEAP_WRONG,
        "strong": STRONG, "chosen k": [run["clusters"]["k"] for run in done],
        "seconds of processor time": sum(run["seconds"] for run in done),
    }  # fmt: skip
    record_all(asked.out, settings, outcomes)


if __name__ == "__main__":
    main()
