"""Wrong labels and noise dimensions make a linear classifier lean on a spurious feature: worst-group error."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

from omnimix.data.noise import GROUPS, group_sizes, toy_features
from omnimix.domains.measure import worst_group

SETTINGS = {
    "train": 1000, "test": 1000, "correlation": 0.99, "causal": 5, "spurious": 5, "variance": 0.25, "lambda": 1e-4,
    "model": "logistic regression without intercept",
}  # fmt: skip
FLIPS = (0.0, 0.1, 0.25)


def draw(
    rng: np.random.Generator, counts: list[int], noise: int, flips: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, group) of `spurious_toy` on NumPy's numbers; labels flipped after x and groups are made."""
    group = np.repeat(np.arange(4), counts)
    causal, spurious = SETTINGS["causal"], SETTINGS["spurious"]
    drawn = np.concatenate([rng.standard_normal((len(group), width)) for width in (causal, spurious, noise)], axis=1)
    x = toy_features(torch.from_numpy(drawn), torch.from_numpy(group), causal, spurious).numpy()
    y = np.array(GROUPS)[group, 0]
    return x, np.where(rng.random(len(y)) < flips, -y, y), group


def resampled(rng: np.random.Generator, group: np.ndarray, how: str) -> np.ndarray:
    """Rows: all, or those of groups of equal size, small ones repeated ("over") or large ones cut ("under")."""
    rows = [np.flatnonzero(group == g) for g in range(4)]
    if how == "erm":
        return np.arange(len(group))
    if how == "undersampled":
        return np.concatenate([rng.permutation(r)[: min(map(len, rows))] for r in rows])
    most = max(map(len, rows))
    return np.concatenate(
        [np.concatenate([np.tile(r, most // len(r)), rng.permutation(r)[: most % len(r)]]) for r in rows]
    )


def errors(seed: int, noise: int, flips: float) -> dict[str, tuple[float, float]]:
    """(worst-group, average) test error of each way to sample the groups, the same data for all."""
    rng = np.random.default_rng(seed)
    x, y, group = draw(rng, group_sizes(SETTINGS["train"], SETTINGS["correlation"]), noise, flips)
    test_x, test_y, test_group = draw(rng, [SETTINGS["test"] // 4] * 4, noise, 0.0)
    found = {}
    for how in ("erm", "oversampled", "undersampled"):
        rows = resampled(rng, group, how)
        model = LogisticRegression(C=1 / (len(rows) * SETTINGS["lambda"]), fit_intercept=False, max_iter=100_000)
        wrong = torch.from_numpy(model.fit(x[rows], y[rows]).predict(test_x) != test_y).double()
        worst = worst_group(wrong, torch.from_numpy(test_group), higher_is_better=False)
        found[how] = (worst, float(wrong.mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {
        (noise, flips): [errors(seed, noise, flips) for seed in range(args.seeds)]
        for noise in (3000, 0)
        for flips in FLIPS
    }
    outcomes = {}
    for noise in (3000, 0):
        by_flips = {f"flips {f:.0%}": [run["erm"][0] for run in runs[noise, f]] for f in FLIPS}
        outcomes[f"worst-group error of ERM, {noise} noise dimensions"] = (by_flips, "flips 0%", False)
    for flips in FLIPS:
        for place, name in enumerate(("worst-group", "average")):
            arms = {
                how: [run[how][place] for run in runs[3000, flips]] for how in ("erm", "oversampled", "undersampled")
            }
            outcomes[f"{name} error, 3000 noise dimensions, flips {flips:.0%}"] = (arms, "erm", False)
    record_all(args.out, {**SETTINGS, "seeds": args.seeds}, outcomes)


if __name__ == "__main__":
    main()
