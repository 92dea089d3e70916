"""Mixout against dropout and decay toward the start when a small encoder is fine-tuned on 64 sentences.

The encoder (two transformer layers of width 64) is trained once on masked words of SST, Subj and questions, without the
sentences that are used later; then each arm fine-tunes it with Adam from the same start, head, samples and order.

    python evidence/mixout/run.py [--data FOLDER] [--seeds 10] [--minutes 10]

Every finished run is kept in --runs, with the encoder beside it, and not done again. --minutes: begin no run after
that, and leave the rest to the next call.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimix.models.regularize import Mixout, StartDecay

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402
from _loop import seeded  # noqa: E402

SETTINGS: dict[str, Any] = {
    "words": 4000, "length": 16, "width": 64, "layers": 2, "heads": 4,
    "pretraining": {"steps": 800, "batch": 64, "lr": 2e-3, "masked": 0.15},
    "fine-tuning": {"samples": 64, "steps": 60, "batch": 16, "warmup": 0.1, "optimizer": "Adam, linear decay"},
    "test": 500,
}  # fmt: skip
TASKS: dict[str, tuple[str, float, float]] = {  # sentences, share of random labels, learning rate
    "questions": ("TREC", 0.0, 1e-3),
    "questions, 30 % random labels": ("TREC", 0.3, 1e-3),
    "sentiment": ("stsa.binary", 0.0, 1e-3),
    "questions, high rate": ("TREC", 0.0, 1e-2),
}
ARMS: dict[str, dict[str, float]] = {
    "plain": {},
    "dropout 0.1": {"dropout": 0.1},
    "start decay 10": {"decay": 10},
    "start decay 100": {"decay": 100},
    "mixout 0.5": {"mixout": 0.5},
    "mixout 0.9": {"mixout": 0.9},
    "mixout 0.9, start decay 10": {"mixout": 0.9, "decay": 10},
}
PAD, UNKNOWN, MASK = 0, 1, 2


class Layer(nn.Module):
    """Attention over all words that are no padding, then a network; dropout on what both add."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.0)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=known[:, None, None, :])
        h = h + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return h + self.drop(self.down(F.gelu(self.up(self.norm2(h)))))


class Encoder(nn.Module):
    """Word ids (B, T) to (B, T, width)."""

    def __init__(self) -> None:
        super().__init__()
        width = SETTINGS["width"]
        self.embed, self.place = nn.Embedding(SETTINGS["words"], width), nn.Embedding(SETTINGS["length"], width)
        self.layers = nn.ModuleList(Layer(width, SETTINGS["heads"]) for _ in range(SETTINGS["layers"]))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        known, h = ids != PAD, self.embed(ids) + self.place.weight[: ids.shape[1]]
        for layer in self.layers:
            h = layer(h, known)
        return self.norm(h)


class Classifier(nn.Module):
    """The mean over the words, and a head."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), nn.Linear(SETTINGS["width"], classes)

    def forward(self, ids: Tensor) -> Tensor:
        known = (ids != PAD)[..., None]
        return self.head((self.encoder(ids) * known).sum(1) / known.sum(1).clamp(min=1))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(file: Path) -> list[tuple[str, list[str]]]:
    """(label, words) of every line; of TREC's labels what stands before the colon."""
    lines = (line.partition(" ") for line in file.read_text(encoding="latin-1").splitlines())
    return [(label.partition(":")[0], words.lower().split()) for label, _, words in lines if words.strip()]


class Sentences:
    """Half of the training sentences of a set for pretraining, the other for samples; its test sentences."""

    def __init__(self, root: Path, name: str) -> None:
        train, self.test = read(root / f"{name}.train"), read(root / f"{name}.test")[: SETTINGS["test"]]
        order = torch.randperm(len(train), generator=draw(0)).tolist()
        half = len(order) // 2
        self.free, self.pool = [train[i] for i in order[:half]], [train[i] for i in order[half:]]
        self.classes = sorted({label for label, _ in train})


def ids_of(sentences: list[list[str]], known: dict[str, int]) -> Tensor:
    length = SETTINGS["length"]
    rows = [[known.get(word, UNKNOWN) for word in words[:length]] for words in sentences]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def pretrain(ids: Tensor) -> Encoder:
    """Masked words."""
    how = SETTINGS["pretraining"]
    encoder, g = seeded(Encoder, 0), draw(1)
    optimizer = torch.optim.Adam(encoder.parameters(), how["lr"], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how["lr"], how["steps"], pct_start=0.1)
    for step in range(how["steps"]):
        some = ids[torch.randint(len(ids), (how["batch"],), generator=g)]
        masked = (torch.rand(some.shape, generator=g) < how["masked"]) & (some > MASK)
        h = encoder(some.masked_fill(masked, MASK))[masked]
        loss = F.cross_entropy(h @ encoder.embed.weight.T, some[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"pretraining, step {step + 1}: {loss.item():.3f}", flush=True)
    return encoder.eval()


def fine_tune(
    encoder: Encoder, arm: dict[str, float], x: Tensor, y: Tensor, classes: int, lr: float, seed: int
) -> tuple[nn.Module, float]:
    """The model, and how far its encoder went."""
    how = SETTINGS["fine-tuning"]
    model: nn.Module = seeded(lambda: Classifier(encoder, classes), seed)
    before = [p.detach().clone() for p in model.encoder.parameters()]
    wrapped: nn.Module = model
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = arm.get("dropout", 0.0)
    if "mixout" in arm:
        names = [f"encoder.layers.*.{name}.weight" for name in ("qkv", "out", "up", "down")]
        wrapped = Mixout(model, arm["mixout"], weights=names, generator=draw(seed + 500))
    head = list(model.head.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr)
    if "decay" in arm:
        StartDecay(optimizer, arm["decay"], exclude=head)
    warm = how["warmup"] * how["steps"]
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (how["steps"] - step) / (how["steps"] - warm))
    )
    g = draw(seed)
    wrapped.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for _ in range(how["steps"]):
            rows = torch.randint(len(x), (how["batch"],), generator=g)
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x[rows]), y[rows]).backward()
            optimizer.step()
            rate.step()
    if isinstance(wrapped, Mixout):
        wrapped.remove()
    moved = (
        sum(float((p.detach() - b).square().sum()) for p, b in zip(model.encoder.parameters(), before, strict=True))
        ** 0.5
    )
    return model.eval(), moved


@torch.no_grad()
def measure(
    task: str, arm: str, seed: int, encoder: Encoder, known: dict[str, int], data: Sentences
) -> dict[str, float]:
    _, noise, lr = TASKS[task]
    how, classes = SETTINGS["fine-tuning"], len(data.classes)
    rows = torch.randperm(len(data.pool), generator=draw(100 + seed))[: how["samples"]].tolist()
    x = ids_of([data.pool[i][1] for i in rows], known)
    y = torch.tensor([data.classes.index(data.pool[i][0]) for i in rows])
    wrong = torch.rand(len(y), generator=draw(200 + seed)) < noise
    y = torch.where(wrong, torch.randint(classes, y.shape, generator=draw(300 + seed)), y)
    with torch.enable_grad():
        model, moved = fine_tune(encoder, ARMS[arm], x, y, classes, lr, seed)
    truth = torch.tensor([data.classes.index(label) for label, _ in data.test])
    found = model(ids_of([words for _, words in data.test], known)).argmax(1)
    return {
        "accuracy": float((found == truth).double().mean()),
        "majority": float(truth.bincount().max()) / len(truth),
        "distance": moved,
    }


def kept_runs(path: Path) -> dict[str, dict[str, float]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["key"]: line["metrics"] for line in map(json.loads, lines)}


def key(task: str, arm: str, seed: int) -> str:
    return json.dumps([task, TASKS[task], arm, ARMS[arm], seed, SETTINGS], sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "sentences"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pretraining-steps", type=int, default=SETTINGS["pretraining"]["steps"])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "mixout.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    SETTINGS["pretraining"]["steps"] = args.pretraining_steps
    torch.set_num_threads(1)
    began = time.monotonic()
    args.runs.parent.mkdir(parents=True, exist_ok=True)
    sets = {name: Sentences(args.data, name) for name in ("TREC", "stsa.binary")}
    text = [words for one in sets.values() for _, words in one.free] + [w for _, w in read(args.data / "subj.all")]
    counts = Counter(word for words in text for word in words)
    known = {word: i + 3 for i, (word, _) in enumerate(counts.most_common(SETTINGS["words"] - 3))}
    stored = args.runs.with_name(f"{args.runs.stem}-encoder-{args.pretraining_steps}.pt")
    encoder = seeded(Encoder, 0)
    if not stored.exists():
        torch.save(pretrain(ids_of(text, known)).state_dict(), stored)
    encoder.load_state_dict(torch.load(stored))
    done = kept_runs(args.runs)
    for seed in range(args.seeds):
        for task, (name, _, _) in TASKS.items():
            for arm in ARMS:
                if key(task, arm, seed) in done:
                    continue
                if time.monotonic() - began > 60 * args.minutes:
                    print("out of time: call again for the rest")
                    return
                found = done[key(task, arm, seed)] = measure(task, arm, seed, encoder, known, sets[name])
                with args.runs.open("a") as file:
                    file.write(json.dumps({"key": key(task, arm, seed), "metrics": found}) + "\n")
        print(f"seed {seed} done, {time.monotonic() - began:.0f} s", flush=True)
    report(args, done)


def report(args: argparse.Namespace, done: dict[str, dict[str, float]]) -> None:
    seeds, outcomes, extra = range(args.seeds), {}, ["", "**Spread and degenerate runs**", ""]
    extra += ["Degenerate: no better on the test sentences than their largest class.", ""]
    extra += [
        "| task | arm | sd of accuracy | lowest | degenerate | distance to the start |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        runs = {arm: [done[key(task, arm, seed)] for seed in seeds] for arm in ARMS}
        accuracy = {arm: [one["accuracy"] for one in found] for arm, found in runs.items()}
        outcomes[f"{task}: accuracy"] = (accuracy, "plain", True)
        # Brown and Forsythe's measure of spread, seed by seed
        spread = {arm: [abs(value - statistics.median(values)) for value in values] for arm, values in accuracy.items()}
        outcomes[f"{task}: distance of the accuracy to the arm's median"] = (spread, "plain", False)
        for arm, found in runs.items():
            values = torch.tensor(accuracy[arm], dtype=torch.float64)
            lost = sum(one["accuracy"] <= one["majority"] for one in found)
            sd = f"{float(values.std()):.3f}" if len(values) > 1 else ""
            far = sum(one["distance"] for one in found) / len(found)
            extra.append(f"| {task} | {arm} | {sd} | {float(values.min()):.3f} | {lost} of {len(found)} | {far:.2f} |")
    record_all(args.out, {**SETTINGS, "tasks": TASKS, "arms": ARMS, "seeds": args.seeds}, outcomes)
    with args.out.with_name("tables.md").open("a") as file:
        file.write("\n".join(extra) + "\n")
    print("\n".join(extra))


if __name__ == "__main__":
    main()
