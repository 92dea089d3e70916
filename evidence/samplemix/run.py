"""SampleMix on real web documents, a third of them spoiled: does it choose a better corpus than chance, at one budget?

The documents are thinned so that the largest of 24 topics holds about sixteen times the smallest. The data have no
rating of quality, so we make one: 30 % of the training documents are spoiled in one of three ways, each with a rating
of our own, and the scorer learns from 500 rated documents. Every arm chooses documents for the same number of tokens, a
small transformer is trained on them once through, and its loss is measured on untouched documents, topic by topic.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

from omnimix.corpora import Mixture
from omnimix.corpora.draw import select_documents
from omnimix.corpora.proxy import Columns, Follow, Packed, Training, network, pack, train
from omnimix.corpora.proxy.tokenizer import Subwords, learn_subwords, load_subwords
from omnimix.corpora.score import OrdinalQuality, SampleMix, drawn, round_copies
from omnimix.networks.language_model import IGNORED, token_losses

VOCABULARY, RATIO, SPOILED, RATED, TEST = 512, 16.0, 0.3, 500, 20
TRAINING = Training(steps=160, batch=16, context=64, width=64, layers=3, heads=4, lr=5e-3)
RATINGS = {"clean": 10, "repeated": 5, "cut": 3, "shuffled": 1}
BOILERPLATE = "Home About Contact Log in Sign up Privacy Terms Cookies Share this page Read more Subscribe now. "
CLUSTERS, CAP = 48, 4.0
MEASURED = 24
"""Held-out sequences of a topic, at most."""


def corpus(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training documents, thinned and partly spoiled, and untouched test documents, 20 a topic."""
    random = np.random.default_rng(0)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        whole = [json.loads(line) for line in lines]
    documents = [{"text": d["text"], "topic": str(d["topic_id"])} for d in whole]
    topics = sorted({d["topic"] for d in documents}, key=int)
    keep = dict(zip(random.permutation(topics), RATIO ** -np.linspace(0, 1, len(topics)), strict=True))
    training, test = [], []
    for topic in topics:
        own = [d for d in documents if d["topic"] == topic]
        own = [own[i] for i in random.permutation(len(own))]
        test += own[:TEST]
        training += own[TEST : TEST + round((len(own) - TEST) * float(keep[topic]))]
    for document in training:
        kind = str(random.choice(["repeated", "cut", "shuffled"])) if random.random() < SPOILED else "clean"
        document.update(text=spoil(document["text"], kind, random), kind=kind, rating=RATINGS[kind])
    return training, test


def spoil(text: str, kind: str, random: np.random.Generator) -> str:
    words = text.split()
    if kind == "repeated":
        piece = " ".join(words[: max(5, len(words) // 10)]) + "\n"
        return piece * (len(text) // len(piece) + 1)
    if kind == "cut":
        return text[: len(text) // 4] + "\n" + BOILERPLATE * (3 * len(text) // 4 // len(BOILERPLATE) + 1)
    return " ".join(random.permutation(words)) if kind == "shuffled" else text


def lengths(tokenizer: Subwords, documents: list[dict[str, Any]]) -> np.ndarray:
    return np.array([len(ids) + 1 for ids in tokenizer.encode([d["text"] for d in documents])])


def choices(documents: list[dict[str, Any]], tokens: np.ndarray, budget: float, seed: int) -> dict[str, np.ndarray]:
    """arm -> documents to train on."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    topic = np.array([d["topic"] for d in documents])
    clean = np.array([d["kind"] == "clean" for d in documents])
    sizes = {name: int(tokens[topic == name].sum()) for name in np.unique(topic).tolist()}
    found = {
        name: select_documents(topic, tokens, Mixture(weights), budget, generator=generator()).index
        for name, weights in (("proportional", sizes), ("uniform", dict.fromkeys(sizes, 1.0)))
    }
    rest = np.flatnonzero(clean)
    known = {name: int(tokens[rest][topic[rest] == name].sum()) for name in sizes}
    picked = select_documents(topic[rest], tokens[rest], Mixture(known), budget, generator=generator())
    found["clean alone, proportional"] = rest[picked.index]

    rated = torch.randperm(len(documents), generator=generator())[:RATED].tolist()
    quality = OrdinalQuality().fit([documents[i] for i in rated], [documents[i]["rating"] for i in rated])
    model = SampleMix.fit(documents, quality, clusters=CLUSTERS, generator=generator())
    ratings = model.rate(documents)._replace(tokens=tokens)
    for alpha in (0.0, 0.8, 1.0):
        measured = model.measured(lambda: [ratings], budget, alpha=alpha, cap=CAP).sampling
        assert measured is not None
        copies = measured.copies(measured.score(ratings.quality, ratings.cluster))
        found[f"SampleMix, alpha={alpha:g}"] = drawn(
            round_copies(copies, generator()), tokens, topic, generator()
        ).index
    return found


def held_out(model: dict[str, torch.Tensor], training: Packed, test: Packed, seed: int) -> dict[str, float]:
    """topic -> mean loss of a trained network, in nats a token."""
    net = network(training, TRAINING, seed)
    net.load_state_dict(model)
    net.eval()
    found = {}
    for place, topic in enumerate(test.domains):
        count = min(MEASURED, int(test.sequences("train", TRAINING.context)[place]))
        rows = np.arange(count)
        inputs, targets = test.read("train", np.full(count, place), rows, TRAINING.context)
        with torch.no_grad():
            losses = token_losses(net(inputs), targets)
        found[topic] = float(losses.double().sum() / (targets != IGNORED).sum())
    return found


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, computed once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".tmp").write_text(json.dumps(make()))
        file.with_suffix(".tmp").replace(file)
    return json.loads(file.read_text())


def packed(documents: list[dict[str, Any]], folder: Path, tokenizer: Path, column: str) -> Packed:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    return pack(file, folder / "tokens", columns=Columns(column), tokenizer=str(tokenizer), held_out={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/samplemix"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    documents, test = corpus(args.data / "weborganizer" / "documents.jsonl.gz")
    file = args.work / "tokenizer.json"
    if not file.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        learn_subwords((d["text"] for d in documents if d["kind"] == "clean"), VOCABULARY).inner.save(str(file))
    tokens = lengths(load_subwords(file), documents)
    measured = packed(test, args.work / "test", file, "topic")
    budget = float(TRAINING.steps * TRAINING.batch * TRAINING.context)
    print(len(documents), "documents,", tokens.sum(), "tokens, budget", budget, time.process_time() - begun, flush=True)

    losses: dict[str, list[dict[str, float]]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):
        chosen: dict[str, list[int]] = kept(
            args.work / f"choice-{seed}.json",
            lambda seed=seed: {
                name: rows.tolist() for name, rows in choices(documents, tokens, budget, seed).items()
            },
        )  # fmt: skip
        print("seed", seed, "chosen", time.process_time() - begun, flush=True)
        for arm, rows in chosen.items():
            name = "".join(c if c.isalnum() else "-" for c in arm)

            def one(rows: list[int] = rows, name: str = name, seed: int = seed) -> dict[str, Any]:
                some = packed([{**documents[i], "all": "all"} for i in rows], args.work / name / str(seed), file, "all")
                done = train(some, Follow(Mixture({"all": 1.0})), TRAINING, seed=seed, parts=())
                return {"losses": held_out(done.model, some, measured, seed), "epochs": done.epochs["all"]}

            found = kept(args.work / name / f"{seed}.json", one)
            losses.setdefault(arm, []).append(found["losses"])
            facts.setdefault(arm, []).append(described(documents, tokens, np.array(rows)) | {"epochs": found["epochs"]})
            print(arm, seed, np.mean(list(found["losses"].values())), time.process_time() - begun, flush=True)

    sizes = {d["topic"]: 0 for d in documents}
    for document, length in zip(documents, tokens.tolist(), strict=True):
        sizes[document["topic"]] += length
    rare = sorted(sizes, key=lambda name: sizes[name])[:8]
    outcomes: dict[str, Callable[[dict[str, float]], float]] = {
        "mean held-out loss of the 24 topics": lambda one: float(np.mean(list(one.values()))),
        "mean held-out loss of the 8 rarest topics": lambda one: float(np.mean([one[name] for name in rare])),
        "held-out loss in proportion to the tokens": lambda one: sum(
            one[name] * size for name, size in sizes.items()
        ) / sum(sizes.values()),
    }  # fmt: skip
    tables = {
        title: ({arm: [score(one) for one in found] for arm, found in losses.items()}, "proportional", False)
        for title, score in outcomes.items()
    }
    settings = {
        "documents": len(documents), "tokens": int(tokens.sum()), "budget": budget, "vocabulary": VOCABULARY,
        "training": vars(TRAINING), "ratings": RATINGS, "spoiled": SPOILED, "rated": RATED, "clusters": CLUSTERS,
        "cap": CAP, "chosen": facts, "losses by topic": losses, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, tables)
    with open(args.out.with_name("tables.md"), "a") as out:
        out.write("\n**What was chosen** (mean over seeds; shares of tokens)\n\n")
        out.write("| arm | documents | most copies | spoiled | 8 rarest topics |\n|---|---|---|---|---|\n")
        for arm, rows in facts.items():
            rarest = np.mean([sum(row["topics"].get(name, 0.0) for name in rare) for row in rows])
            cells = [np.mean([row[name] for row in rows]) for name in ("documents", "most copies", "spoiled")]
            out.write(f"| {arm} | {cells[0]:.0f} | {cells[1]:.1f} | {cells[2]:.3f} | {rarest:.3f} |\n")


def described(documents: list[dict[str, Any]], tokens: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Of a choice: different documents, copies of one at most, shares of its tokens by topic and that are spoiled."""
    weight = tokens[rows] / tokens[rows].sum()
    topic = np.array([documents[i]["topic"] for i in rows])
    spoiled = np.array([documents[i]["kind"] != "clean" for i in rows])
    return {
        "documents": len(np.unique(rows)), "most copies": int(np.bincount(rows).max()),
        "tokens": int(tokens[rows].sum()), "spoiled": float(weight[spoiled].sum()),
        "topics": {name: float(weight[topic == name].sum()) for name in np.unique(topic).tolist()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
