"""Two networks trained apart on halves of Fashion-MNIST and made one: averaged, aligned, repaired, zipped, solved."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all
from _loop import seeded

from omnimix.data.idx import read_idx
from omnimix.models import merge
from omnimix.models.merge.pleas import Cost
from omnimix.networks.preact_resnet import PreActResNet

SETTINGS = {
    "train": "2 x 10,000 of Fashion-MNIST", "test": 3000, "epochs": 6, "batch": 100, "optimiser": "Adam 1e-3",
    "mlp": "784-256-256-256-10 ReLU", "cnn": "PreActResNet 16-16-32, one block a stage, on 14 x 14 pixels",
    "calibration": "10 batches of 200",
    "skewed": "each half has 80 % of five classes and 20 % of the others",
}  # fmt: skip
GRID = torch.linspace(0, 1, 9).tolist()
BUDGETS = (1.0, 1.25, 1.5, 1.75, 2.0)


def mlp() -> nn.Module:
    parts: list[nn.Module] = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU()]
    for _ in range(2):
        parts += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(256, 10))


def cnn() -> nn.Module:
    return PreActResNet((1, 14, 14), 10, 16, (16, 32), 1)


def train(make, seed: int, x: Tensor, y: Tensor) -> nn.Module:
    model = seeded(make, seed).train()
    optimizer, draw = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(seed)
    for _ in range(SETTINGS["epochs"]):
        for rows in torch.randperm(len(x), generator=draw).split(SETTINGS["batch"]):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(predict, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Error in per cent, and loss."""
    logits = torch.cat([predict(part) for part in x.split(1000)])
    return float((logits.argmax(1) != y).double().mean() * 100), float(F.cross_entropy(logits, y))


def loaded(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    new = copy.deepcopy(model)
    new.load_state_dict(state)
    return new


def load() -> dict[str, tuple[Tensor, Tensor]]:
    """Fashion-MNIST, and MNIST for inputs that are not of the task."""
    root = Path(os.environ.get("OMNIMIX_DATA") or Path(__file__).parents[3] / "shared" / "data")

    def read(name: str, part: str) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(read_idx(root / name / f"{part}-images-idx3-ubyte.gz", 3).copy())[:, None].float() / 255
        return x, torch.from_numpy(read_idx(root / name / f"{part}-labels-idx1-ubyte.gz", 1).copy()).long()

    tx, ty = read("fashion-mnist", "t10k")
    return {
        "train": read("fashion-mnist", "train"),
        "test": (tx[: SETTINGS["test"]], ty[: SETTINGS["test"]]),
        "other": read("mnist", "t10k"),
    }


def halves(y: Tensor, skew: bool, draw: torch.Generator) -> list[Tensor]:
    if not skew:
        return [*torch.randperm(len(y), generator=draw)[:20_000].split(10_000)]
    first = torch.rand(len(y), generator=draw) < torch.where(y < 5, 0.8, 0.2)
    sides = (first.nonzero()[:, 0], (~first).nonzero()[:, 0])
    return [side[torch.randperm(len(side), generator=draw)[:10_000]] for side in sides]


def run(kind: str, seed: int, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    make, skew = (cnn if kind == "cnn" else mlp), kind == "mlp, skewed halves"
    draw = torch.Generator().manual_seed(seed)
    (x, y), (tx, ty), (ox, _) = data["train"], data["test"], data["other"]
    if kind == "cnn":
        x, tx, ox = (F.avg_pool2d(part, 2) for part in (x, tx, ox))
    parts = halves(y, skew, draw)
    a, b = (train(make, 2 * seed + i, x[rows], y[rows]) for i, rows in enumerate(parts))
    some = torch.cat(parts)[torch.randperm(20_000, generator=draw)[:2000]]
    inputs = [*x[some].split(200)]
    other = [*ox[torch.randperm(len(ox), generator=draw)[:2000]].split(200)]
    noise = [*torch.rand(2000, *x.shape[1:], generator=draw).split(200)]
    spec = merge.permutation_spec(a, x[:2])
    errors: dict[str, float] = {}
    barriers: dict[str, float] = {}
    losses: dict[str, float] = {}

    def note(arm: str, predict) -> None:
        errors[arm], losses[arm] = measure(predict, tx, ty)

    def line(arm: str, second: nn.Module, mended) -> None:
        """The midpoint, and the barrier over the line between the networks."""
        ends = [measure(model, tx, ty)[1] for model in (a, second)]
        heights = []
        for t in GRID:
            state = merge.Linear([1 - t, t])([a.state_dict(), second.state_dict()])
            model = mended(loaded(a, state), second, t)
            heights.append(measure(model, tx, ty)[1] - (1 - t) * ends[0] - t * ends[1])
            if t == 0.5:
                note(arm, model)
        barriers[arm] = max(heights)

    def as_is(model, second, t):
        return model

    def mend(model, second, t):
        return merge.repair(model, [a, second], inputs, weights=[1 - t, t])

    for i, model in enumerate((a, b)):
        note(f"parent {'AB'[i]}", model)
    note("ensemble", lambda part: (a(part) + b(part)) / 2)
    pairs = {
        "weight matching": merge.weight_matching(a.state_dict(), b.state_dict(), spec, generator=draw),
        "activation matching": merge.activation_matching(a, b, spec, inputs),
    }
    aligned = {"average": b} | {name: loaded(b, spec.apply(b.state_dict(), found)) for name, found in pairs.items()}
    for name, second in aligned.items():
        line(name, second, as_is)
        line(f"{name} + REPAIR", second, mend)
    note("ZipIt", merge.zipit([a, b], spec, inputs))
    grams = [merge.gram_matrices(model, inputs) for model in (a, b)]
    state = merge.RegMean(grams)([a.state_dict(), b.state_dict()])
    note("RegMean", merge.recalibrate(loaded(a, state), inputs))
    for matching in ("weights", "activations"):
        note(f"PLeaS {matching}", merge.pleas(a, b, spec, inputs, matching=matching, generator=draw))
    note("PLeaS activations, MNIST inputs", merge.pleas(a, b, spec, other, matching="activations"))
    note("PLeaS activations, noise inputs", merge.pleas(a, b, spec, noise, matching="activations"))
    cost = Cost(a, spec, x[:1])
    for budget in BUDGETS[1:]:
        ratios = merge.ratios_for(a, spec, x[:1], budget)
        for solve, name in ((False, "permutation only"), (True, "PLeaS activations")):
            how = {"matching": "activations", "ratios": ratios, "solve": solve}
            note(f"{name} at {budget:g}x", merge.pleas(a, b, spec, inputs, **how))
        assert cost(ratios) <= budget + 1e-6
    print(kind, seed, {arm: round(value, 2) for arm, value in errors.items()}, flush=True)
    return {"error": errors, "loss": losses, "loss barrier": barriers}


def contrasts(kind: str, errors: dict[str, list[float]]) -> dict[str, tuple[dict[str, list[float]], str, bool]]:
    """The comparisons that the papers make, pair by pair, where the plain average is no rival."""
    plain = "activation matching + REPAIR" if kind == "cnn" else "activation matching"
    pairs = {"alignment by weights": ("average", "weight matching"), "ZipIt": (plain, "ZipIt")}
    pairs["alignment by activations"] = ("average", "activation matching")
    pairs |= {f"REPAIR after {name}": (name, f"{name} + REPAIR") for name in ("weight matching", "activation matching")}
    pairs["least squares at 1x"] = (plain, "PLeaS activations")
    for budget in BUDGETS[1:]:
        pairs[f"least squares at {budget:g}x"] = (
            f"permutation only at {budget:g}x",
            f"PLeaS activations at {budget:g}x",
        )
    before, found = "PLeaS activations", {}
    for budget in BUDGETS[1:]:
        pairs[f"width {budget:g}x"] = (before, f"PLeaS activations at {budget:g}x")
        before = f"PLeaS activations at {budget:g}x"
    for name, (one, other) in pairs.items():
        found[f"error, {kind}: {name}"] = ({one: errors[one], other: errors[other]}, one, False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cnn-seeds", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=["mlp", "mlp, skewed halves", "cnn"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load()
    outcomes = {}
    for kind in args.kinds:
        runs = [run(kind, seed, data) for seed in range(args.seeds if kind != "cnn" else args.cnn_seeds)]
        for metric in runs[0]:
            arms = {arm: [one[metric][arm] for one in runs] for arm in runs[0][metric]}
            outcomes[f"{metric}, {kind}"] = (arms, "average", False)
            if metric == "error":
                outcomes |= contrasts(kind, arms)
    record_all(args.out, {**SETTINGS, "seeds": args.seeds, "seeds, cnn": args.cnn_seeds}, outcomes)


if __name__ == "__main__":
    main()
