"""Do the laws predict runs that they have not seen better than a line does? The published runs of the data mixing laws.

python evidence/mixing-laws/run.py --data FOLDER   (the folder that holds mixing-laws/; default OMNIMIX_DATA)
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import record_all

from omnimix.corpora.weigh.base import Regressor
from omnimix.corpora.weigh.bimix import BiMix
from omnimix.corpora.weigh.linear import OLS
from omnimix.corpora.weigh.mixing_laws import MixingLaw
from omnimix.corpora.weigh.power_law import PowerLaws

SPLITS = 20
STEP = 30_000
OWN = {"Github": 0, "Books3": 1, "Pile-CC": 2}
"""The domains of the three-domain runs, in the order of their weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    asked = parser.parse_args()
    archive = asked.data / "mixing-laws" / "mixing-laws.tgz"
    outcomes: dict[str, tuple[dict[str, list[float]], str, bool]] = {}
    weights, losses, names = runs(archive, "3Mix/410M", 60_000)
    for name in names:
        column = losses[:, names.index(name)]
        outcomes[f"three domains, 410M, 24 of 32 runs fitted: held-out MAE on {name}"] = (
            held_out(weights, column, 8, OWN[name]), "ols", False,
        )  # fmt: skip
    for family, left_out in (("5Mix/70M", 6), ("5Mix/410M", 6), ("RedPajama/70M", 8)):
        weights, losses, names = runs(archive, family, STEP)
        outcomes[f"{family}, mean of {len(names)} validation sets, {left_out} of {len(weights)} runs held out: MAE"] = (
            held_out(weights, losses.mean(1), left_out), "ols", False,
        )  # fmt: skip
    outcomes["5Mix, 410M losses at 30000 steps foretold from 70M, 160M and 305M: MAE over validation sets"] = (
        sizes(archive), "305M as it is", False,
    )  # fmt: skip
    record_all(asked.out, {"splits": SPLITS, "step": STEP}, outcomes)


def runs(archive: Path, member: str, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(n, k) weights and (n, m) losses at a step, and the m names; runs numbered from 900, optimised ones, stay out."""
    found: dict[tuple[float, ...], dict[str, float]] = defaultdict(dict)
    with tarfile.open(archive) as files:
        file = files.extractfile(f"mixing-laws/{member}.txt")
        assert file is not None
        for line in io.TextIOWrapper(file):
            path, data, loss = line.split("\t")
            run, at = [part for part in path.split("/") if part][-2:]
            number, *shares = run.split("_")[-1].split("-")
            if at == str(step) and int(number) < 900:
                found[tuple(map(float, shares))][data.split(".")[-2]] = float(loss)
    names = sorted(set.intersection(*(set(row) for row in found.values())))
    ordered = sorted(found)
    return np.array(ordered), np.array([[found[w][name] for name in names] for w in ordered]), names


def held_out(weights: np.ndarray, losses: np.ndarray, count: int, own: int | None = None) -> dict[str, list[float]]:
    """Mean absolute error on runs that were not fitted, one value a random split."""
    arms: dict[str, list[float]] = defaultdict(list)
    each: dict[str, Callable[[], Regressor]] = {"ols": OLS, "mixing law": MixingLaw}
    if own is not None:
        each["BiMix, floor 0.01"] = lambda: BiMix(own, floor=0.01)
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(weights))
        fit, test = order[count:], order[:count]
        for name, make in each.items():
            predicted = make().fit(weights[fit], losses[fit]).predict(weights[test])
            arms[name].append(float(np.abs(predicted - losses[test]).mean()))
        arms["mean loss"].append(float(np.abs(losses[fit].mean() - losses[test]).mean()))
    return dict(arms)


def sizes(archive: Path) -> dict[str, list[float]]:
    """Losses of a size that was not used, by one power law in size for all runs; one value a validation set."""
    parameters = {"70M": 18915328, "160M": 85056000, "305M": 201541632, "410M": 302311424}
    read = {size: runs(archive, f"5Mix/{size}", STEP) for size in parameters}
    names = sorted(set.intersection(*(set(one[2]) for one in read.values())))
    shared = sorted(set.intersection(*({tuple(w) for w in one[0]} for one in read.values())))
    arms: dict[str, list[float]] = {"power law": [], "305M as it is": []}
    for name in names:
        loss = {}
        for size, (weights, losses, columns) in read.items():
            at = {tuple(w): i for i, w in enumerate(weights)}
            loss[size] = np.array([losses[at[w], columns.index(name)] for w in shared])
        small = np.array([parameters[size] for size in ("70M", "160M", "305M")], dtype=float)
        law = PowerLaws().fit(small, np.stack([loss[size] for size in ("70M", "160M", "305M")], axis=1))
        arms["power law"].append(float(np.abs(law.predict(parameters["410M"]) - loss["410M"]).mean()))
        arms["305M as it is"].append(float(np.abs(loss["305M"] - loss["410M"]).mean()))
    return arms


if __name__ == "__main__":
    main()
