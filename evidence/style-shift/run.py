"""Test-time style shifting on digits of another contrast: three styles to train on, two that nobody has seen.

    python evidence/style-shift/run.py [--data FOLDER] [--seeds 4] [--steps 600] [--padding 1]

FOLDER holds MNIST as IDX files. Digits at 14 x 14 in the styles x g + b of `styled-mnist`; training on (1, 0), (.7,
.2), (.5, .1), 20,000 images in all; tests: unseen digits in the crushed style (.15, .8), in the bright one (3, 2) and
in (1, 0), which was trained on. A CNN of two layers without batch norm, Adam at 1e-3, batches of 64. TSS shifts maps
after the first block; it is the same trained network as ERM but for the balanced one, and alpha is how far a style may
be off, in spreads of the nearest domain. `unbalanced`: nine in ten images of digits 0 to 4 are of the first style, of
digits 5 to 9 of the third.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import omnimix as om
from omnimix.data import load
from omnimix.data.shifted_digits import STYLES
from omnimix.train.budget import Budget
from omnimix.train.evaluate import predict
from omnimix.train.loop import fit
from omnimix.train.metrics import accuracy
from omnimix.train.parts import Data, Part

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402

SOURCES, TARGETS = ("1x", "0.7x+0.2", "0.5x+0.1"), {"crushed": "0.15x+0.8", "bright": "3x+2", "seen": "1x"}
ROWS, TEST, BATCH = 20_000, 5_000, 64
TASK = om.Classification(10)


def network(seed: int, padding: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=padding), nn.ReLU())
        block2 = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        model = nn.Sequential(OrderedDict(block1=block1, block2=block2, head=nn.Linear(32 * 9, 10)))
    model.taps = ("block1", "block2")  # type: ignore[assignment]
    return model


def styled(x: Tensor, style: str) -> Tensor:
    gain, offset = STYLES[style]
    return gain * x + offset


def domains_of(y: Tensor, unbalanced: bool, generator: torch.Generator) -> Tensor:
    """(N,) the style of each training image."""
    even = torch.randint(len(SOURCES), (len(y),), generator=generator)
    if not unbalanced:
        return even
    return torch.where(torch.rand(len(y), generator=generator) < 0.9, torch.where(y < 5, 0, 2), even)


def measure(
    seed: int, steps: int, digits: dict[str, tuple[Tensor, Tensor]], unbalanced: bool, padding: int
) -> dict[str, Any]:
    """By arm and target: the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    x, y = digits["train"]
    rows = torch.randperm(len(y), generator=generator)[:ROWS]
    x, y = x[rows], y[rows]
    domain = domains_of(y, unbalanced, generator)
    gain, offset = torch.tensor([STYLES[name] for name in SOURCES])[domain].view(-1, 2, 1, 1, 1).unbind(1)
    train = Part(gain * x + offset, y, domain)
    budget = Budget(1, BATCH, 1e-3, select="last", order="domains", accelerator="cpu")
    epochs = max(1, round(steps / (ROWS // BATCH)))
    tests = {name: Part(styled(digits["test"][0], style), digits["test"][1]) for name, style in TARGETS.items()}
    found: dict[str, dict[str, float]] = {}

    def score(arm: str, model: nn.Module, method: om.Method) -> None:
        found[arm] = {name: 100 * accuracy(*predict(model, method, part, TASK)) for name, part in tests.items()}

    def trained(name: str, **parameters: Any) -> tuple[nn.Module, Any]:
        model, method = network(seed, padding), om.create(name, **parameters)
        fit(method, model, Data(train, None, None, TASK), replace(budget, epochs=epochs), seed=seed)
        return model, method

    model, erm = trained("erm")
    score("erm", model, erm)
    for arm, parameters in {"tss": {"balance": 0.0}, "tss, balanced in training": {"balance": 0.5}}.items():
        model, method = trained("tss", **parameters)
        score(arm, model, method)
        for alpha in (0.0, 1.5) if arm == "tss" else ():
            method.alpha = alpha
            score(f"tss, alpha {alpha:g}", model, method)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "mnist"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--padding", type=int, choices=(0, 1), default=1, help="zeros around the image (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = load(f"idx:{args.data}")
    assert source.official is not None
    draws = torch.Generator().manual_seed(0)
    digits = {}
    for part, count in (("train", 3 * ROWS), ("test", TEST)):
        rows = source.official[part]
        rows = rows[torch.randperm(len(rows), generator=draws)[:count]]
        digits[part] = (F.adaptive_avg_pool2d(source.take(rows), 14), source.y[rows])
    outcomes: dict[str, Any] = {}
    for unbalanced in (True, False):
        runs = [measure(seed, args.steps, digits, unbalanced, args.padding) for seed in range(args.seeds)]
        where = ", unbalanced" if unbalanced else ""
        for target in ("seen", "bright", "crushed"):
            arms = {arm: [run[arm][target] for run in runs] for arm in runs[0]}
            outcomes[f"accuracy on {target}{where}"] = (arms, "erm", True)
    about = {"steps": args.steps, "seeds": args.seeds, "rows": ROWS, "batch": BATCH, "test": TEST, "styles": STYLES}
    about["padding"] = args.padding
    record_all(args.out, about, outcomes)


if __name__ == "__main__":
    main()
