"""Mixup, stopped early or not, on data with a rare view: who learns the rare feature, and when it may stop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _digits import cnn, folder, sample
from _loop import seeded, train

import omnimix as om
from omnimix.core.method import Method, Mix
from omnimix.data.feature_patches import common_rare, orthonormal
from omnimix.networks.patch_cnn import PatchCNN, alignment
from omnimix.samples.ratio import EarlyStopped

THEORY = {
    "train": 200, "test": 2000, "dim": 800, "patches": 2, "noise": 12.0, "rare": 0.06, "filters": 6, "std": 0.01,
    "lr": 0.05, "steps": 1500, "lam": 0.6,
}  # fmt: skip
IMAGES = {"train": 2000, "test": 2000, "rare": 0.05, "epochs": 30, "batch": 100, "lr": 1e-3, "optimizer": "adam"}


def fixed(stop: float) -> Method:
    return EarlyStopped(stop, method=Mix(ratio=om.Constant(THEORY["lam"])))


THEORY_ARMS = {
    "erm": om.ERM,
    "mixup, lam .6": lambda: fixed(1.0),
    "mixup, Beta(1, 1)": om.Mixup,
    "lam .6, stop at 300": lambda: fixed(300 / 1500),
    "lam .6, stop at 750": lambda: fixed(750 / 1500),
    "lam .6, stop at 1000": lambda: fixed(1000 / 1500),
}
ARMS = {"erm": om.ERM, "mixup": om.Mixup, "stop at 50 %": lambda: EarlyStopped(0.5), "stop at 80 %": EarlyStopped}


def theory(make: Any, seed: int) -> dict[str, float]:
    given, draw = THEORY, torch.Generator().manual_seed(seed)
    features = orthonormal(2, 2, given["dim"], draw)
    shape = {"patches": given["patches"], "noise": given["noise"]}
    data = common_rare(given["train"], features, draw, rare=given["rare"], **shape)
    test = common_rare(given["test"], features, draw, rare=0.5, **shape)
    model = PatchCNN(given["dim"], 2, given["filters"], "quadratic", std=given["std"], generator=draw)
    method = make().setup(model, om.Classification(2), steps=given["steps"], generator=draw)
    optimizer, batch = torch.optim.SGD(model.parameters(), lr=given["lr"]), om.Batch(data.x, data.y)
    for _ in range(given["steps"]):
        method.step(model, batch, optimizer)
        method.after_step()
    with torch.no_grad():
        right = (model(test.x).argmax(1) == test.y).double()
        return {
            "rare accuracy": float(right[test.view == 1].mean()),
            "common accuracy": float(right[test.view == 0].mean()),
            "alignment with the rare features": float(alignment(model.weight, features[:, 1]).diagonal().mean()),
        }


def images(make: Any, path: Path, seed: int) -> dict[str, float]:
    x, y, x_test, y_test = sample(path, IMAGES["train"], IMAGES["test"], seed)
    rare = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < IMAGES["rare"]
    x = torch.where(rare.view(-1, 1, 1, 1), x.rot90(1, (2, 3)), x)
    model = train(
        make(), seeded(lambda: cnn(1, 28), seed), om.Classification(10), x, y,
        seed=seed, epochs=IMAGES["epochs"], batch=IMAGES["batch"], lr=IMAGES["lr"],
    )  # fmt: skip
    found = {}
    with torch.no_grad():
        for view, shown in (("rotated", x_test.rot90(1, (2, 3))), ("upright", x_test)):
            logits = model(shown)
            found[f"{view} accuracy %"] = float((logits.argmax(1) == y_test).double().mean() * 100)
            found[f"{view} nll"] = float(F.cross_entropy(logits, y_test))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}

    def compare(what: str, arms: dict[str, Any], measure: Any, baselines: tuple[str, ...]) -> None:
        runs = {arm: [measure(make, seed) for seed in range(args.seeds)] for arm, make in arms.items()}
        for metric in runs["erm"][0]:
            values = {arm: [run[metric] for run in found] for arm, found in runs.items()}
            for base in baselines:
                name = f"{what}: {metric}" + ("" if base == "erm" else f", against {base}")
                outcomes[name] = (values, base, "nll" not in metric)

    compare("theory", THEORY_ARMS, theory, ("erm",))
    path = folder("mnist")
    if path is not None:
        compare("rotated mnist", ARMS, lambda make, seed: images(make, path, seed), ("erm", "mixup"))
    record_all(args.out, {"theory": THEORY, "images": IMAGES, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
