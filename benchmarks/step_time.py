"""The time of a training step of every image method, relative to plain training.

    python benchmarks/step_time.py [--methods cutmix puzzle-mix] [--width 64] [--batch 128] [--steps 15] [--threads 2]
        [--device cpu] [--out evidence/step-time/result.json]

CIFAR-10-shaped random batches and PreActResNet-18, or a small vision transformer for the methods that need its
attention; forward, backward and optimiser. Every method has a network of its
own with equal first weights; the methods take turns, a plain step beside each of their steps, and the ratio is the
median over these pairs. Methods that mix a share of the steps mix all of them here. With one thread on the CPU it is
the processor's time, which other load on the machine disturbs less. The pages of the methods show the ratios of
evidence/step-time/result.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import omnimix as om
from omnimix.core import registry
from omnimix.networks import create

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evidence"))
from _common import commit, machine

CLASSES, SHAPE, WARM = 10, (3, 32, 32), 2


def image_methods() -> list[str]:
    """Our own methods for classified images that can be made without arguments."""
    cards = [registry.info(name) for name in registry.methods()]
    return [
        card.name
        for card in cards
        if card.package == "omnimix"
        and card.level == "samples"
        and card.name != "erm"
        and "classification" in card.tasks
        and "image" in card.inputs
    ] + ["mixup", "manifold-mixup", "regmixup"]


class Trained:
    """A method with a network and optimiser of its own."""

    def __init__(self, name: str, network: nn.Module, device: torch.device, steps: int) -> None:
        self.model = copy.deepcopy(network).to(device).train()
        self.method = om.create(name)
        if getattr(self.method, "probability", 1.0) < 1.0:
            self.method.probability = 1.0
        draws = torch.Generator().manual_seed(1)
        self.method.setup(self.model, om.Classification(CLASSES), steps=steps, generator=draws)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Seconds of one step."""
        _wait(x.device)
        start = _now(x.device)
        anchors, guests = self.method.rows(torch.arange(len(x), device=x.device))
        rows = anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))
        self.method.step(self.model, om.Batch(x[rows], y[rows], index=rows, anchors=len(anchors)), self.optimizer)
        self.method.after_step()
        _wait(x.device)
        return _now(x.device) - start


def _now(device: torch.device) -> float:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(name: str, network: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, Any]:
    """Median seconds of a plain step and of one of the method, and the median and the quartiles of their ratios."""
    plain, mixed = (Trained(which, network, x.device, steps + WARM) for which in ("erm", name))
    pairs = [(plain.step(x, y), mixed.step(x, y)) for _ in range(steps + WARM)][WARM:]
    erm, own = zip(*pairs, strict=True)
    ratios = [b / a for a, b in pairs]
    ends = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios
    found = {"erm": statistics.median(erm), "seconds": statistics.median(own), "ratio": statistics.median(ratios)}
    return {**found, "quartiles": [ends[0], ends[-1]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="default: all image methods")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: 64)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15, help="pairs of steps, after two that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write JSON there; without it nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    draws, device = torch.Generator().manual_seed(0), torch.device(args.device)
    x = torch.randn(args.batch, *SHAPE, generator=draws).to(device)
    y = torch.randint(CLASSES, (args.batch,), generator=draws).to(device)
    convolutional = f"preact-resnet18:width={args.width}"
    networks = {
        "any": (convolutional, create("preact-resnet18", SHAPE, CLASSES, seed=0, width=args.width)),
        "attention": ("vit", create("vit", SHAPE, CLASSES, seed=0)),
    }
    found: dict[str, Any] = {}
    print(f"{'method':20} {'erm ms':>9} {'ms':>9} {'ratio':>7}")
    for name in args.methods or image_methods():
        try:
            title, network = networks[registry.info(name).network]
            found[name] = {"network": title, **measure(name, network, x, y, args.steps)}
        except ValueError as error:  # a method that this batch or network does not suit
            print(f"{name:20} left out: {str(error).partition(':')[0]}")
            continue
        row = found[name]
        print(
            f"{name:20} {1e3 * row['erm']:9.1f} {1e3 * row['seconds']:9.1f} {row['ratio']:7.3f}  "
            f"({row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f})",
            flush=True,
        )
    if args.out:
        settings = {"network": convolutional, "batch": args.batch, "steps": args.steps}
        settings["threads"] = args.threads
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        result = {"settings": {**settings, "device": where}, "machine": machine(), "commit": commit(), "methods": found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
