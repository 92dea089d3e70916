"""C-Mixup on Airfoil and NO2 under the protocol of its paper's code, beside ERM, mixup and Manifold Mixup."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

METHODS = [
    "erm",
    "mixup",
    "manifold-mixup",
    "c-mixup",
    "c-mixup:alpha=0.5",
    "c-mixup:place=input",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    outcomes, protocols = {}, {}
    for data in ("airfoil", "no2"):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(sys.executable, "-m", "omnimix.cli", "compare", "--data", data, "--protocol", "c-mixup"),
                *("--methods", ",".join(METHODS), "--seeds", str(args.seeds), "--out", folder, "--json"),
            ]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        protocols[data] = result["protocol"]
        runs = {m: sorted((r for r in result["rows"] if r["method"] == m), key=lambda r: r["seed"]) for m in METHODS}
        for metric in ("rmse", "mape"):
            arms = {m: [run["metrics"][metric] for run in found] for m, found in runs.items()}
            outcomes[f"{data} {metric}"] = (arms, "erm", False)
            if data == "airfoil" and metric == "rmse":
                outcomes[f"{data} {metric} against manifold-mixup"] = (arms, "manifold-mixup", False)
    record_all(args.out, {"seeds": args.seeds, "protocol": protocols}, outcomes)


if __name__ == "__main__":
    main()
