"""Speed of operations on images, per batch and per sample, side by side with torchvision, timm and FMix's own code.

    python benchmarks/ops.py [--json] [--fmix-reference DIR] [--sides 224 32] [--repeats 15] [--threads 2]

All rows run in turn in one process, on the CPU, from the same float batch to mixed inputs and soft labels; times are
medians in ms (and minima, which a busy machine disturbs less). timm mixes in place, so it gets a fresh copy of the
batch each turn, made outside the timed part. Peers that are not installed are left out. DIR: a checkout of
ecs-vlc/FMix, whose numpy masks are applied as it does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnimix.samples.operation import cutmix, fmix, gridmix, mixup, mosaic, resizemix, saliencymix, smoothmix

BATCH, CLASSES, OURS = 128, 100, "omnimix"
Call = Callable[[Tensor, Tensor], Any]
Row = tuple[str, str, str]  # operation, mode, who
OPERATIONS = (mixup, cutmix, fmix, gridmix, mosaic, resizemix, saliencymix, smoothmix)


def ours() -> dict[Row, Call]:
    source = torch.Generator().manual_seed(0)

    def call(operation: Any, per_sample: bool) -> Call:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            mixed = operation(x, y, per_sample=per_sample, generator=source)
            return mixed.x, mixed.soft_target(CLASSES)

        return run

    modes = {"batch": False, "sample": True}
    return {(op.__name__, mode, OURS): call(op, flag) for op in OPERATIONS for mode, flag in modes.items()}


def torchvision() -> dict[Row, Call]:
    v2 = importlib.import_module("torchvision.transforms.v2")
    mixers = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
    return {(n, "batch", "torchvision"): mixer(alpha=1.0, num_classes=CLASSES) for n, mixer in mixers.items()}


def timm() -> dict[Row, Call]:
    mixer = importlib.import_module("timm.data").Mixup
    alphas = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0)}
    return {
        (name, mode, f"timm {how}"): mixer(a, b, mode=how, label_smoothing=0.0, num_classes=CLASSES)
        for name, (a, b) in alphas.items()
        for mode, how in (("batch", "batch"), ("sample", "elem"))
    }


def fmix_reference(folder: str) -> dict[Row, Call]:
    sys.path.insert(0, folder)
    sample_mask = importlib.import_module("fmix").sample_mask

    def call(count: int) -> Call:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            lam, masks = zip(*(sample_mask(1.0, 3.0, tuple(x.shape[2:])) for _ in range(count)), strict=True)
            mask = torch.from_numpy(np.stack(masks)).float()
            index = torch.from_numpy(np.random.permutation(len(x)))  # noqa: NPY002
            label, share = F.one_hot(y, CLASSES).float(), torch.tensor(lam).float().unsqueeze(1)
            return mask * x + (1 - mask) * x[index], share * label + (1 - share) * label[index]

        return run

    return {("fmix", "batch", "reference"): call(1), ("fmix", "sample", "reference"): call(BATCH)}


def measure(calls: dict[Row, Call], side: int, repeats: int) -> dict[Row, list[float]]:
    """The times of each call in ms; the calls take turns in random order, small images several times a turn."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, side, side, generator=source)
    y = torch.randint(CLASSES, (BATCH,), generator=source)
    times: dict[Row, list[float]] = {row: [] for row in calls}
    count, order = max(1, 2**23 // x.numel()), random.Random(2)
    for turn in range(repeats + 1):
        for row in order.sample(list(calls), len(calls)):
            batch = x.clone() if row[2].startswith("timm") else x
            start = time.perf_counter()
            for _ in range(count):
                calls[row](batch, y)
            if turn:  # the first is a warm-up
                times[row].append(1e3 * (time.perf_counter() - start) / count)
    return times


def summarise(side: int, times: dict[Row, list[float]]) -> list[dict[str, Any]]:
    rows, found = [], {row: statistics.median(values) for row, values in times.items()}
    for (operation, mode, who), ms in found.items():
        row: dict[str, Any] = {"side": side, "operation": operation, "per": mode, "who": who, "ms": round(ms, 3)}
        row["min_ms"] = round(min(times[operation, mode, who]), 3)
        peers = [t for (o, m, w), t in found.items() if (o, m) == (operation, mode) and w != OURS]
        if who == OURS and peers:
            row["best_peer_over_ours"] = round(min(peers) / ms, 2)
        if mode == "sample":
            batch = [t for (o, m, w), t in found.items() if o == operation and m == "batch" and w[:4] == who[:4]]
            row["sample_over_batch"] = round(ms / batch[0], 2)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["operation"], row["per"]))


def table(rows: list[dict[str, Any]]) -> str:
    columns = ["side", "operation", "per", "who", "ms", "min_ms", "best_peer_over_ours", "sample_over_batch"]
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    width = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--fmix-reference", metavar="DIR", help="a checkout of ecs-vlc/FMix to compare with")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 32], help="image sides (default: 224 32)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls, missing = ours(), []
    for name, peer in (("torchvision", torchvision), ("timm", timm)):
        if importlib.util.find_spec(name):
            calls |= peer()
        else:
            missing.append(name)
    if options.fmix_reference:
        calls |= fmix_reference(options.fmix_reference)
    rows = [row for side in options.sides for row in summarise(side, measure(calls, side, options.repeats))]
    machine = {"torch": torch.__version__, "threads": options.threads, "machine": platform.machine(), "batch": BATCH}
    if options.json:
        print(json.dumps({**machine, "missing_peers": missing, "rows": rows}))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        print(table(rows))
        if missing:
            print("not installed:", ", ".join(missing))


if __name__ == "__main__":
    main()
