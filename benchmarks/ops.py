"""Speed of operations on images, per batch and per sample, side by side with torchvision, timm, kornia, authors' code.

    python benchmarks/ops.py [--json] [--quick] [--only cutmix mosaic] [--reference DIR] [--sides 224 32] [--repeats 15]
        [--threads 2] [--batch 128] [--objectives]

All rows run in turn in one process, on the CPU, from the same float batch to mixed inputs and soft labels; times are
medians in ms (and minima, which a busy machine disturbs less), with one thread those of the processor. timm and
openmixup mix in place: they get a fresh copy of the batch each turn, made outside the timed part, and are compared
with what omnimix takes with inplace=True; "input kept" is timm with the copy that a loop needs which goes on using
its batch, compared with what omnimix does unless told. kornia gives labels as ids, rows and shares. Saliency maps are
given: the passes through the network that find them are in step_time.py. Peers that are not installed, or whose call
fails, are left out and named. DIR: checkouts of authors' code, see references.py; --objectives compares what the
masks of Puzzle Mix and Co-Mixup cost, ours and theirs, instead of times.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import references
import torch
import torch.nn.functional as F
from torch import Tensor

from omnimix import Mixed, Recipe
from omnimix.core.operation import Context, Operation
from omnimix.core.pairing import RandomPairing
from omnimix.core.preset import mix_once
from omnimix.core.ratio import Beta
from omnimix.samples.operation import (
    Aligned,
    ContentStyle,
    GridCells,
    NoisyInterpolate,
    Patches,
    Statistics,
    StyleBox,
    attentivemix,
    augmix,
    co_mixup,
    cutmix,
    fmix,
    gridmix,
    guidedmixup,
    mixpro,
    mixup,
    mosaic,
    puzzle_mix,
    resizemix,
    saliencymix,
    smmix,
    smoothmix,
    snapmix,
    tokenmix,
)

CLASSES, OURS, TURN = 100, "omnimix", 0.2
IN_PLACE, KEPT = "omnimix in place", ", input kept"
Call = Callable[[Tensor, Tensor], Any]
Row = tuple[str, str, str]  # operation, mode, who
MODES = {"batch": False, "sample": True}
STATIC = {
    "mixup": mixup, "cutmix": cutmix, "fmix": fmix, "gridmix": gridmix, "mosaic": mosaic, "resizemix": resizemix,
    "saliencymix": saliencymix, "smoothmix": smoothmix, "mixpro": mixpro,
}  # fmt: skip
WITH_MAPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "attentivemix": (attentivemix, {}), "snapmix": (snapmix, {}), "smmix": (smmix, {}), "tokenmix": (tokenmix, {}),
    "puzzle-mix 4": (puzzle_mix, {"blocks": 4}), "puzzle-mix 16": (puzzle_mix, {"blocks": 16}),
    "co-mixup 4": (co_mixup, {"blocks": 4}), "co-mixup 8": (co_mixup, {"blocks": 8}),
}  # fmt: skip
BY_BATCH, BY_SAMPLE = ("patchup", "co-mixup 4", "co-mixup 8"), ("attentivemix", "augmix")


def by_operation(name: str, per_sample: bool) -> Operation:
    """The operations that have no function of their own; those on hidden maps are measured on the images."""
    beta = Beta(1.0, per_sample=per_sample)
    makers: dict[str, Callable[[], Operation]] = {
        "gridmix-local": lambda: GridCells(per_sample=per_sample),
        "stylemix": lambda: ContentStyle(beta),
        "stylecutmix": lambda: StyleBox(beta, beta, per_sample=per_sample),
        "patchup": Patches,
        "mixstyle": Statistics,
        "noisymix": NoisyInterpolate,
    }
    return makers[name]()


def ours() -> dict[Row, Call]:
    source = torch.Generator().manual_seed(0)

    def made(mixed: Mixed) -> tuple[Tensor, Tensor]:
        return mixed.x, mixed.soft_target(CLASSES)

    def function(operation: Any, **options: Any) -> Call:
        return lambda x, y: made(operation(x, y, generator=source, **options))

    def with_maps(operation: Any, **options: Any) -> Call:
        kept: dict[torch.Size, Tensor] = {}

        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if x.shape not in kept:
                kept[x.shape] = torch.rand(len(x), 1, *(side // 4 for side in x.shape[2:]))
            return made(operation(x, y, kept[x.shape], generator=source, **options))

        return run

    def operation(name: str, per_sample: bool) -> Call:
        part, ratio = by_operation(name, per_sample), Beta(1.0, per_sample=per_sample)
        return lambda x, y: made(mix_once(x, y, RandomPairing(), ratio, part, generator=source))

    def align(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        maps = F.avg_pool2d(x, x.shape[2] // 4)  # 4 x 4 cells, as where networks end
        rows = torch.arange(len(x))
        share = torch.tensor([[0.4, 0.6]]).expand(len(x), 2)
        recipe = Recipe(torch.stack((rows, rows.roll(1)), dim=1), share, place="layer")
        mixed, applied = Aligned()(maps, recipe, Context(source))
        return made(Mixed(mixed, y, applied))

    calls = {
        (name, mode, OURS): function(op, per_sample=flag) for name, op in STATIC.items() for mode, flag in MODES.items()
    }
    for name in ("mixup", "cutmix"):
        calls |= {
            (name, mode, IN_PLACE): function(STATIC[name], per_sample=flag, inplace=True)
            for mode, flag in MODES.items()
        }
    for name, (op, options) in WITH_MAPS.items():
        for mode, flag in MODES.items():
            if (name in BY_BATCH and flag) or (name in BY_SAMPLE and not flag):
                continue
            one = {} if name in (*BY_BATCH, *BY_SAMPLE) else {"per_sample": flag}
            calls[name, mode, OURS] = with_maps(op, **options, **one)
    for name in ("gridmix-local", "stylemix", "stylecutmix", "patchup", "mixstyle", "noisymix"):
        for mode, flag in MODES.items():
            if not (name in BY_BATCH and flag):
                calls[name, mode, OURS] = operation(name, flag)
    calls["alignmixup", "batch", OURS] = align
    calls["guidedmixup", "batch", OURS] = function(guidedmixup)  # with its spectral residuals
    calls["augmix", "sample", OURS] = lambda x, y: augmix(x, generator=source)
    return calls


def torchvision() -> dict[Row, Call]:
    v2 = importlib.import_module("torchvision.transforms.v2")
    mixers = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
    return {(n, "batch", "torchvision"): mixer(alpha=1.0, num_classes=CLASSES) for n, mixer in mixers.items()}


def timm() -> dict[Row, Call]:
    mixer = importlib.import_module("timm.data").Mixup
    alphas = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0)}
    calls: dict[Row, Call] = {}
    for name, (a, b) in alphas.items():
        for mode, how in (("batch", "batch"), ("sample", "elem")):
            mix = mixer(a, b, mode=how, label_smoothing=0.0, num_classes=CLASSES)
            calls[name, mode, f"timm {how}"] = mix
            calls[name, mode, f"timm {how}{KEPT}"] = on_a_copy(mix)
    return calls


def on_a_copy(mix: Call) -> Call:
    return lambda x, y: mix(x.clone(), y)


def in_place(who: str) -> bool:
    """Whether a mixer writes over the batch that it is given."""
    return who == IN_PLACE or (who.startswith(("timm", "openmixup")) and not who.endswith(KEPT))


def kornia() -> dict[Row, Call]:
    mixers = importlib.import_module("kornia.augmentation")
    keys = ["input", "class"]
    calls: dict[Row, Call] = {}
    for mode, flag in MODES.items():
        both = {"p": 1.0, "data_keys": keys, "same_on_batch": not flag}
        calls["mixup", mode, "kornia"] = mixers.RandomMixUpV2(**both)
        calls["cutmix", mode, "kornia"] = mixers.RandomCutMixV2(**both, use_correct_lambda=True)
    mosaics = {side: mixers.RandomMosaic((side, side), p=1.0, data_keys=["input"]) for side in (32, 224)}
    calls["mosaic", "sample", "kornia"] = lambda x, y: mosaics[x.shape[2]](x)
    return calls


def works(call: Call) -> str:
    """Why a peer does not mix a small batch, as some releases do not with the torch of today; "" where it does."""
    try:
        call(torch.rand(40, 3, 32, 32), torch.zeros(40, dtype=torch.long))
    except Exception as error:  # peers fail in all kinds of ways
        return f"{type(error).__name__}: {str(error)[:80]}"
    return ""


def maps_of(x: Tensor) -> Tensor:
    """The saliency that the authors' code is given, of the size of the images; made once for each."""
    if x.shape not in _MAPS:
        _MAPS[x.shape] = torch.rand(len(x), 1, *x.shape[2:])
    return _MAPS[x.shape]


_MAPS: dict[torch.Size, Tensor] = {}


def measure(calls: dict[Row, Call], size: int, side: int, repeats: int) -> dict[Row, list[float]]:
    """The times of each call in ms; the calls take turns in random order, fast ones several times a turn."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, side, side, generator=source)
    y = torch.randint(CLASSES, (size,), generator=source)
    times: dict[Row, list[float]] = {row: [] for row in calls}
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    counts, most, order = dict.fromkeys(calls, 1), max(1, 2**23 // x.numel()), random.Random(2)
    for turn in range(repeats + 1):
        for row in order.sample(list(calls), len(calls)):
            batch = x.clone() if in_place(row[2]) else x
            start = now()
            for _ in range(counts[row]):
                calls[row](batch, y)
            seconds = max(now() - start, 1e-6) / counts[row]
            if turn:
                times[row].append(1e3 * seconds)
            else:  # a warm-up, which tells how often a turn may call
                counts[row] = max(1, min(most, int(TURN / seconds)))
    return times


def summarise(side: int, times: dict[Row, list[float]]) -> list[dict[str, Any]]:
    rows, found = [], {row: statistics.median(values) for row, values in times.items()}
    for (operation, mode, who), ms in found.items():
        row: dict[str, Any] = {"side": side, "operation": operation, "per": mode, "who": who, "ms": round(ms, 3)}
        row["min_ms"] = round(min(times[operation, mode, who]), 3)
        others = [(w, t) for (o, m, w), t in found.items() if (o, m) == (operation, mode) and w not in (OURS, IN_PLACE)]
        peers = [t for w, t in others if in_place(w) == in_place(who)]
        if who in (OURS, IN_PLACE) and peers:
            row["best_peer_over_ours"] = round(min(peers) / ms, 2)
        if mode == "sample":
            batch = [t for (o, m, w), t in found.items() if (o, m) == (operation, "batch") and alike(w, who)]
            if batch:
                row["sample_over_batch"] = round(ms / batch[0], 2)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["operation"], row["per"]))


def alike(one: str, other: str) -> bool:
    """Whether two rows are of one mixer: timm's modes have names of their own."""
    return one.replace("batch", "elem") == other.replace("batch", "elem")


def table(rows: list[dict[str, Any]]) -> str:
    columns = ["side", "operation", "per", "who", "ms", "min_ms", "best_peer_over_ours", "sample_over_batch"]
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    width = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkouts of authors' code to compare with")
    parser.add_argument("--objectives", action="store_true", help="compare masks, not times; needs --reference")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="images of side 32 alone, 5 repeats")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="operations to measure (default: all)")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 32], help="image sides (default: 224 32)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.sides, options.repeats = [32], 5
    torch.set_num_threads(options.threads)
    if options.objectives:
        if not options.reference:
            parser.error("--objectives compares with the authors' code: say --reference DIR")
        print("\n".join(references.objectives(options.reference)))
        return
    calls, missing = ours(), []
    peers: dict[Row, Call] = {}
    for name, peer in (("torchvision", torchvision), ("timm", timm), ("kornia", kornia)):
        if importlib.util.find_spec(name):
            peers |= peer()
        else:
            missing.append(f"{name} (not installed)")
    if options.reference:
        found, absent = references.calls(options.reference, maps_of, CLASSES)
        peers, missing = peers | found, missing + absent
    for row, call in peers.items():
        why = works(call) if not options.only or row[0] in options.only else "not asked for"
        if not why:
            calls[row] = call
        elif not options.only:
            missing.append(f"{row[0]} of {row[2]} ({why})")
    if options.only:
        known = sorted({row[0] for row in calls})
        unknown = [name for name in options.only if name not in known]
        if unknown:
            parser.error(f"--only: no operation {unknown[0]!r}; there are {', '.join(known)}")
        calls = {row: call for row, call in calls.items() if row[0] in options.only}
    rows = [
        row for side in options.sides for row in summarise(side, measure(calls, options.batch, side, options.repeats))
    ]
    machine = {"torch": torch.__version__, "threads": options.threads, "machine": platform.machine()}
    machine["batch"] = options.batch
    if options.json:
        print(json.dumps({**machine, "missing_peers": missing, "rows": rows}))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        print(table(rows))
        if missing:
            print("left out:", ", ".join(missing))


if __name__ == "__main__":
    main()
