"""Runs per minute of a whole comparison, against the C-Mixup reference code's own loop, side by side.

Ours: `omnimix compare` on Airfoil under the c-mixup protocol, 7 methods x 5 seeds x 100 epochs, from the call to the
report: starting the processes, preparing the pairs, validation every epoch, the store and the report included. Theirs:
the reference's run of C-Mixup, one after the other as its script makes them, by its own clock, which leaves imports and
reading out. The reference's runs come before and after ours; the faster counts.

    python benchmarks/compare.py [--reference DIR] [--jobs J] [--seeds 5] [--apart] [--json]

DIR: as for benchmarks/train.py. --apart: also one seed with every run by itself, to see what training together brings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from train import in_own_process, reference

METHODS = (
    "erm",
    "mixup",
    "manifold-mixup",
    "c-mixup",
    "midpoint-mixup",
    "early-stopped-mixup",
    "mixup:per_sample=true",
)


def ours(seeds: int, jobs: int | None, together: bool) -> dict[str, float]:
    from omnimix.compare import compare, settings

    asked = settings(data="airfoil", protocol="c-mixup", methods=METHODS, seeds=tuple(range(seeds)))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = compare(asked, folder, workers=jobs, together=together)
        seconds = time.perf_counter() - start
    if not result.complete:
        raise SystemExit(result.failures[0].traceback)
    return {"runs": len(result.runs), "seconds": seconds, "runs_per_minute": 60 * len(result.runs) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of huaxiuyao/C-Mixup")
    parser.add_argument("--jobs", type=int, help="our processes; default: one a core")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()

    def theirs() -> float:
        run = reference(options.reference, 0) if options.reference else in_own_process("enacted", 0)
        return run["seconds"]

    before = theirs()
    found = {"omnimix": ours(options.seeds, options.jobs, together=True)}
    if options.apart:
        found["omnimix, every run by itself"] = ours(1, options.jobs, together=False)
    after = theirs()
    name = "reference code, unchanged" if options.reference else "reference algorithm, enacted anew"
    best = min(before, after)
    found[name] = {"runs": 2, "seconds": before + after, "runs_per_minute": 60 / best}
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "found": found,
        "ratio": found["omnimix"]["runs_per_minute"] / found[name]["runs_per_minute"],
    }
    if options.json:
        print(json.dumps(result))
        return
    for label, row in found.items():
        print(f"  {label}: {row['runs']} runs in {row['seconds']:.1f} s, {row['runs_per_minute']:.1f} a minute")
    print(f"  ours / reference: {result['ratio']:.1f} x the runs per minute, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
