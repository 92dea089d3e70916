"""Midpoint mixup on data with two views of every class: test error with one view, and features learned in theory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _digits import cnn, folder, sample
from _loop import seeded

import omnimix as om
from omnimix.data.feature_patches import multi_view, orthonormal
from omnimix.data.two_view import TwoView, one_view
from omnimix.networks.patch_cnn import PatchCNN
from omnimix.samples.ratio import learned_features
from omnimix.train import Budget, Data, Part, fit

ARMS = {"erm": om.ERM, "mixup": om.Mixup, "midpoint-mixup": lambda: om.create("midpoint-mixup")}
IMAGES = {"train": 10_000, "test": 2_000, "side": 14, "epochs": 20, "batch": 100, "lr": 1e-3, "optimizer": "adam"}
THEORY = {
    "classes": 6, "train": 90, "test": 1000, "patches": 3, "dim": 12, "noise": 0.5, "filters": 8, "q": 3.0,
    "std": 1e-3, "lr": 12.0, "steps": 10_000,
}  # fmt: skip


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) != y).double().mean() * 100)


def images(make: Any, path: Path, seed: int) -> dict[str, float]:
    x, y, x_test, y_test = sample(path, IMAGES["train"], IMAGES["test"], seed, pool=28 // IMAGES["side"])
    views, both = (TwoView(*data, 10, torch.Generator().manual_seed(seed)) for data in ((x, y), (x_test, y_test)))
    assert torch.equal(views.pi, both.pi)
    model = seeded(lambda: cnn(2, IMAGES["side"]), seed)
    budget = Budget(epochs=IMAGES["epochs"], batch_size=IMAGES["batch"], lr=IMAGES["lr"], select="last")
    fit(make(), model, Data(Part(views, y), None, None, om.Classification(10)), budget, seed=seed)
    model.eval()
    return {
        "one view": error(model, one_view(x_test), y_test),
        "both views (control)": error(model, both.take(torch.arange(len(y_test))), y_test),
    }


def theory(make: Any, seed: int) -> dict[str, float]:
    given, draw = THEORY, torch.Generator().manual_seed(seed)
    features = orthonormal(given["classes"], 2, given["dim"], draw)
    shape = {"patches": given["patches"], "noise": given["noise"]}
    data = multi_view(given["train"], features, draw, **shape)
    test = multi_view(given["test"], features, draw, test=True, **shape)
    model = PatchCNN(
        given["dim"], given["classes"], given["filters"], q=given["q"], std=given["std"], generator=draw
    )  # fmt: skip
    method = make().setup(model, om.Classification(given["classes"]), steps=given["steps"], generator=draw)
    optimizer, batch = torch.optim.SGD(model.parameters(), lr=given["lr"]), om.Batch(data.x, data.y)
    for _ in range(given["steps"]):
        method.step(model, batch, optimizer)
        method.after_step()
    learned = learned_features(model.weight.detach(), features)[1]
    return {"classes learned": float(learned.all(1).double().mean()), "error": error(model, test.x, test.y)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}
    for name in ("fashion-mnist", "mnist"):
        path = folder(name)
        if path is not None:
            runs = {arm: [images(make, path, seed) for seed in range(args.seeds)] for arm, make in ARMS.items()}
            for what in ("one view", "both views (control)"):
                values = {arm: [run[what] for run in found] for arm, found in runs.items()}
                outcomes[f"{name}: test error %, {what}"] = (values, "erm", False)
    runs = {arm: [theory(make, seed) for seed in range(args.seeds)] for arm, make in ARMS.items()}
    learned, wrong = ({a: [run[k] for run in found] for a, found in runs.items()} for k in ("classes learned", "error"))
    outcomes["theory: fraction of classes with both features learned"] = (learned, "erm", True)
    outcomes["theory: test error %, one feature shown"] = (wrong, "erm", False)
    record_all(args.out, {"images": IMAGES, "theory": THEORY, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
