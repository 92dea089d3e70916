"""Do the gradients of the domains point the same way under Fish, at the same training loss?

    python evidence/fish-gradients/run.py [--data FOLDER] [--seeds 5] [--steps 600]

FOLDER holds mnist/ (IDX files) and pacs64/. Rotated MNIST, six angles at 14 x 14, and PACS, four domains at 32 x 32,
all of them trained on; a CNN without batch norm; batches of 16 rows of each domain. Fish takes inner steps of SGD at
rate a and goes the share eps of the way; plain training takes steps of SGD at eps D a, which to first order go as far.
IDGM, whose first-order stand-in Fish is, takes the same steps with gamma = 1. Every 20 steps, on 200 fixed training
rows a domain: the mean loss of the domains, and the mean cosine of the gradients of two domains. Cosines are read off
at fixed losses by linear interpolation between the first measurements above and below.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import omnimix as om
from omnimix.core.sampler import by_group
from omnimix.data import Source, load
from omnimix.data.scale import Scaler
from omnimix.domains.measure import domain_gradients, mean_pairwise_cosine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402

EACH, EVERY, PROBE, EPS = 16, 20, 200, 0.5
SETS: dict[str, dict[str, Any]] = {
    "rotated-mnist": {"folder": "mnist", "rows": 1000, "side": 14, "rate": 0.03, "losses": (1.5, 1.0, 0.6, 0.4)},
    "pacs": {"folder": "pacs64", "rows": 600, "side": 32, "rate": 0.02, "losses": (1.8, 1.6, 1.4)},
}
ARMS: dict[str, dict[str, Any]] = {"erm": {}, "fish": {"eps": EPS, "shuffle": True}, "idgm": {"gamma": 1.0}}


def network(seed: int, channels: int, side: int, outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stride = 2 if side > 16 else 1
        layers = [
            nn.Conv2d(channels, 16, 3, stride, 1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, 1, 1),
            nn.ReLU(),
        ]
        body = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten())
        width = body(torch.zeros(1, channels, side, side)).shape[1]
        return nn.Sequential(OrderedDict(body=body, head=nn.Linear(width, outputs)))


def probe(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(mean loss, mean cosine of the gradients of two domains)."""
    risks = torch.stack([F.cross_entropy(model(x), y) for x, y in parts])
    return risks.mean().item(), mean_pairwise_cosine(domain_gradients(risks, model.parameters()))


def curve(arm: str, seed: int, steps: int, source: Source, about: dict[str, Any]) -> list[tuple[float, float]]:
    """(loss, cosine) along training."""
    assert source.domain is not None
    x = F.adaptive_avg_pool2d(source.take(torch.arange(len(source))), about["side"])
    x, y, domain = Scaler.fit_images([x])(x), source.y, source.domain
    count = len(source.domain_names)
    parts = []
    for one in range(count):
        rows = torch.nonzero(domain == one).flatten()[:PROBE]
        parts.append((x[rows], y[rows]))
    model, method = network(seed, x.shape[1], about["side"], source.task.outputs), om.create(arm, **ARMS[arm])
    draws = torch.Generator().manual_seed(seed)
    method.setup(
        model, source.task, om.Table(domain=domain), steps=steps, generator=torch.Generator().manual_seed(seed)
    )
    rate = about["rate"] if arm == "fish" else about["rate"] * EPS * count
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found = [probe(model, parts)]
    for number, rows in enumerate(by_group(domain, EACH * count, steps, draws), 1):
        method.step(model, om.Batch(x[rows], y[rows], domain[rows]), optimizer)
        method.after_step()
        if number % EVERY == 0:
            found.append(probe(model, parts))
    return found


def at(curve: list[tuple[float, float]], loss: float) -> float | None:
    """The cosine where the loss first comes down to `loss`; None where it never does."""
    for (above, before), (below, after) in pairwise(curve):
        if above >= loss >= below:
            return before + (after - before) * ((above - loss) / (above - below) if above > below else 0.0)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: dict[str, Any] = {}
    reached: dict[str, Any] = {}
    for name, about in SETS.items():
        resize = about["side"] if name == "pacs" else None
        source = load(f"{name}:{args.data / about['folder']}", rows=about["rows"], resize=resize)
        curves = {arm: [curve(arm, seed, args.steps, source, about) for seed in range(args.seeds)] for arm in ARMS}
        last = {arm: [run[-1] for run in runs] for arm, runs in curves.items()}
        reached[name] = {arm: [min(loss for loss, _ in run) for run in runs] for arm, runs in curves.items()}
        outcomes[f"{name}: loss after {args.steps} steps"] = (
            {arm: [loss for loss, _ in ends] for arm, ends in last.items()}, "erm", False,
        )  # fmt: skip
        for loss in about["losses"]:
            arms = {arm: [at(run, loss) for run in runs] for arm, runs in curves.items()}
            arms = {arm: values for arm, values in arms.items() if None not in values}
            if len(arms) > 1 and "erm" in arms:
                outcomes[f"{name}: cosine at loss {loss:g}"] = (arms, "erm", True)
    about = {"steps": args.steps, "seeds": args.seeds, "each": EACH, "probe": PROBE, "eps": EPS, "sets": SETS}
    record_all(args.out, {**about, "lowest loss": reached}, outcomes)


if __name__ == "__main__":
    main()
