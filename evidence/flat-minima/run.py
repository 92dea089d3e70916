"""Are the minima of SAM, UDIM, SWAD and QT-DoG flatter than those of plain training?

    python evidence/flat-minima/run.py [--data FOLDER] [--seeds 3] [--epochs 12]

FOLDER holds PACS. Networks and data of the quick profile (at most 300 images a domain at 32 x 32), the domain sketch
held out, defaults of every method, the weights after the last epoch. On 360 training images, in evaluation mode,
without the method: R0, the rise of the loss to the highest found within a distance rho of the weights by 20 steps of
ascent; the mean change of the loss at 20 random weights rho away (the sphere); and what a reader needs beside them:
loss, norm of all weights, accuracy on the held-out domain.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from omnimix.compare.jobs import make_network
from omnimix.compare.profile import with_profile
from omnimix.compare.protocol import Hold, prepare, split
from omnimix.compare.run import make_plan
from omnimix.compare.spec import create, settings
from omnimix.core.task import Task
from omnimix.data import load
from omnimix.domains.measure import r0, sphere_flatness
from omnimix.train.evaluate import predict
from omnimix.train.loop import fit
from omnimix.train.metrics import accuracy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402

METHODS, TARGET, RADII, ROWS = ("erm", "sam", "udim", "swad", "qt-dog"), "sketch", (0.05, 0.2, 0.5), 360


def measure(model: Any, method: Any, data: Any, task: Task, seed: int) -> dict[str, float]:
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:ROWS]
    x, y, _ = data.train.take(rows)
    model.eval()

    def loss() -> torch.Tensor:
        return task.mean_loss(model(x), y)

    weights = [p for p in model.parameters() if p.requires_grad]
    found = {"loss on training images": loss().item()}
    found["norm of the weights"] = float(torch.stack([p.detach().norm() for p in weights]).norm())
    found["accuracy on sketch"] = 100 * accuracy(*predict(model, method, data.test, task))
    for rho in RADII:
        draws = torch.Generator().manual_seed(seed)
        found[f"sphere, rho {rho:g}"] = sphere_flatness(loss, weights, rho, 20, draws)
        found[f"R0, rho {rho:g}"] = r0(loss, weights, rho, 20, torch.Generator().manual_seed(seed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "pacs64"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="the first is the baseline")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = with_profile("quick", {"data": "pacs:", "epochs": args.epochs, "selection": "last", "seeds": (0,)})
    source = load(f"pacs:{args.data}", resize=given["size"], rows=given["rows"])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.methods}
    for seed in range(args.seeds):
        for name in args.methods:
            _, plan, jobs = make_plan(settings(**given, methods=(name,)), source)
            hold = Hold((source.domain_names.index(TARGET),))
            parts = prepare(plan.protocol, source, split(plan.protocol, source, seed, hold))
            model, method = make_network(plan, seed), create(jobs[0].method, jobs[0].parameters)
            fit(method, model, parts, jobs[0].budget, seed=seed)
            runs[name].append(measure(model, method, parts, source.task, seed))
            print(seed, name, {key: round(value, 4) for key, value in runs[name][-1].items()}, flush=True)
    outcomes: dict[str, Any] = {
        what: ({name: [run[what] for run in own] for name, own in runs.items()}, args.methods[0], "accuracy" in what)
        for what in runs[args.methods[0]][0]
    }
    record_all(args.out, {**given, "target": TARGET, "rows measured": ROWS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
