"""Rows drawn by domain weights per second, beside Hugging Face's interleave_datasets and PyTorch's weighted sampler.

    python benchmarks/draw.py [--rows 1000000] [--draws 200000] [--domains 10] [--rounds 3] [--json]

The domains hold equally many of the rows, their weights are 1, 2, 3, ... Timed, in seconds of processor time: from the
sizes and the weights to the numbers (ours, PyTorch) or rows (datasets, which reads them from memory) of all draws, in
batches of 1,000; each way in a process of its own, which also tells its peak memory beyond what its imports took. The
shortest of the rounds counts. Ways that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

BATCH = 1000


def ours(rows: int, draws: int, domains: int) -> Callable[[], int]:
    from omnimix.corpora.draw import DomainSampler

    def run() -> int:
        sizes = {str(i): rows // domains for i in range(domains)}
        weights = {str(i): i + 1.0 for i in range(domains)}
        return sum(len(batch) for batch in DomainSampler(sizes, weights, batch_size=BATCH, steps=draws // BATCH))

    return run


def pytorch(rows: int, draws: int, domains: int) -> Callable[[], int]:
    import torch
    from torch.utils.data import BatchSampler, WeightedRandomSampler

    def run() -> int:
        weights = torch.arange(1, domains + 1, dtype=torch.float64).repeat_interleave(rows // domains)
        return sum(len(batch) for batch in BatchSampler(WeightedRandomSampler(weights, draws), BATCH, True))

    return run


def datasets(rows: int, draws: int, domains: int) -> Callable[[], int]:
    from datasets import Dataset, interleave_datasets

    parts = [Dataset.from_dict({"row": list(range(rows // domains))}).to_iterable_dataset() for _ in range(domains)]

    def run() -> int:
        total = domains * (domains + 1) / 2
        mixed = interleave_datasets(
            parts, [(i + 1) / total for i in range(domains)], seed=0, stopping_strategy="all_exhausted"
        )
        return sum(len(batch["row"]) for batch in mixed.take(draws).iter(BATCH))

    return run


WAYS = {"omnimix": ours, "PyTorch WeightedRandomSampler": pytorch, "datasets interleave_datasets": datasets}


def memory() -> float:
    """Peak resident MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("draws", 200_000), ("domains", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run = WAYS[options.only](options.rows, options.draws, options.domains)
        before, start = memory(), time.process_time()
        drawn = run()
        print(json.dumps([drawn, time.process_time() - start, memory() - before]))
        return
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        if way.startswith("datasets") and importlib.util.find_spec("datasets") is None:
            print("left out: datasets is not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--only", way]
        for name in ("rows", "draws", "domains"):
            command += [f"--{name}", str(getattr(options, name))]
        runs = []
        for _ in range(options.rounds):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
        drawn, seconds, mib = min(runs, key=lambda one: one[1])
        found[way] = {"rows_per_second": drawn / seconds, "extra_mib": mib}
    own = found["omnimix"]["rows_per_second"]
    for row in found.values():
        row["ours_over_this"] = own / row["rows_per_second"]
    if options.json:
        print(json.dumps({"settings": {n: getattr(options, n) for n in ("rows", "draws", "domains")}, "ways": found}))
        return
    print(f"{options.draws:,} draws from {options.rows:,} rows of {options.domains} domains, in batches of {BATCH:,}")
    for way, row in found.items():
        print(
            f"  {way:32} {row['rows_per_second']:>12,.0f} rows/s   +{row['extra_mib']:.0f} MiB   "
            f"omnimix / this: {row['ours_over_this']:.1f}"
        )


if __name__ == "__main__":
    main()
