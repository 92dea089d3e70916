"""Images for the evidence scripts: samples of IDX data sets, and a small convolutional network."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimix.data import load


def folder(name: str) -> Path | None:
    """The IDX folder `name` in OMNIMIX_DATA or ../shared/data; None, with a line saying so, where it is absent."""
    root = Path(os.environ.get("OMNIMIX_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (root / name).is_dir():
        print(f"{name} not found in {root}: left out; set OMNIMIX_DATA to the folder that holds it")
        return None
    return root / name


def sample(path: Path, train: int, test: int, seed: int, pool: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) of `train` and `test` random rows of the official splits, in [0, 1], averaged over pool x pool pixels."""
    source, draw, parts = load(f"idx:{path}"), torch.Generator().manual_seed(seed), []
    assert source.official is not None
    for split, count in (("train", train), ("test", test)):
        rows = source.official[split]
        rows = rows[torch.randperm(len(rows), generator=draw)[:count]]
        parts += [F.avg_pool2d(source.take(rows), pool), source.y[rows]]
    return parts[0], parts[1], parts[2], parts[3]


def cnn(channels: int, side: int, classes: int = 10) -> nn.Module:
    """Two strided convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * ((side + 3) // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
