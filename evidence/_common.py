"""What every evidence script shares: paired statistics and a record of where the numbers come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import omnimix


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
    """The git commit of the checkout, with "+changes" where the work tree differs; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", "../src", "."], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def interval(values: list[float], draws: int = 10_000) -> list[float]:
    """The percentile-bootstrap 95 % interval of the mean."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return [float("nan"), float("nan")]
    means = data[np.random.default_rng(0).integers(len(data), size=(draws, len(data)))].mean(axis=1)
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]


def summarise(arms: dict[str, list[float]], baseline: str, higher_is_better: bool) -> dict[str, Any]:
    """Mean, sd and paired difference to the baseline of every arm; the arms hold one value a seed, in seed order."""
    base = np.asarray(arms[baseline])
    rows: dict[str, Any] = {}
    for name, values in arms.items():
        diff = np.asarray(values) - base
        rows[name] = {
            "values": [float(v) for v in values],
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
        if name != baseline:
            low, high = interval(diff.tolist())
            better = (low > 0) if higher_is_better else (high < 0)
            worse = (high < 0) if higher_is_better else (low > 0)
            rows[name]["difference"] = {"mean": float(diff.mean()), "ci95": [low, high]}
            rows[name]["verdict"] = "better" if better else "worse" if worse else "no difference shown"
    return {"baseline": baseline, "higher_is_better": higher_is_better, "arms": rows}


def record(
    out: Path, settings: dict[str, Any], arms: dict[str, list[float]], baseline: str, higher_is_better: bool
) -> dict[str, Any]:
    """Write one outcome, with its settings, machine and commit, as JSON; print its table; return it."""
    return record_all(out, settings, {"outcome": (arms, baseline, higher_is_better)})


def record_all(
    out: Path, settings: dict[str, Any], outcomes: dict[str, tuple[dict[str, list[float]], str, bool]]
) -> dict[str, Any]:
    """As `record`, for several named outcomes of one run: name -> (arms, baseline, higher_is_better)."""
    result = {
        "settings": settings,
        "machine": machine(),
        "commit": commit(),
        "outcomes": {name: summarise(*outcome) for name, outcome in outcomes.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for name, outcome in result["outcomes"].items():
        print(f"\n{name} (baseline {outcome['baseline']})")
        for arm, row in outcome["arms"].items():
            line = f"  {arm:32s} {row['mean']:8.4f} +- {row['sd'] or 0:.4f}"
            if "difference" in row:
                low, high = row["difference"]["ci95"]
                line += f"   {row['difference']['mean']:+.4f} [{low:+.4f}, {high:+.4f}]  {row['verdict']}"
            print(line)
    return result
