"""What every evidence script shares: paired statistics and a record of where the numbers come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import omnimix
from omnimix.compare.statistics import estimate, holm, paired_p


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions of this run."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "omnimix": omnimix.__version__,
    }


def commit() -> str | None:
    """The git commit of the checkout, with "+changes" where code differs from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", "../src", "*.py"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def summarise(arms: dict[str, list[float]], baseline: str, higher_is_better: bool) -> dict[str, Any]:
    """Mean, sd, paired difference to the baseline, its interval and Holm-corrected p; one value a seed, in seed order.

    The statistics are those of `omnimix compare`. Verdicts ask for p < 0.05 after correction over the arms.
    """
    differences = {
        name: [value - base for value, base in zip(values, arms[baseline], strict=True)]
        for name, values in arms.items()
        if name != baseline
    }
    corrected = holm({name: paired_p(values) for name, values in differences.items()})
    rows: dict[str, Any] = {}
    for name, values in arms.items():
        own = estimate(values)
        rows[name] = {"values": [float(v) for v in values], "mean": own.mean, "sd": own.sd}
        if name != baseline:
            found, p = estimate(differences[name]), corrected[name]
            rows[name]["difference"] = {"mean": found.mean, "ci95": found.ci95, "p": p}
            better = (found.mean > 0) == higher_is_better
            shown = p is not None and p < 0.05
            rows[name]["verdict"] = ("better" if better else "worse") if shown else "no difference shown"
    return {"baseline": baseline, "higher_is_better": higher_is_better, "arms": rows}


def tables(result: dict[str, Any]) -> str:
    """The outcomes as Markdown tables."""
    lines = [
        "Mean and sd over seeds; paired difference to the baseline, 95 % interval, Holm-corrected p, verdict at p < .05"
    ]
    for name, outcome in result["outcomes"].items():
        lines += ["", f"**{name}** ({'higher' if outcome['higher_is_better'] else 'lower'} is better)", ""]
        lines += [f"| arm | mean | sd | minus {outcome['baseline']} | p | verdict |", "|---|---|---|---|---|---|"]
        for arm, row in outcome["arms"].items():
            cells = [arm, f"{row['mean']:.4g}", f"{row['sd']:.2g}" if row["sd"] is not None else "", "", "", ""]
            if "difference" in row:
                found = row["difference"]
                interval = "[{:+.3g}, {:+.3g}]".format(*found["ci95"]) if found["ci95"] else ""
                cells[3:] = [f"{found['mean']:+.3g} {interval}", f"{found['p']:.2g}", row["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def record_all(
    out: Path, settings: dict[str, Any], outcomes: dict[str, tuple[dict[str, list[float]], str, bool]]
) -> dict[str, Any]:
    """Write the outcomes, name -> (arms, baseline, higher_is_better), with settings, machine and commit.

    As JSON, and as tables.md beside it; prints the tables and returns the result.
    """
    result = {
        "settings": settings,
        "machine": machine(),
        "commit": commit(),
        "outcomes": {name: summarise(*outcome) for name, outcome in outcomes.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_name("tables.md").write_text(tables(result))
    print(tables(result))
    return result
