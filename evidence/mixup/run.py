"""mixup on digits with wrong labels, and on clean digits: accuracy, memorised wrong labels, NLL, calibration, FGSM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _loop import seeded, train

import omnimix as om
from omnimix.train.calibration import ece

SETTINGS = {"train": 400, "epochs": 200, "batch": 50, "lr": 1e-3, "network": "64-256-256-10 ReLU", "epsilon": 0.1}
ARMS = {"erm": om.ERM, **{f"mixup:alpha={a}": (lambda a=a: om.Mixup(a)) for a in (1, 8, 32)}}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def measure(arm: str, seed: int, noise: float) -> dict[str, float]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    rows, test = order[: SETTINGS["train"]], order[SETTINGS["train"] :]
    given = y[rows].clone()
    flipped = torch.rand(len(rows), generator=draw) < noise
    given[flipped] = torch.randint(10, (int(flipped.sum()),), generator=draw)
    wrong = given != y[rows]
    model = train(
        ARMS[arm](), seeded(network, seed), om.Classification(10), x[rows], given,
        seed=seed, epochs=SETTINGS["epochs"], batch=SETTINGS["batch"], lr=SETTINGS["lr"],
    )  # fmt: skip
    attacked = x[test].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(attacked), y[test]), attacked)
    with torch.no_grad():
        logits = model(x[test])
        fgsm = model(x[test] + SETTINGS["epsilon"] * gradient.sign()).argmax(1)
        memorised = (model(x[rows]).argmax(1) == given)[wrong].double().mean() if noise else torch.tensor(float("nan"))
        return {
            "accuracy": float((logits.argmax(1) == y[test]).double().mean() * 100),
            "nll": float(F.cross_entropy(logits, y[test])),
            "ece": float(ece(logits.softmax(1), y[test])),
            "fgsm accuracy": float((fgsm == y[test]).double().mean() * 100),
            "wrong labels memorised": float(memorised),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}
    for noise in (0.4, 0.0):
        runs = {arm: [measure(arm, seed, noise) for seed in range(args.seeds)] for arm in ARMS}
        for metric in runs["erm"][0]:
            if noise or metric != "wrong labels memorised":
                values = {arm: [run[metric] for run in found] for arm, found in runs.items()}
                outcomes[f"{metric}, {noise:.0%} label noise"] = (values, "erm", "accuracy" in metric)
    record_all(args.out, {**SETTINGS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
