"""Steps per second of ERM, Fish and CORAL, ours against DomainBed's classes: same batches, same networks, one process.

    python benchmarks/domains.py [--reference DIR] [--domains 3] [--each 16] [--steps 40] [--threads 1] [--json]

DIR is a checkout of facebookresearch/DomainBed (github); its classes run unchanged, on a network of ours, with the same
initial weights, Adam and batches. Ours steps in two ways: with PyTorch's Adam as DomainBed has it, and as our loop
steps. Rounds alternate; each ratio is the median over rounds of DomainBed's seconds over ours, so above 1 ours is
faster. After the rounds the weights are compared where the algorithms are the same (the network without batch norm).
Without DIR only our own times are shown.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omnimix as om
from omnimix.networks import create
from omnimix.train.quick import quick_backward, quicken

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evidence"))
from _common import machine

CLASSES, LR = 7, 1e-3
NETWORKS = {"small-cnn": (3, 32, 32), "mlp": (256,)}
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "erm": ("ERM", {}, {}),
    "fish": ("Fish", {"eps": 0.5, "shuffle": False}, {"meta_lr": 0.5}),
    "coral": ("CORAL", {"gamma": 1.0}, {"mmd_gamma": 1.0}),
}
"""Ours: the class of DomainBed, our parameters, its hyper-parameters."""
Step = Callable[[list[tuple[Tensor, Tensor]]], Any]


class Trunk(nn.Module):
    """A network without its head, as DomainBed wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers, self.n_outputs = copy.deepcopy(network), network.head.in_features  # type: ignore[union-attr]
        self.layers.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def ours(name: str, network: nn.Module, domains: int, steps: int, loop: bool) -> tuple[nn.Module, Step]:
    """A copy of the network and what makes one step; loop: as the loop does it."""
    model, method = copy.deepcopy(network).train(), om.create(name, **METHODS[name][1])
    method.setup(model, om.Classification(CLASSES), om.Table(domain=torch.arange(domains)), steps=steps)
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=LR, fused=loop or None)
    more = (quick_backward(),) if loop else ()
    optimizer = quicken(optimizer) if loop else optimizer

    def step(parts: list[tuple[Tensor, Tensor]]) -> None:
        x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        domain = torch.repeat_interleave(torch.arange(len(parts)), len(parts[0][1]))
        method.step(model, om.Batch(x, y, domain), optimizer, *more)
        method.after_step()

    return model, step


def theirs(name: str, network: nn.Module, shape: tuple[int, ...], domains: int) -> tuple[nn.Module, Step]:
    """DomainBed's algorithm on a network like ours with its weights, and its update."""
    from domainbed import algorithms, networks

    networks.Featurizer = lambda shape, hparams: Trunk(network)
    hparams = {"lr": LR, "weight_decay": 0.0, "nonlinear_classifier": False, **METHODS[name][2]}
    algorithm = getattr(algorithms, METHODS[name][0])(shape, CLASSES, domains, hparams).train()
    whole = algorithm.network.net if name == "fish" else algorithm.network
    whole[1].load_state_dict(network.head.state_dict())  # type: ignore[union-attr]
    return algorithm, algorithm.update


def weights(model: nn.Module, theirs: bool) -> Tensor:
    network = model.network if theirs else model
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def measure(name: str, network: str, args: argparse.Namespace, batches: list[Any]) -> dict[str, Any]:
    """Median steps per second of each, and ratios by round."""
    shape = NETWORKS[network]
    start = create(network, shape, CLASSES, seed=0)
    runs = {f"ours{' in the loop' * loop}": ours(name, start, args.domains, args.steps, loop) for loop in (False, True)}
    if args.reference:
        runs["DomainBed"] = theirs(name, start, shape, args.domains)
    seconds: dict[str, list[float]] = {which: [] for which in runs}
    for number, parts in enumerate(batches):
        for which, (_, step) in runs.items():
            begin = time.perf_counter()
            step(parts)
            if number >= args.warm:
                seconds[which].append(time.perf_counter() - begin)
    row: dict[str, Any] = {which: 1 / statistics.median(own) for which, own in seconds.items()}
    if args.reference:
        for which in [which for which in runs if which != "DomainBed"]:
            pairs = zip(seconds["DomainBed"], seconds[which], strict=True)
            row[f"ratio, {which}"] = statistics.median(a / b for a, b in pairs)
        if network == "mlp":
            apart = weights(runs["DomainBed"][0], True) - weights(runs["ours"][0], False)
            row["largest difference of weights"] = apart.abs().max().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/DomainBed")
    parser.add_argument("--domains", type=int, default=3)
    parser.add_argument("--each", type=int, default=16, help="rows of each domain in a batch")
    parser.add_argument("--steps", type=int, default=40, help="that count")
    parser.add_argument("--warm", type=int, default=5, help="steps before those")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.reference:
        sys.path.insert(0, str(args.reference.resolve()))
    found: dict[str, Any] = {}
    for network, shape in NETWORKS.items():
        draws = torch.Generator().manual_seed(0)
        batches = [
            [
                (torch.randn(args.each, *shape, generator=draws), torch.randint(CLASSES, (args.each,), generator=draws))
                for _ in range(args.domains)
            ]
            for _ in range(args.warm + args.steps)
        ]
        for name in METHODS:
            found[f"{network}, {name}"] = measure(name, network, args, batches)
    if args.json:
        print(json.dumps({"machine": machine(), "steps per second": found}, indent=1))
        return
    columns = list(dict.fromkeys(key for row in found.values() for key in row))
    print("steps per second; " + "; ".join(columns))
    for case, row in found.items():
        print(f"{case:20}" + "".join(f"{row[key]:14.4g}" if key in row else " " * 14 for key in columns))
    if not args.reference:
        print("no --reference: DomainBed was not run, so there are no ratios")


if __name__ == "__main__":
    main()
