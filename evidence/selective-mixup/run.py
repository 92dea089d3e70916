"""Selective mixup and its controls on imbalanced digits: how much of the gain is resampling?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _loop import seeded, train

import omnimix as om
from omnimix.samples.pairing import Resampled, SelectiveMixup, controls

SETTINGS = {
    "two classes": "digit >= 5 or not, 500 negative and 30 positive",
    "ten classes": "digit c has round(100 * 0.03 ** (c / 9)) samples",
    "test": "all other digits, balanced accuracy in percent",
    "network": "64-128-128-C ReLU, Adam 1e-3, alpha 2, about 800 steps of 64 samples (32 pairs where not mixed)",
}
ARMS: dict[str, Callable[[], om.Method]] = {
    "erm": om.ERM,
    "mixup": lambda: om.Mixup(2.0),
    "same class": lambda: SelectiveMixup("same"),
    "different class": lambda: SelectiveMixup("different"),
    "same pairs, not mixed": lambda: controls(SelectiveMixup("different"))["pairs"],
    "resampled by the pairs": lambda: controls(SelectiveMixup("different"))["resampling"],
    "uniform classes": lambda: Resampled("class"),
    "uniform classes + mixup": lambda: Resampled("class", om.Mixup(2.0)),
}


def counts(classes: int) -> list[int]:
    return [500, 30] if classes == 2 else [round(100 * 0.03 ** (c / 9)) for c in range(10)]


def balanced_accuracy(predicted: Tensor, y: Tensor) -> float:
    return float(torch.stack([(predicted[y == c] == c).double().mean() for c in y.unique()]).mean() * 100)


def measure(arm: str, seed: int, classes: int) -> float:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    y = (y >= 5).long() if classes == 2 else y
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[y[order] == c][:n] for c, n in enumerate(counts(classes))])
    test = order[~torch.isin(order, rows)]

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
        )  # fmt: skip

    batch = 32 if arm == "same pairs, not mixed" else 64
    model = train(
        ARMS[arm](), seeded(network, seed), om.Classification(classes), x[rows], y[rows],
        seed=seed, epochs=round(800 / -(-len(rows) // batch)), batch=batch, lr=1e-3,
    )  # fmt: skip
    with torch.no_grad():
        return balanced_accuracy(model(x[test]).argmax(1), y[test])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {
        name: ({arm: [measure(arm, s, classes) for s in range(args.seeds)] for arm in ARMS}, "erm", True)
        for name, classes in (("two classes", 2), ("ten classes", 10))
    }
    record_all(args.out, {**SETTINGS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
