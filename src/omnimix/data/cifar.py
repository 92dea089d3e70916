"""CIFAR on disk: train and test tar files of images, SPLIT/CLASS/FILE folders, or the published binary version.

A binary record is one label byte (CIFAR-100: coarse, then fine), then 3 x 32 x 32 bytes. The pickled "python version"
is refused: reading it would run code from the file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .decode import MEMORY
from .image_folder import SPLITS, from_entries, listing_of_tar, load_images
from .source import DataError, Source, labelled

PIXELS = 3 * 32 * 32
LAYOUTS = "train.tar.gz and test.tar.gz, SPLIT/CLASS/FILE folders, or data_batch_1.bin ... test_batch.bin"


def archives(root: Path) -> list[Path]:
    """Tar files named after a split."""
    return sorted(p for p in root.glob("*.tar*") if p.name.split(".")[0].lower() in SPLITS)


def load_cifar(root: Path, *, memory: int = MEMORY) -> Source:
    """Images (N, 3, 32, 32) as uint8 with the official train and test rows; see `LAYOUTS` for what `root` may hold."""
    if packed := archives(root):
        entries, notes = [], []
        for path in packed:
            split = path.name.split(".")[0]
            inner, said = listing_of_tar(path)
            if not inner:
                raise DataError(f"{path} holds no images in class folders")
            entries += [replace(e, parts=(split, e.parts[-1])) for e in inner]
            notes += said
        return from_entries((entries, notes), root, root.name, memory=memory)
    if binary := _near(root, "*.bin"):
        return _binary(root, binary[0].parent)
    if _near(root, "data_batch_1") or _near(root, "meta"):
        raise DataError(f"{root} holds the pickled python version of CIFAR, which is not read: get the binary version")
    if not any(folder.name.lower() in SPLITS for folder in root.iterdir() if folder.is_dir()):
        raise DataError(f"{root}: no CIFAR layout found; expected {LAYOUTS}")
    return load_images(root, memory=memory)


def _near(root: Path, pattern: str) -> list[Path]:
    return sorted((*root.glob(pattern), *root.glob(f"*/{pattern}")))


def _binary(root: Path, folder: Path) -> Source:
    ten = sorted(folder.glob("data_batch_*.bin"))
    train, test = (ten, folder / "test_batch.bin") if ten else ([folder / "train.bin"], folder / "test.bin")
    names = folder / ("batches.meta.txt" if ten else "fine_label_names.txt")
    parts = [_records(path, labels=1 if ten else 2) for path in (*train, test)]
    y = np.concatenate([labels for labels, _ in parts])
    classes = tuple(names.read_text(encoding="utf-8").split()) if names.exists() else ()
    class_names = classes or tuple(map(str, range(int(y.max()) + 1)))
    if int(y.max()) >= len(class_names):
        raise DataError(f"{names} names {len(class_names)} classes, but there is a label {int(y.max())}")
    ids, task = labelled(str(root), y, class_names)
    x = torch.from_numpy(np.concatenate([pixels for _, pixels in parts]))
    official = {"train": torch.arange(len(x) - len(parts[-1][0])), "test": torch.arange(len(x))[-len(parts[-1][0]) :]}
    return Source(root.name, x, ids, task, "image", class_names=class_names, target_names=("class",), official=official)


def _records(path: Path, labels: int) -> tuple[Any, Any]:
    """(class ids (n,), pixels (n, 3, 32, 32)) of one binary file."""
    if not path.exists():
        raise DataError(f"{path} is missing; the binary version of CIFAR has data_batch_1..5.bin and test_batch.bin, "
                        "or train.bin and test.bin")  # fmt: skip
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % (labels + PIXELS):
        raise DataError(
            f"{path} has {len(content)} bytes, no multiple of {labels + PIXELS} (a record); download it again"
        )
    records = content.reshape(-1, labels + PIXELS)
    return records[:, labels - 1], records[:, labels:].reshape(-1, 3, 32, 32)
