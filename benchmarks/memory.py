"""Memory of one worker over hundreds of runs, which must stay flat: `python benchmarks/memory.py [RUNS]`."""

from __future__ import annotations

import sys

import torch

from omnimix.compare import engine
from omnimix.compare.run import make_plan
from omnimix.compare.spec import settings
from omnimix.core.task import Regression
from omnimix.data import Source

METHODS = ("erm", "mixup", "manifold-mixup", "c-mixup")


def main(runs: int) -> None:
    x = torch.rand(500, 5, generator=torch.Generator().manual_seed(0))
    source = Source("toy", x, x.sum(1), Regression(1), "table")
    seeds = tuple(range(-(-runs // len(METHODS))))
    asked = settings(data="toy", methods=METHODS, seeds=seeds, epochs=3, net="mlp:hidden=64+64")
    _, plan, jobs = make_plan(asked, source)
    with engine.shared_fractions(len(jobs)) as fractions:
        units = [(job,) for job in jobs]
        for done, (outcome,) in enumerate(engine.run(units, plan, 1, fractions), start=1):
            if hasattr(outcome, "error"):
                sys.exit(outcome.traceback)
            if done in (1, 10, 25, 50) or done % 50 == 0:
                print(f"{done:4d} runs: peak {outcome.peak_memory / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
