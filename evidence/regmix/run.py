"""RegMix's fit table, learning curve and simulation, from the runs that its authors published.

python evidence/regmix/run.py --data FOLDER   (the folder that holds regmix/; default OMNIMIX_DATA)
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import commit, machine

from omnimix.corpora.weigh.design import MixtureDesign
from omnimix.corpora.weigh.linear import OLS, Ridge
from omnimix.corpora.weigh.mixing_laws import MixingLaw
from omnimix.corpora.weigh.propose import simulate
from omnimix.corpora.weigh.regmix import LightGBM
from omnimix.corpora.weigh.run_table import RunTable
from omnimix.corpora.weigh.scores import domain_ranking, learning_curve, score, spearman

SCALES = ("1m", "60m", "1B")
FITS = {
    "lightgbm": LightGBM,
    "ols": OLS,
    "ridge alpha=1": Ridge,
    "ridge alpha=10": lambda: Ridge(10.0),
    "mixing-law": MixingLaw,
}
RUNS = (32, 64, 128, 256, 512)
SIMULATED = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    asked = parser.parse_args()
    folder = asked.data / "regmix"
    table = RunTable.read(folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv")
    tests = {s: RunTable.read(folder / f"test_mixture_{s}.csv", folder / f"test_pile_loss_{s}.csv") for s in SCALES}
    started = time.perf_counter()
    rows, models = fits(table, tests)
    seconds = {"fit and test of five regressors on 13 targets": time.perf_counter() - started}
    found, seconds["a million simulated mixtures for Pile-CC"] = simulated(table, models["lightgbm", "pile-cc"])
    started = time.perf_counter()
    for metric in table.metrics:
        LightGBM().fit(table.weights, table.loss(metric))
    seconds["13 LightGBM fits"] = time.perf_counter() - started
    y = table.metric("pile-cc")
    best = models["lightgbm", "pile-cc"].predict(tests["1B"].weights).argmin()
    result = {
        "machine": machine(),
        "commit": commit(),
        "fits": rows,
        "rank_invariance_1m_60m": {m: spearman(tests["1m"].loss(m), tests["60m"].loss(m)) for m in table.metrics},
        "best_of_the_1B_runs": {
            "predicted": int(tests["1B"].runs[best]),
            "true": int(tests["1B"].runs[tests["1B"].loss(y).argmin()]),
        },
        "learning_curve_pile_cc": {
            name: curve(make, table, tests) for name, make in FITS.items() if "ridge" not in name
        },
        "simulated": found,
        "seconds": seconds,
    }  # fmt: skip
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    text = tables(result)
    asked.out.with_name("tables.md").write_text(text)
    print(text)


def fits(table: RunTable, tests: dict[str, RunTable]) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """Scores of every regressor on every target and scale, the ranking by one domain's weight among them."""
    rows: dict[str, Any] = {name: {} for name in (*FITS, "one domain's weight")}
    models = {}
    for metric in table.metrics:
        y = table.loss(metric)
        for name, make in FITS.items():
            model = make().fit(table.weights, y)
            rows[name][metric] = {
                s: score(model.predict(t.weights), t.loss(metric)).to_dict() for s, t in tests.items()
            }
            if metric == table.metric("pile-cc"):
                models[name, "pile-cc"] = model
        trivial = domain_ranking(table.weights, y)
        rows["one domain's weight"][metric] = {
            s: {"spearman": spearman(trivial.ranks(t.weights), t.loss(metric)), "domain": table.domains[trivial.domain]}
            for s, t in tests.items()
        }
    return rows, models


def curve(make: Any, table: RunTable, tests: dict[str, RunTable]) -> list[dict[str, Any]]:
    """Mean, lowest and highest Spearman over five random subsets of the runs."""
    y = table.loss("pile-cc")
    points = learning_curve(
        lambda rows: make().fit(table.weights[rows], y[rows]).predict, len(table),
        [(t.weights, t.loss("pile-cc")) for t in tests.values()], RUNS,
    )  # fmt: skip
    curve = []
    for n, values in points:
        spread = {
            scale: [float(np.mean(v)), min(v), max(v)] if np.isfinite(v).all() else None
            for scale, v in zip(tests, values, strict=True)
        }
        curve.append({"runs": n, **spread})
    return curve


def simulated(table: RunTable, model: Any) -> tuple[dict[str, float], float]:
    """The mean of the best 128 of a million mixtures, and how long drawing and searching took."""
    started = time.perf_counter()
    prior = dict(zip(table.domains, table.weights.mean(0), strict=True))
    design = MixtureDesign(prior, temperature=1.0, strength=(1.0, 1.0), strengths=1, cap=None)
    w = simulate(model, design.candidates(SIMULATED, torch.Generator().manual_seed(42)), 128)
    return dict(zip(table.domains, w.tolist(), strict=True)), time.perf_counter() - started


def tables(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    target = "metric/the_pile_pile_cc_val_loss"
    lines = [
        "**Pile-CC**, fitted to 512 runs of the 1M model (Spearman x 100; MAE and MSE on the 256 other 1M runs)",
        "",
    ]
    lines += ["| fit | 1M | 60M | 1B | MAE | MSE |", "|---|---|---|---|---|---|"]
    for name, row in result["fits"].items():
        ranks = " | ".join(f"{100 * row[target][s]['spearman']:.2f}" for s in SCALES)
        errors = (
            f"{row[target]['1m']['mae']:.4f} | {row[target]['1m']['mse']:.4f}" if "mae" in row[target]["1m"] else " | "
        )
        lines.append(f"| {name} | {ranks} | {errors} |")
    lines += ["", "**Mean over the 13 targets** (Spearman x 100)", "", "| fit | 1M | 60M | 1B |", "|---|---|---|---|"]
    for name, row in result["fits"].items():
        means = [100 * float(np.mean([one[s]["spearman"] for one in row.values()])) for s in SCALES]
        lines.append(f"| {name} | {' | '.join(f'{m:.2f}' for m in means)} |")
    lines += [
        "",
        "**Learning curve on Pile-CC** (Spearman x 100 at 1M / 60M / 1B, mean of five subsets; - constant in one)",
        "",
    ]
    lines += [f"| fit | {' | '.join(str(n) + ' runs' for n in RUNS)} |", "|---|" + "---|" * len(RUNS)]
    for name, points in result["learning_curve_pile_cc"].items():
        cells = [" / ".join("-" if p[s] is None else f"{100 * p[s][0]:.1f}" for s in SCALES) for p in points]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    invariance = result["rank_invariance_1m_60m"]
    top = sorted(result["simulated"].items(), key=lambda item: -item[1])[:6]
    lines += [
        "",
        f"Rank invariance 1M to 60M: Pile-CC {invariance[target]:.4f}; all targets {min(invariance.values()):.3f} to "
        f"{max(invariance.values()):.3f}.",
        f"Lowest predicted of the 64 1B runs: index {result['best_of_the_1B_runs']['predicted']}; lowest measured: "
        f"{result['best_of_the_1B_runs']['true']}.",
        "Proposal from a million mixtures: "
        + ", ".join(f"{d.removeprefix('train_the_pile_')} {w:.3f}" for d, w in top)
        + ".",
        "Seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in result["seconds"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
