"""Mix-LN against Pre-LN and Post-LN: twelve layers on web documents, three seeds.

Held-out loss, the gradient norm of every layer after training, what deleting a layer costs, and how far layers turn the
stream. All placements of a seed see the same tokens, with one learning rate, warm-up and no clipping.

    python evidence/mix-ln/run.py [--data FOLDER] [--seeds 3] [--minutes 10]

Every finished run is kept in --work, with the tokens beside it, and not done again. --minutes: begin no run after that,
and leave the rest to the next call.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnimix.corpora.proxy import Columns, Packed, pack
from omnimix.models.regularize import MixLanguageModel, angular_distances, deletion_costs, gradient_norms, placements
from omnimix.networks.language_model import token_losses

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402
from _loop import seeded  # noqa: E402

SETTINGS: dict[str, Any] = {
    "layers": 12, "width": 64, "heads": 4, "vocabulary": 512, "context": 32, "batch": 16, "steps": 250, "lr": 2e-3,
    "warmup": 0.1, "schedule": "cosine", "optimizer": "Adam, betas 0.9 and 0.95, no weight decay", "clip": None,
    "held-out sequences": 384, "of them for layers": 96, "batches for gradients": 8,
}  # fmt: skip
ARMS = {"Pre-LN": 0.0, "Mix-LN 0.25": 0.25, "Post-LN": 1.0}


class Text:
    """Sequences of one part of the packed documents, all topics together."""

    def __init__(self, packed: Packed, part: str) -> None:
        self.packed, self.part = packed, part
        self.ends = packed.sequences(part, SETTINGS["context"]).cumsum()

    def take(self, number: np.ndarray) -> tuple[Tensor, Tensor]:
        domain = np.searchsorted(self.ends, number, side="right")
        start = np.concatenate(([0], self.ends[:-1]))[domain]
        return self.packed.read(self.part, domain, number - start, SETTINGS["context"])

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.take(generator.integers(self.ends[-1], size=count))


def loss_of(model: MixLanguageModel, inputs: Tensor, targets: Tensor) -> Tensor:
    return token_losses(model(inputs), targets).sum() / (targets >= 0).sum()


def measure(alpha: float, seed: int, train: Text, held_out: tuple[Tensor, Tensor]) -> dict[str, Any]:
    layers, steps = SETTINGS["layers"], SETTINGS["steps"]
    sizes = {"width": SETTINGS["width"], "heads": SETTINGS["heads"]}
    model = seeded(lambda: MixLanguageModel(SETTINGS["vocabulary"], placements(layers, alpha), **sizes), seed)
    optimizer = torch.optim.Adam(model.parameters(), SETTINGS["lr"], betas=(0.9, 0.95), fused=True)
    warm = SETTINGS["warmup"] * steps
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0.0, step - warm) / (steps - warm))),
    )
    order, start, losses = np.random.default_rng(seed), time.process_time(), []
    for _ in range(steps):
        loss = loss_of(model, *train.draw(SETTINGS["batch"], order))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    seconds = time.process_time() - start
    norms = []
    for _ in range(SETTINGS["batches for gradients"]):
        model.zero_grad()
        loss_of(model, *train.draw(SETTINGS["batch"], order)).backward()
        norms.append(gradient_norms(model.blocks))
    model.eval()
    some = [part[: SETTINGS["of them for layers"]] for part in held_out]
    with torch.no_grad():
        final = float(loss_of(model, *held_out))
        costs = deletion_costs(list(model.blocks), lambda: float(loss_of(model, *some)))
    angles = angular_distances(list(model.blocks), lambda: model(some[0]), last=False)
    return {
        "loss": final, "gradient norms": torch.stack(norms).mean(0).tolist(), "deletion": costs,
        "angles": angles.tolist(), "training loss": float(np.mean(losses[-20:])), "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mix-ln")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    SETTINGS["steps"] = args.steps
    torch.set_num_threads(1)
    began = time.monotonic()
    # a fifth of the documents is plenty for these steps, and quick to tokenise
    topics = {str(topic): 0.2 for topic in range(24)}
    packed = pack(
        args.data / "weborganizer" / "documents.jsonl.gz", args.work / "tokens", columns=Columns("topic_id", "text"),
        tokenizer=f"bpe:{SETTINGS['vocabulary']}", held_out={"valid": 0.06}, keep=topics,
    )  # fmt: skip
    print(f"packed, {time.monotonic() - began:.0f} s", flush=True)
    train, valid = Text(packed, "train"), Text(packed, "valid")
    held_out = valid.draw(SETTINGS["held-out sequences"], np.random.default_rng(0))
    done = {}
    for seed in range(args.seeds):
        for arm, alpha in ARMS.items():
            file = args.work / f"{arm}-{seed}-{args.steps}.json"
            if not file.exists():
                if time.monotonic() - began > 60 * args.minutes:
                    print("out of time: call again for the rest")
                    return
                found = {"settings": SETTINGS, **measure(alpha, seed, train, held_out)}
                file.with_suffix(".tmp").write_text(json.dumps(found))
                file.with_suffix(".tmp").replace(file)
            done[arm, seed] = json.loads(file.read_text())
            if done[arm, seed]["settings"] != SETTINGS:
                raise SystemExit(f"{file} is of other settings: choose another --work")
            print(
                f"seed {seed}  {arm:12} loss {done[arm, seed]['loss']:.4f}  {done[arm, seed]['seconds']:.0f} s",
                flush=True,
            )
    report(args, done)


def report(args: argparse.Namespace, done: dict[tuple[str, int], dict[str, Any]]) -> None:
    seeds, late = range(args.seeds), SETTINGS["layers"] // 2

    def arms(value: Any) -> dict[str, list[float]]:
        return {arm: [value(done[arm, seed]) for seed in seeds] for arm in ARMS}

    def ratio(run: dict[str, Any]) -> float:
        return math.log10(max(run["gradient norms"]) / max(min(run["gradient norms"]), 1e-12))

    outcomes = {
        "held-out loss (nats a token)": (arms(lambda run: run["loss"]), "Pre-LN", False),
        "largest over smallest gradient norm of a layer, log10": (arms(ratio), "Pre-LN", False),
        f"loss rise on deleting one of the last {late} layers, mean": (
            arms(lambda run: float(np.mean(run["deletion"][-late:]))), "Pre-LN", True),
        f"angle between input and output of the last {late} layers over pi, mean": (
            arms(lambda run: float(np.mean(run["angles"][-late:]))), "Pre-LN", True),
    }  # fmt: skip
    record_all(args.out, {**SETTINGS, "arms": ARMS, "seeds": args.seeds, "runs": {
        f"{arm}, seed {seed}": {k: v for k, v in run.items() if k != "settings"} for (arm, seed), run in done.items()
    }}, outcomes)  # fmt: skip
    lines = []
    for name, form in (("gradient norms", "{:.2g}"), ("deletion", "{:+.4f}"), ("angles", "{:.3f}")):
        lines += ["", f"**{name} by layer, first to last; mean over seeds**", ""]
        lines += [f"| arm | {' | '.join(map(str, range(1, SETTINGS['layers'] + 1)))} |"]
        lines += ["|---" * (SETTINGS["layers"] + 1) + "|"]
        for arm in ARMS:
            mean = np.mean([done[arm, seed][name] for seed in seeds], axis=0)
            lines.append(f"| {arm} | {' | '.join(form.format(value) for value in mean)} |")
    with args.out.with_name("tables.md").open("a") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
