"""SaM on CrossNER: experts of other domains, selected and merged for one, against one model of all their data."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _loop import seeded

from omnimix.models import merge
from omnimix.models.merge.select_and_merge import SelectAndMerge, integrate, micro_f1

DOMAINS = ("ai", "literature", "music", "politics", "science")
SETTINGS = {
    "network": "hashed 3-grams and words (8,192 x 64), two convolutions of 5 tokens and 96 channels",
    "base": "4,000 sentences of conll2003", "base epochs": 2, "expert": "train and dev of its domain", "epochs": 6,
    "lr": 2e-3, "m": 2, "sampled sentences": 20, "texts for similarity": 100, "merger": "TIES, density 0.6, lambda 1",
}  # fmt: skip
BUCKETS = 8192
Sentence = tuple[list[str], list[str]]


def read(root: Path, domain: str, part: str) -> list[Sentence]:
    found = []
    for block in (root / domain / f"{part}.txt").read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if "\t" in line]
        if rows:
            found.append(([row[0] for row in rows], [row[-1] for row in rows]))
    return found


def pieces(word: str) -> list[int]:
    padded = f"<{word}>"
    grams = [word.lower(), "shape:" + "".join("X" if c.isupper() else "d" if c.isdigit() else "x" for c in word[:4])]
    grams += [padded[i : i + 3] for i in range(len(padded) - 2)]
    return [1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in grams[:12]]


class Tagger(nn.Module):
    def __init__(self, tags: int) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(BUCKETS, 64, mode="mean", padding_idx=0)
        self.first, self.second = nn.Conv1d(64, 96, 5, padding=2), nn.Conv1d(96, 96, 5, padding=2)
        self.out = nn.Linear(96, tags)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, pieces) -> (B, T, tags)."""
        h = self.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
        h = F.relu(self.first(h))
        return self.out((h + F.relu(self.second(h))).transpose(1, 2))


class Data:
    def __init__(self, sentences: list[Sentence], tags: dict[str, int]) -> None:
        self.sentences = sentences
        self.x = [torch.tensor([(pieces(word) + [0] * 12)[:12] for word in words]) for words, _ in sentences]
        self.y = [torch.tensor([tags[tag] for tag in found]) for _, found in sentences]
        self.gold = [spans(found) for _, found in sentences]

    def batches(self, order: list[int], size: int):
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            x = nn.utils.rnn.pad_sequence([self.x[i] for i in rows], batch_first=True)
            yield x, nn.utils.rnn.pad_sequence([self.y[i] for i in rows], batch_first=True, padding_value=-100)


def spans(tags: list[str]) -> set[tuple[tuple[int, int], str]]:
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and (tag[0] != "I" or tag[2:] != tags[start][2:]):
            found.add(((start, i), tags[start][2:]))
            start = None
        if tag[0] == "B" or (tag[0] == "I" and start is None):
            start = i
    return found


def train(model: nn.Module, data: list[Data], epochs: int, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), SETTINGS["lr"])
    joined = Data([], {})
    for one in data:
        joined.x, joined.y = joined.x + one.x, joined.y + one.y
    model.train()
    for _ in range(epochs):
        for x, y in joined.batches(torch.randperm(len(joined.x), generator=draw).tolist(), 32):
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, data: Data, names: list[str], rows: range | None = None) -> list[set]:
    found = []
    for x, y in data.batches([*(rows or range(len(data.x)))], 128):
        for tags, wanted in zip(model(x).argmax(-1), y, strict=True):
            found.append(spans([names[tag] for tag in tags[wanted != -100].tolist()]))
    return found


def loaded(state: dict[str, Tensor]) -> nn.Module:
    model = Tagger(len(state["out.bias"]))
    model.load_state_dict(state)
    return model.eval()


def on_target(
    target: str,
    base: nn.Module,
    experts: dict[str, nn.Module],
    unified: nn.Module,
    data: dict[str, dict[str, Data]],
    names: list[str],
    texts: dict[str, Tensor],
) -> dict[str, float]:
    """Strict micro-F1 of every arm on the test sentences of a domain that no expert was trained on."""
    test, few = data[target]["test"], range(SETTINGS["sampled sentences"])
    sam = SelectAndMerge(base.state_dict(), merge.Ties(density=0.6), m=SETTINGS["m"], kept=20)
    for domain, expert in experts.items():
        sam.add(domain, expert.state_dict(), texts[domain])
    sampled = {domain: predict(expert, data[target]["train"], names, few) for domain, expert in experts.items()}
    similar, able = sam.by_similarity(texts[target]), sam.by_samples(sampled)
    labelled = sam.by_samples(sampled, data[target]["train"].gold[: len(few)])
    pairs = itertools.combinations(sorted(experts), SETTINGS["m"])
    found = {chosen: predict(loaded(sam.merged(chosen)), test, names) for chosen in pairs}
    alone = [predict(expert, test, names) for expert in experts.values()]

    def f1(one: list[set]) -> float:
        return 100 * micro_f1(one, test.gold)

    def of(chosen: dict[str, float]) -> list[set]:
        return found[tuple(sorted(chosen))]

    def joined(second: dict[str, float], how: str = "union") -> float:
        return f1([integrate(one, other, how=how) for one, other in zip(of(second), of(similar), strict=True)])

    print(target, [*similar], [*able], [*labelled], flush=True)
    return {
        "unified": f1(predict(unified, test, names)),
        "base": f1(predict(base, test, names)),
        "mean single expert": sum(map(f1, alone)) / len(alone),
        "best single expert (oracle)": max(map(f1, alone)),
        "all merged": f1(predict(loaded(sam.merged(experts)), test, names)),
        "random 2 merged (mean of all pairs)": sum(map(f1, found.values())) / len(found),
        "best 2 merged (oracle)": max(map(f1, found.values())),
        "2 by similarity": f1(of(similar)),
        "2 by samples, voted": f1(of(able)),
        "2 by samples, labelled": f1(of(labelled)),
        "SaM": joined(able),
        "SaM, intersection": joined(able, "intersection"),
        "SaM, labelled samples": joined(labelled),
    }


def run(
    seed: int, data: dict[str, dict[str, Data]], names: list[str], texts: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    base = train(seeded(lambda: Tagger(len(names)), seed), [data["conll2003"]["train"]], SETTINGS["base epochs"], seed)

    def tuned(domains: list[str]) -> nn.Module:
        return train(loaded(base.state_dict()), [data[domain]["train"] for domain in domains], SETTINGS["epochs"], seed)

    every = {domain: tuned([domain]) for domain in DOMAINS}
    totals = {}
    for target in DOMAINS:
        experts = {domain: every[domain] for domain in DOMAINS if domain != target}
        totals[target] = on_target(target, base, experts, tuned([*experts]), data, names, texts)
        print(seed, target, {arm: round(value, 1) for arm, value in totals[target].items()}, flush=True)
    return {arm: {domain: totals[domain][arm] for domain in DOMAINS} for arm in totals[DOMAINS[0]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("OMNIMIX_DATA") or Path(__file__).parents[3] / "shared" / "data") / "crossner"
    raw = {
        domain: {"train": read(root, domain, "train") + read(root, domain, "dev"), "test": read(root, domain, "test")}
        for domain in DOMAINS
    }
    raw["conll2003"] = {"train": read(root, "conll2003", "train")[:4000]}
    tags = {tag for parts in raw.values() for sentences in parts.values() for _, found in sentences for tag in found}
    names = ["O", *sorted(tags - {"O"})]
    data = {
        domain: {part: Data(sentences, {tag: i for i, tag in enumerate(names)}) for part, sentences in parts.items()}
        for domain, parts in raw.items()
    }
    texts = {
        domain: [" ".join(words) for words, _ in raw[domain]["train"][: SETTINGS["texts for similarity"]]]
        for domain in DOMAINS
    }
    vectors = TfidfVectorizer(stop_words="english", max_features=4000).fit(
        [text for some in texts.values() for text in some]
    )
    embedded = {domain: torch.from_numpy(vectors.transform(some).toarray()) for domain, some in texts.items()}
    runs = [run(seed, data, names, embedded) for seed in range(args.seeds)]
    outcomes = {
        "micro-F1, mean of five target domains": (
            {arm: [sum(one[arm].values()) / len(DOMAINS) for one in runs] for arm in runs[0]}, "unified", True,
        )
    }  # fmt: skip
    for domain in DOMAINS:
        outcomes[f"micro-F1, {domain}"] = (
            {arm: [one[arm][domain] for one in runs] for arm in runs[0]},
            "unified",
            True,
        )
    record_all(args.out, {**SETTINGS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
