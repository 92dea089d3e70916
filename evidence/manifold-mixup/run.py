"""Manifold Mixup at a bottleneck: does it flatten the classes' representations, and does input mixup not?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _loop import seeded, train

import omnimix as om
from omnimix.samples.operation.flatness import class_spectra, within_class_share

SETTINGS = {"train": 1000, "epochs": 120, "batch": 50, "lr": 1e-3, "alpha": 1.0, "network": "64-256-[12]-256-10 ReLU"}
ARMS = {
    "erm": om.ERM,
    "mixup": lambda: om.Mixup(SETTINGS["alpha"]),
    "manifold-mixup at the bottleneck": lambda: om.ManifoldMixup(SETTINGS["alpha"], taps=("2",)),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 12), nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def tail(z: Tensor, y: Tensor) -> float:
    """Sum of each class's singular values after the first, relative to the first; mean over classes."""
    spectra = class_spectra(z, y)
    return float((spectra[:, 1:].sum(dim=1) / spectra[:, 0]).mean())


def measure(arm: str, seed: int) -> dict[str, float]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rows, test = order[: SETTINGS["train"]], order[SETTINGS["train"] :]
    model = train(
        ARMS[arm](), seeded(network, seed), om.Classification(10), x[rows], y[rows],
        seed=seed, epochs=SETTINGS["epochs"], batch=SETTINGS["batch"], lr=SETTINGS["lr"],
    )  # fmt: skip
    with torch.no_grad():
        z, logits = model[:3](x[test]), model(x[test])
        return {
            "accuracy": float((logits.argmax(1) == y[test]).double().mean() * 100),
            "nll": float(F.cross_entropy(logits, y[test])),
            "within-class over total variance": float(within_class_share(z, y[test])),
            "singular values after the first": tail(z, y[test]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {arm: [measure(arm, seed) for seed in range(args.seeds)] for arm in ARMS}
    outcomes = {
        metric: ({arm: [run[metric] for run in found] for arm, found in runs.items()}, "erm", metric == "accuracy")
        for metric in runs["erm"][0]
    }
    record_all(args.out, {**SETTINGS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
