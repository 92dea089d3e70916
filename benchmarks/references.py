"""The authors' own code for operations on images, as further rows of ops.py; nothing of it is part of this repository.

DIR holds checkouts under their names on GitHub, any of: FMix (ecs-vlc), openmixup (Westlake-AI), PuzzleMix and Co-Mixup
(snu-mllab; both need the package gco-wrapper). Calls to `.cuda()` are taken out as files are read. What fails, for a
package that is missing or another reason, is left out and named.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[[Tensor, Tensor], Any]
Row = tuple[str, str, str]
Maps = Callable[[Tensor], Tensor]

GROUPS = 20
"""Of 20 inputs each, on which the joint masks are compared."""
OPENMIXUP = {
    "mixup": {}, "cutmix": {}, "fmix": {}, "smoothmix": {}, "resizemix": {}, "saliencymix": {},
    "gridmix": {"n_holes": (2, 6), "cut_area_ratio": (0.5, 1), "cut_aspect_ratio": (0.5, 2)},
}  # fmt: skip
"""By our names, which are theirs, the arguments that make them do what ours do."""


def module(path: Path, **others: Any) -> dict[str, Any]:
    """The names that a file defines. others: modules that it imports, by the names with _ for a dot."""
    for name, value in others.items():
        stub = types.ModuleType(name.replace("_", "."))
        vars(stub).update(value)
        sys.modules[stub.__name__] = stub
    text = path.read_text(encoding="utf-8").replace(".cuda()", "").replace("device='cuda'", "device='cpu'")
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)
    return names


def fmix(folder: Path, maps: Maps, classes: int) -> dict[Row, Call]:
    sample_mask = _beside(folder, "fmix")["sample_mask"]

    def call(masks: Callable[[Tensor], int]) -> Call:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            lam, mask = zip(*(sample_mask(1.0, 3.0, tuple(x.shape[2:])) for _ in range(masks(x))), strict=True)
            shown, index = torch.from_numpy(np.stack(mask)).float(), torch.from_numpy(np.random.permutation(len(x)))  # noqa: NPY002
            label, share = F.one_hot(y, classes).float(), torch.tensor(lam).float().unsqueeze(1)
            return shown * x + (1 - shown) * x[index], share * label + (1 - share) * label[index]

        return run

    return {("fmix", "batch", "FMix"): call(lambda x: 1), ("fmix", "sample", "FMix"): call(len)}


def openmixup(folder: Path, maps: Maps, classes: int) -> dict[Row, Call]:
    path, pair = folder / "openmixup" / "models" / "augments", lambda v: v if isinstance(v, tuple) else (v, v)
    utils = {"batch_shuffle_ddp": None, "to_2tuple": pair}

    def call(mixer: Any, options: dict[str, Any]) -> Call:
        def run(x: Tensor, y: Tensor) -> Any:
            size = {"size": tuple(x.shape[2:])} if mixer.__name__ == "fmix" else {}
            mixed, (own, guest, lam) = mixer(x, F.one_hot(y, classes).float(), alpha=1.0, **options, **size)
            return mixed, lam * own + (1 - lam) * guest

        return run

    found = {}
    for name, options in OPENMIXUP.items():
        try:
            mixer = module(path / f"{name}.py", openmixup={}, openmixup_models={}, openmixup_models_utils=utils)[name]
        except ImportError:
            continue
        found[name, "batch", "openmixup"] = call(mixer, options)
    return found


def puzzle(folder: Path, maps: Maps, classes: int) -> dict[Row, Call]:
    mixup_graph = module(folder / "mixup.py")["mixup_graph"]

    def call(blocks: int) -> Call:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            index = torch.from_numpy(np.random.permutation(len(x)))  # noqa: NPY002
            mixed, share = mixup_graph(
                x, maps(x)[:, 0], index, block_num=blocks, alpha=np.random.beta(1, 1),  # noqa: NPY002
                beta=1.2, gamma=0.5, eta=0.2, neigh_size=4, n_labels=3, mean=0.0, std=1.0,
                transport=True, t_eps=0.8, t_size=-1, device="cpu",
            )  # fmt: skip
            label = F.one_hot(y, classes).float()
            return mixed, share.unsqueeze(1) * label + (1 - share.unsqueeze(1)) * label[index]

        return run

    return {(f"puzzle-mix {blocks}", "batch", "PuzzleMix"): call(blocks) for blocks in (4, 16)}


def joint(folder: Path, maps: Maps, classes: int) -> dict[Row, Call]:
    match = module(folder / "match.py")
    solve, mix = match["get_onehot_matrix"], match["mix_input"]

    def call(blocks: int) -> Call:
        def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            pooled = F.avg_pool2d(maps(x), x.shape[2] // blocks)[:, 0]
            cost = -pooled / pooled.flatten(1).sum(dim=1).view(-1, 1, 1)
            parts = []
            for some, own, label in zip(
                cost.split(20), x.split(20), F.one_hot(y, classes).float().split(20), strict=True
            ):
                mask = solve(some.clone(), torch.eye(len(some)), len(some), thres=0.83, niter=4, device="cpu")
                parts.append(mix(mask, own, label))
            mixed, target = zip(*parts, strict=True)
            return torch.cat(mixed), torch.cat(target)

        return run

    return {(f"co-mixup {blocks}", "batch", "Co-Mixup"): call(blocks) for blocks in (4, 8)}


def objectives(folder: Path) -> list[str]:
    """What the masks cost, ours and the authors', on equal terms: means over random pairs and groups."""
    from omnimix.samples.operation.puzzle_mix import energy_terms
    from omnimix.samples.operation.solver.joint import joint_masks, joint_objective
    from omnimix.samples.operation.solver.min_cut import convex_labels

    found, source = [], torch.Generator().manual_seed(0)
    if (folder / "PuzzleMix").is_dir():
        cut = module(folder / "PuzzleMix" / "mixup.py")["graphcut_multi"]
        for blocks in (4, 16):
            own, guest = (_maps(100, blocks, source) for _ in range(2))
            steps = [torch.rand(4, 100, *size, generator=source).unbind() for size in _steps(blocks)]
            lam = torch.rand(100, generator=source)
            ours = convex_labels(*energy_terms(own, guest, steps, lam)) / 2
            terms, weights = energy_terms(own, guest, steps, lam, eta=0.0)
            beta = 1.2 / 16 / blocks
            theirs = torch.stack([
                torch.from_numpy(
                    cut(terms[i, 2].numpy(), terms[i, 0].numpy(), *(w[i].numpy() - beta for w in weights),
                        float(lam[i]), beta, 0.2, 3)
                ).float()
                for i in range(100)
            ])  # fmt: skip
            found.append(_said(f"puzzle-mix {blocks}", *(_energy(z, own, guest, steps, lam) for z in (ours, theirs))))
    if (folder / "Co-Mixup").is_dir():
        solve = module(folder / "Co-Mixup" / "match.py")["get_onehot_matrix"]
        for blocks in (4, 8):
            cost, compat = -_maps(20 * GROUPS, blocks, source).view(GROUPS, 20, blocks, blocks), torch.eye(20)
            start = torch.randint(20, (GROUPS, 20, blocks**2), generator=source)
            ours = joint_masks(cost, compat.expand(GROUPS, -1, -1), start=start)
            index = start.view(GROUPS, 20, blocks, blocks)
            theirs = torch.stack([
                solve(c.clone(), compat, 20, idx=i, eta=0.0, thres=0.83, niter=4, device="cpu")
                for c, i in zip(cost, index, strict=True)
            ]).movedim(-1, 2)  # fmt: skip
            energies = (joint_objective(m, cost, compat.expand(GROUPS, -1, -1)) for m in (ours, theirs))
            found.append(_said(f"co-mixup {blocks}", *energies))
    return found


def _said(name: str, ours: Tensor, theirs: Tensor) -> str:
    apart = ours - theirs
    error = float(apart.std() / len(apart) ** 0.5)
    return (
        f"{name}: ours {float(ours.mean()):.5f}, the authors' {float(theirs.mean()):.5f}, difference "
        f"{float(apart.mean()):.5f} +- {error:.5f} (standard error of {len(apart)})"
    )


def _maps(count: int, blocks: int, source: torch.Generator) -> Tensor:
    maps = torch.rand(count, blocks, blocks, generator=source)
    return maps / maps.flatten(1).sum(dim=1).view(-1, 1, 1)


def _steps(blocks: int) -> list[tuple[int, int]]:
    return [(blocks - 1, blocks), (blocks, blocks - 1)]


def _energy(z: Tensor, own: Tensor, guest: Tensor, steps: Any, lam: Tensor) -> Tensor:
    """(B,) what both minimise, for masks z of three levels."""
    from omnimix.samples.operation.puzzle_mix import energy_terms

    unary, weights = energy_terms(own, guest, steps, lam)
    label = (2 * z).round().long()
    energy = unary.gather(1, label.unsqueeze(1)).flatten(1).sum(dim=1)
    for axis, weight in enumerate(weights, start=1):
        energy = energy + (weight * z.diff(dim=axis).square()).flatten(1).sum(dim=1)
    return energy


def _beside(folder: Path, name: str) -> dict[str, Any]:
    sys.path.insert(0, str(folder))
    return vars(__import__(name))


FOLDERS = {"FMix": fmix, "openmixup": openmixup, "PuzzleMix": puzzle, "Co-Mixup": joint}


def calls(folder: Path, maps: Maps, classes: int) -> tuple[dict[Row, Call], list[str]]:
    """(the rows, what was left out). maps: saliency (B, 1, *spatial) of the size of a batch."""
    found, missing = dict[Row, Call](), list[str]()
    for name, make in FOLDERS.items():
        if not (folder / name).is_dir():
            missing.append(name)
            continue
        try:
            found |= make(folder / name, maps, classes)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return found, missing
