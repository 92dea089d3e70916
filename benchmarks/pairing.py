"""C-Mixup partners at scale: ours among 1,000,000 labels against the reference's algorithm among 4,000, in one run.

Ours prepares (one sort) and draws 128,000 partners. The reference's algorithm, written from its description, fits
scikit-learn's KernelDensity on one label for each label, scores all labels, normalises and keeps the N x N matrix, then
draws with `choice(p=row)`. Both get the same label distribution and bandwidth and one thread, each in a process of its
own, whose peak resident memory above that after imports and data is reported. Linux only (/proc/self/status).

    python benchmarks/pairing.py [--labels 1000000] [--draws 128000] [--reference-labels 4000] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BANDWIDTH = 0.25
REFERENCE_DRAWS = 2000
"""Enough to time a draw of the reference; its matrix is ready by then."""


def skewed_labels(count: int) -> np.ndarray:
    """Half an exponential tail, a quarter on 40 tied values, a quarter in a far narrow cluster, and one outlier."""
    rng = np.random.default_rng(0)
    parts = (
        rng.exponential(size=count // 2),
        rng.integers(40, size=count // 4) / 8,
        1000 + 1e-3 * rng.standard_normal(count - count // 2 - count // 4 - 1),
        [-1e6],
    )
    return rng.permutation(np.concatenate(parts))


def memory(field: str) -> float:
    """MiB of VmRSS (now) or VmHWM (peak) of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def ours(count: int, draws: int) -> dict[str, Any]:
    """Prepare LabelKernel on `count` labels and draw `draws` partners of uniformly chosen samples."""
    import torch

    import omnimix
    from omnimix.samples.pairing import LabelKernel

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    table = omnimix.Table(label=torch.from_numpy(skewed_labels(count)))
    index = torch.randint(count, (draws,), generator=generator)
    pairing = LabelKernel(BANDWIDTH)
    return measured(lambda: pairing.prepare(table, generator), lambda: pairing.draw(index, generator), draws)


def reference(count: int, draws: int) -> dict[str, Any]:
    """The reference's algorithm on `count` labels: a kernel density estimate fitted on each label in turn."""
    from sklearn.neighbors import KernelDensity

    rng = np.random.default_rng(0)
    labels = skewed_labels(count)[:, None]
    index = rng.integers(count, size=draws)
    matrix = np.empty((0, 0))

    def prepare() -> None:
        nonlocal matrix
        rows = []
        for label in labels:
            rate = np.exp(KernelDensity(kernel="gaussian", bandwidth=BANDWIDTH).fit(label[None]).score_samples(labels))
            rows.append(rate / rate.sum())
        matrix = np.array(rows)

    return measured(prepare, lambda: [rng.choice(count, p=matrix[i]) for i in index], draws)


def measured(prepare: Callable[[], Any], draw: Callable[[], Any], draws: int) -> dict[str, Any]:
    """Seconds of both, and the peak memory that they added."""
    before, begin = memory("VmRSS"), time.perf_counter()
    prepare()
    prepared = time.perf_counter()
    peak = memory("VmHWM")
    draw()
    seconds = time.perf_counter() - prepared
    return {
        "prepare_s": prepared - begin,
        "draw_s": seconds,
        "draws": draws,
        "us_per_draw": 1e6 * seconds / draws,
        "prepare_mib": peak - before,
        "total_mib": memory("VmHWM") - before,
    }


def in_own_process(function: Callable[..., dict[str, Any]], *args: int) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=128_000)
    parser.add_argument("--reference-labels", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    mine = in_own_process(ours, options.labels, options.draws)
    theirs = in_own_process(reference, options.reference_labels, REFERENCE_DRAWS)
    mine_s = mine["prepare_s"] + mine["draw_s"]
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "bandwidth": BANDWIDTH,
        "ours": {"labels": options.labels, **mine},
        "reference": {"labels": options.reference_labels, **theirs},
        "time_ratio": theirs["prepare_s"] / mine_s,
        "memory_ratio": theirs["prepare_mib"] / mine["total_mib"],
        "ours_is_less": theirs["prepare_s"] > mine_s and theirs["prepare_mib"] > mine["total_mib"],
    }
    if options.json:
        print(json.dumps(result))
        return
    row = "{:<34}{:>10}{:>11}{:>9}{:>9}{:>13}{:>11}"
    print(row.format("", "labels", "prepare s", "draws", "draw s", "us per draw", "peak MiB"))
    for name, labels, r in (
        ("omnimix LabelKernel", options.labels, mine),
        ("reference algorithm (KDE a row)", options.reference_labels, theirs),
    ):
        numbers = f"{r['prepare_s']:.2f}", r["draws"], f"{r['draw_s']:.2f}", f"{r['us_per_draw']:.2f}"
        print(row.format(name, labels, *numbers, f"{r['total_mib']:.0f}"))
    print(f"\nours, prepared and drawn:  {mine_s:.2f} s, {mine['total_mib']:.0f} MiB")
    print(f"reference, prepared only:  {theirs['prepare_s']:.2f} s, {theirs['prepare_mib']:.0f} MiB")
    print(
        f"reference / ours:          {result['time_ratio']:.1f} x the time, {result['memory_ratio']:.1f} x the memory"
    )


if __name__ == "__main__":
    main()
