"""All static and saliency mixers on a small CIFAR-10: accuracy, NLL, ECE, and accuracy on attacked, corrupted and
occluded images. 3,000 training images at 16 x 16, a narrow PreActResNet-18, equal initial weights and data order.

    python evidence/mixed-images/run.py [--data FOLDER] [--methods erm cutmix ...] [--seeds 3] [--minutes 10]

FOLDER holds CIFAR-10 in a layout that omnimix reads. Every finished run is kept in --runs, and not done again; the
images that are used lie beside it. --minutes: begin no run after that, and leave the rest to the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from omnimix import Classification
from omnimix.compare.spec import Spec, create
from omnimix.data import load
from omnimix.data.scale import Scaler
from omnimix.networks import create as create_network
from omnimix.train.budget import Budget
from omnimix.train.evaluate import predict
from omnimix.train.loop import fit
from omnimix.train.metrics import scores
from omnimix.train.parts import Data, Part
from omnimix.train.robustness import blur, contrast, fgsm, noise, occluded

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402

METHODS = (
    "erm", "mixup", "cutmix", "mixup-or-cutmix", "fmix", "gridmix", "gridmix-local", "smoothmix", "resizemix", "mosaic",
    "saliencymix", "attentivemix", "snapmix", "puzzle-mix", "co-mixup", "manifold-mixup", "alignmixup", "patchup",
    "stylemix", "stylecutmix", "mixstyle", "recursivemix", "augmix", "sumix", "automix",
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "train": 3000, "pool": 12_000, "test": 1000, "side": 16,
    "network": "preact-resnet18:width=8", "epochs": 6, "batch": 50,
    "optimizer": "SGD, lr 0.1, momentum 0.9, weight decay 5e-4, cosine",
    "fgsm": 2 / 255, "noise": 0.08, "blur": 0.7, "contrast": 0.3, "occluded": 0.5,
}  # fmt: skip
OPENMIXUP = {
    "erm": 95.50, "mixup": 96.62, "cutmix": 96.68, "manifold-mixup": 96.71, "smoothmix": 96.17, "saliencymix": 96.20,
    "attentivemix": 96.63, "fmix": 96.18, "gridmix": 96.56, "resizemix": 96.76, "puzzle-mix": 97.10, "automix": 97.34,
}  # fmt: skip
"""CIFAR-10 accuracy of ResNet-18 after 800 epochs, docs/en/mixup_benchmarks of Westlake-AI/openmixup at 37e1372."""
HIGHER = ("accuracy", "fgsm", "noise", "blur", "contrast", "corruptions", "occluded")


def images(folder: Path, side: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(pixels in [0, 1], class ids, rows of the official parts), averaged down to side x side."""
    source = load(str(folder))
    assert source.official is not None
    parts = {name: rows[torch.randperm(len(rows), generator=draw(0))] for name, rows in source.official.items()}
    kept = {"train": parts["train"][: SETTINGS["pool"]], "test": parts["test"][: SETTINGS["test"]]}
    rows = torch.cat(list(kept.values()))
    x = torch.cat([F.adaptive_avg_pool2d(source.take(some), side) for some in rows.split(2000)])
    ends = len(kept["train"])
    return x, source.y[rows], {"train": torch.arange(ends), "test": torch.arange(ends, len(rows))}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(method: str, seed: int, x: Tensor, y: Tensor, parts: dict[str, Tensor]) -> dict[str, float]:
    order = torch.randperm(len(parts["train"]), generator=draw(1000 + seed))
    train, test = parts["train"][order[: SETTINGS["train"]]], parts["test"]
    scaler, task = Scaler.fit_images([x[train]]), Classification(10)
    network = Spec.parse(SETTINGS["network"])
    model = create_network(network.name, tuple(x.shape[1:]), 10, seed=seed, **dict(network.parameters))
    budget = Budget(
        SETTINGS["epochs"], SETTINGS["batch"], 0.1, optimizer="sgd", weight_decay=5e-4, schedule="cosine",
        select="last", accelerator="cpu",
    )  # fmt: skip
    spec, scale = Spec.parse(method), scaler.scale
    trained = create(spec, {"scale": tuple(scale.tolist())} if spec.name == "puzzle-mix" else {})
    data = Data(Part(scaler(x[train]), y[train]), None, Part(scaler(x[test]), y[test]), task)
    done = fit(trained, model, data, budget, seed=seed)
    model.eval()

    def score(inputs: Tensor) -> dict[str, float]:
        return scores(task, *predict(model, trained, Part(inputs, y[test]), task))

    clean, pixels = score(data.test.x), x[test]
    black, white = (scaler(torch.full_like(pixels[:1], edge)) for edge in (0.0, 1.0))
    attacked = torch.cat([
        fgsm(model, some, labels, task, SETTINGS["fgsm"] / scale.view(-1, 1, 1), black, white)
        for some, labels in zip(data.test.x.split(500), y[test].split(500), strict=True)
    ])  # fmt: skip
    harder = {
        "noise": noise(pixels, SETTINGS["noise"], generator=draw(1)),
        "blur": blur(pixels, SETTINGS["blur"]),
        "contrast": contrast(pixels, SETTINGS["contrast"]),
        "occluded": occluded(pixels, SETTINGS["occluded"], generator=draw(2)),
    }
    found = {name: score(scaler(inputs))["accuracy"] for name, inputs in harder.items()}
    corruptions = sum(found[name] for name in ("noise", "blur", "contrast")) / 3
    return {
        **{name: clean[name] for name in ("accuracy", "nll", "ece")},
        "fgsm": score(attacked)["accuracy"],
        **found,
        "corruptions": corruptions,
        "seconds": done.seconds,
    }


def kept_runs(path: Path) -> dict[str, dict[str, float]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["key"]: line["metrics"] for line in map(json.loads, lines)}


def key(method: str, seed: int) -> str:
    return json.dumps([method, seed, SETTINGS], sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "cifar10"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="the first is the baseline")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("epochs", "train", "test"):
        parser.add_argument(f"--{name}", type=int, default=SETTINGS[name])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "mixed-images.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    SETTINGS.update(epochs=args.epochs, train=args.train, test=args.test)
    torch.set_num_threads(1)
    args.runs.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    stored = args.runs.with_name(
        "-".join([args.runs.stem, *(str(SETTINGS[n]) for n in ("side", "pool", "test"))]) + ".pt"
    )
    if not stored.exists():
        torch.save(images(args.data, SETTINGS["side"]), stored)
    x, y, parts = torch.load(stored)
    done = kept_runs(args.runs)
    for seed in range(args.seeds):
        for method in args.methods:
            if key(method, seed) in done:
                continue
            if time.monotonic() - began > 60 * args.minutes:
                print("out of time: call again for the rest")
                return
            start = time.perf_counter()
            metrics = done[key(method, seed)] = measure(method, seed, x, y, parts)
            with args.runs.open("a") as file:
                file.write(json.dumps({"key": key(method, seed), "metrics": metrics}) + "\n")
            shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            print(f"seed {seed}  {method:16} {shown}  ({time.perf_counter() - start:.0f} s in all)", flush=True)
    baseline, outcomes = args.methods[0], {}
    for metric in (name for name in done[key(baseline, 0)] if name != "seconds"):  # see evidence/step-time for those
        arms = {method: [done[key(method, seed)][metric] for seed in range(args.seeds)] for method in args.methods}
        outcomes[metric] = (arms, baseline, metric in HIGHER)
    shared = [method for method in args.methods if method in OPENMIXUP]
    ours = [sum(outcomes["accuracy"][0][method]) for method in shared]
    found = float(spearmanr(ours, [OPENMIXUP[method] for method in shared]).statistic)
    print(f"rank correlation with openmixup's accuracies: {found:.2f} over {len(shared)} arms")
    record_all(args.out, {**SETTINGS, "seeds": args.seeds, "rank correlation with openmixup": found}, outcomes)


if __name__ == "__main__":
    main()
