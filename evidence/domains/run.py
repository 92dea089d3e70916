"""All methods of domain generalisation on PACS, each domain held out in turn: the quick profile of `omnimix compare`.

    python evidence/domains/run.py [--data FOLDER] [--methods erm coral ...] [--trials 3] [--runs FILE]

FOLDER holds PACS (a folder or tar of DOMAIN/CLASS/FILE). At most 300 images a domain at 32 x 32, a CNN of 20,000
weights, 8 epochs, batches with equally many rows of every training domain, defaults of every method, no tuning; epochs
by the mean over training domains of the rows put aside. A trial is a split, initial weights and an order of the data,
the same for all methods. erm@2x trains for twice the epochs. Every finished run is kept in --runs with the commit that
made it, and not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from omnimix.compare.jobs import execute
from omnimix.compare.profile import with_profile
from omnimix.compare.run import make_plan
from omnimix.compare.spec import settings
from omnimix.core import registry
from omnimix.data import Source, load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import commit, record_all  # noqa: E402

OTHERS = ("mixup", "mixstyle", "erm@2x")
"""Of other rooms, and with twice the epochs."""


def methods() -> list[str]:
    """The baseline first."""
    own = [
        name
        for name in registry.methods(task="classification", level="domains")
        if registry.info(name).package == "omnimix"
    ]
    return ["erm", *own, *OTHERS]


def plan_of(method: str, trials: int, source: Source) -> Any:
    given = with_profile("quick", {"data": "pacs:", "methods": (method,), "seeds": tuple(range(trials))})
    return make_plan(settings(**given), source)


def kept_runs(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line["method"], line["trial"], line["target"]): line for line in map(json.loads, lines)}


def run(names: list[str], trials: int, source: Source, path: Path) -> None:
    """Make the runs that are not kept, trial by trial."""
    made = commit()
    for trial in range(trials):
        for name in names:
            done = kept_runs(path)
            if all((name, trial, domain) in done for domain in source.domain_names):
                continue
            _, plan, jobs = plan_of(name, trials, source)
            for job in jobs:
                target = source.domain_names[job.hold.out[0]]
                if job.seed != trial or (name, trial, target) in done:
                    continue
                start = time.perf_counter()
                (found,) = execute((job,), plan)
                row: dict[str, Any] = {"method": name, "trial": trial, "target": target, "commit": made}
                if hasattr(found, "error"):
                    row["error"] = found.error
                else:
                    row |= {"accuracy": found.metrics["accuracy"], "epoch": found.best_epoch, "seconds": found.seconds}
                    row["validation"] = found.history[found.best_epoch - 1]["valid_mean_domain"]
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                shown = row.get("error") or f"accuracy {row['accuracy']:.3f}, validation {row['validation']:.3f}"
                print(f"trial {trial}  {name:22} {target:14} {shown} ({time.perf_counter() - start:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "pacs64"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--trials", type=int, default=3, help="the first so many")
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    parser.add_argument("--only-run", action="store_true", help="make runs, and write no tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.parent.mkdir(parents=True, exist_ok=True)
    given = with_profile("quick", {"data": "pacs:"})
    source = load(f"pacs:{args.data}", resize=given["size"], rows=given["rows"])
    names = args.methods or methods()
    run(names, args.trials, source, args.runs)
    if args.only_run:
        return
    done = kept_runs(args.runs)
    whole = [
        name
        for name in names
        if all("accuracy" in done.get((name, k, d), {}) for k in range(args.trials) for d in source.domain_names)
    ]

    def of(name: str, what: str, domains: tuple[str, ...]) -> list[float]:
        """By trial, and within a trial by domain."""
        return [done[name, trial, domain][what] for trial in range(args.trials) for domain in domains]

    outcomes: dict[str, Any] = {}
    for domain in source.domain_names:
        outcomes[f"accuracy on {domain}"] = ({name: of(name, "accuracy", (domain,)) for name in whole}, "erm", True)
    by_trial = {name: torch.tensor(of(name, "accuracy", source.domain_names)).view(args.trials, -1) for name in whole}
    outcomes["worst domain of each trial"] = ({n: v.amin(1).tolist() for n, v in by_trial.items()}, "erm", True)
    validation = {n: torch.tensor(of(n, "validation", source.domain_names)).view(args.trials, -1) for n in whole}
    outcomes["validation, mean over targets"] = ({n: v.mean(1).tolist() for n, v in validation.items()}, "erm", True)
    outcomes["accuracy, mean over targets"] = ({n: v.mean(1).tolist() for n, v in by_trial.items()}, "erm", True)
    outcomes["accuracy, all pairs of trial and target"] = (
        {n: v.flatten().tolist() for n, v in by_trial.items()},
        "erm",
        True,
    )
    outcomes = {what: found for what, found in outcomes.items() if len(found[0]["erm"]) > 1}  # no test of one value
    failed = [line for line in done.values() if "error" in line]
    commits = sorted({line["commit"] for line in done.values() if line["method"] in whole})
    about = {"profile": given, "trials": args.trials, "commits of the runs": commits, "failed": failed}
    record_all(args.out, about, outcomes)
    with open(args.out.with_name("tables.md"), "a") as file:
        file.write(by_target({n: v.tolist() for n, v in by_trial.items()}, source.domain_names))


def by_target(found: dict[str, list[list[float]]], domains: tuple[str, ...]) -> str:
    """Differences to erm in every target, paired by trial; three trials allow Student's interval and no bootstrap."""
    lines = ["", "**Percentage points over erm in every target**, with 95 % intervals of Student's t, uncorrected", ""]
    lines += [f"| arm | {' | '.join(domains)} |", "|---" * (len(domains) + 1) + "|"]
    base = np.array(found["erm"])
    for name, values in found.items():
        if name != "erm":
            d = 100 * (np.array(values) - base)
            mean, half = d.mean(0), t.ppf(0.975, len(d) - 1) * d.std(0, ddof=1) / len(d) ** 0.5
            cells = [f"{m:+.1f} [{m - h:+.1f}, {m + h:+.1f}]" for m, h in zip(mean, half, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
