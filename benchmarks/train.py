"""One C-Mixup run on Airfoil, ours against the reference code's own, one thread each, side by side in one run.

1003/300/200 rows, batch 16, 100 epochs, MLP 5-128-128-1, Adam at 0.01, bandwidth 1.75, Beta(2, 2), mixed after the
first layer, best validation epoch. Timed, as the reference times itself: from the untrained network to the test score,
preparation of the pairs included, imports and reading the data left out. Rounds alternate; the shortest of each counts.

    python benchmarks/train.py [--reference DIR] [--rounds 3] [--seed 0] [--json]

DIR is a checkout of huaxiuyao/C-Mixup (github); its code runs unchanged on a copy. Without DIR, or where its packages
are missing, its algorithm is enacted anew from its description, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
EPOCHS, STEPS = 100, 62
SETTINGS = ["--dataset", "Airfoil", "--mixtype", "kde", "--kde_bandwidth", "1.75", "--use_manifold", "1"]


def ours(seed: int) -> dict[str, float]:
    """What `omnimix compare --data airfoil --protocol c-mixup --methods c-mixup` does in one run."""
    import torch
    import torch._dynamo  # optimisers import it when the first one is made; imports are not timed

    import omnimix as om
    from omnimix.compare.protocol import choose, prepare, split
    from omnimix.data import load
    from omnimix.networks import create
    from omnimix.train import evaluate
    from omnimix.train.together import fit_together

    torch.set_num_threads(1)
    source = load("airfoil")
    protocol = choose("c-mixup", source)
    data = prepare(protocol, source, split(protocol, source, seed))
    model = create("mlp", source.input_shape, 1, seed=seed)
    assert data.test is not None
    start = time.perf_counter()
    method = om.create("c-mixup", **protocol.methods["c-mixup"])
    (done,) = fit_together([method], [model], [data], protocol.budget, seeds=[seed])
    if isinstance(done, Exception):
        raise done
    found = evaluate(model, method, data.test, data.task)
    return {"seconds": time.perf_counter() - start, "step_us": 1e6 * done.step_seconds, "rmse": found["rmse"]}


def reference(folder: Path, seed: int) -> dict[str, float]:
    """The reference code itself, on a copy, with the data file where it looks for it; its own clock."""
    import omnimix.data

    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(folder / "src", Path(work) / "src")
        (Path(work) / "src" / "data" / "Airfoil").mkdir(exist_ok=True)
        file = Path(omnimix.data.__file__).parent / "files" / "airfoil_self_noise.dat"
        shutil.copy(file, Path(work) / "src" / "data" / "Airfoil")
        options = ["--seed", str(seed), "--gpu", "-1", "--result_root_path", work + "/result/"]
        run = subprocess.run(
            [sys.executable, "main.py", *SETTINGS, *options],
            cwd=Path(work) / "src",
            env={**os.environ, **THREADS},
            capture_output=True,
            text=True,
        )
    last = re.search(r"Final test.*?rmse = ([\d.]+).*?time = ([\d.]+) s", run.stdout, re.DOTALL)
    if last is None:
        error = run.stderr.strip().splitlines() or ["no result printed"]
        raise RuntimeError(error[-1])
    epochs = [float(t) for t in re.findall(r"Train epoch .*time = ([\d.]+) s", run.stdout)]
    return {
        "seconds": float(last[2]),
        "step_us": 1e6 * sorted(epochs)[len(epochs) // 2] / STEPS,
        "rmse": float(last[1]),
    }


def enacted(seed: int) -> dict[str, float]:
    """The reference's algorithm as its card describes it: a density estimate a label, a weighted choice a sample."""
    import numpy as np
    import torch
    from sklearn.neighbors import KernelDensity
    from torch import nn

    from omnimix.data import load

    torch.set_num_threads(1)
    source, rng = load("airfoil"), np.random.RandomState(seed)
    order = rng.permutation(len(source))
    x = source.take(torch.from_numpy(order)).double().numpy()
    y = source.y.double().numpy()[order, None]
    x = (x - x.min(0)) / (x.max(0) - x.min(0))
    torch.manual_seed(seed)
    low = nn.Sequential(nn.Linear(5, 128), nn.LeakyReLU(0.1))
    high = nn.Sequential(nn.Linear(128, 128), nn.LeakyReLU(0.1), nn.Linear(128, 1))
    start, times = time.perf_counter(), []
    rows = []
    for label in y[:1003]:
        density = np.exp(KernelDensity(bandwidth=1.75).fit(label[None]).score_samples(y[:1003]))
        rows.append(density / density.sum())
    chance, loss = np.array(rows), nn.MSELoss()
    optimizer = torch.optim.Adam([*low.parameters(), *high.parameters()], lr=0.01)
    best, best_test = np.inf, np.inf
    for _ in range(EPOCHS):
        begin, order = time.perf_counter(), rng.permutation(1003)
        for step in range(STEPS):
            lam, first = rng.beta(2, 2), order[16 * step : 16 * step + 16]
            second = [rng.choice(1003, p=chance[i]) for i in first]
            x1, y1, x2, y2 = (torch.tensor(t[i]).float() for i in (first, second) for t in (x, y))
            output = high(lam * low(x1) + (1 - lam) * low(x2))
            value = loss(output, lam * y1 + (1 - lam) * y2)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        with torch.no_grad():
            error = (high(low(torch.tensor(x[1003:]).float())).numpy() - y[1003:]) ** 2
        if error[:300].mean() <= best:
            best, best_test = error[:300].mean(), error[300:].mean()
        times.append(time.perf_counter() - begin)
    return {
        "seconds": time.perf_counter() - start,
        "step_us": 1e6 * sorted(times)[EPOCHS // 2] / STEPS,
        "rmse": float(best_test**0.5),
    }


def in_own_process(name: str, seed: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--seed", str(seed)]
    run = subprocess.run(command, env={**os.environ, **THREADS}, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of huaxiuyao/C-Mixup")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--only", choices=("ours", "enacted"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"ours": ours, "enacted": enacted}[options.only](options.seed)))
        return
    theirs: Callable[[int], dict[str, float]] = lambda seed: in_own_process("enacted", seed)  # noqa: E731
    what = "reference algorithm, enacted anew (no --reference given)"
    if options.reference:
        try:
            reference(options.reference, options.seed)
            theirs, what = lambda seed: reference(options.reference, seed), "reference code, unchanged"
        except (RuntimeError, OSError) as error:
            what = f"reference algorithm, enacted anew (its code stops with: {error})"
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "reference": []}
    for _ in range(options.rounds):
        runs["ours"].append(in_own_process("ours", options.seed))
        runs["reference"].append(theirs(options.seed))
    best = {name: min(some, key=lambda r: r["seconds"]) for name, some in runs.items()}
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "reference_is": what,
        "runs": runs,
        "ratio": best["reference"]["seconds"] / best["ours"]["seconds"],
        "step_ratio": best["reference"]["step_us"] / best["ours"]["step_us"],
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"Airfoil, C-Mixup, {EPOCHS} epochs of {STEPS} steps, one thread; shortest of {options.rounds} rounds")
    for name, label in (("ours", "omnimix"), ("reference", what)):
        r, every = best[name], ", ".join(f"{run['seconds']:.2f}" for run in runs[name])
        print(
            f"  {label}: {r['seconds']:.2f} s, {r['step_us']:.0f} us a step, test RMSE {r['rmse']:.2f} (all: {every} s)"
        )
    print(f"  reference / ours: {result['ratio']:.2f} x the time, {result['step_ratio']:.2f} x a step")


if __name__ == "__main__":
    main()
