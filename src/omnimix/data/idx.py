"""IDX files in the layout of MNIST: train and t10k pairs of images and labels, plain or gzipped.

An IDX file is: two zero bytes, a type code, the number of dimensions, each size as a big-endian 32-bit integer, values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .source import DataError, Source, labelled

UNSIGNED_BYTE = 0x08
PAIRS = (("train", "train"), ("test", "t10k"), ("test", "test"))


def read_idx(path: Path, dimensions: int) -> np.ndarray[Any, Any]:
    """The array of unsigned bytes in `path`; DataError if it is no such file or has too little or too much content."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read to its end ({error}); copy or download it again") from error
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path} begins with bytes {content[:4].hex(' ') or '(none)'}, not {magic.hex(' ')} (IDX, unsigned bytes, "
            f"{dimensions} dimensions); is it another kind of file, or images and labels exchanged?"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} ends within its header; copy or download it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path} has {len(content)} bytes, its header says {expected}; copy or download it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def find_pair(root: Path, prefix: str) -> tuple[Path, Path] | None:
    """The files of images and labels of a split, named like `train-images-idx3-ubyte.gz`; None if neither is there."""
    found: list[Path] = []
    for what in ("images", "labels"):
        hits = sorted(
            p for p in root.glob(f"*{prefix}-{what}*idx*ubyte*") if p.suffix in ("", ".gz") or "idx" in p.suffix
        )
        if len({hit.name.removesuffix(".gz") for hit in hits}) > 1:
            raise DataError(f"{root}: several files may be the {prefix} {what}: {', '.join(h.name for h in hits)}")
        found.extend(hits[:1])
    if len(found) == 1:
        raise DataError(f"{root}: {found[0].name} has no partner; images and labels are needed for {prefix!r}")
    return (found[0], found[1]) if found else None


def load_idx(root: Path) -> Source:
    """Images (N, 1, H, W) as uint8 with class ids; the t10k (or test) pair is the official test split."""
    images: list[np.ndarray[Any, Any]] = []
    labels: list[np.ndarray[Any, Any]] = []
    rows, start = {}, 0
    for split, prefix in PAIRS:
        pair = find_pair(root, prefix)
        if pair is None or split in rows:
            continue
        x, y = read_idx(pair[0], 3), read_idx(pair[1], 1)
        if len(x) != len(y):
            raise DataError(f"{pair[0]} has {len(x)} images, but {pair[1]} has {len(y)} labels")
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(f"{pair[0]} has images of {x.shape[1:]}, the training images are {images[0].shape[1:]}")
        images.append(x)
        labels.append(y)
        rows[split] = torch.arange(start, start + len(x))
        start += len(x)
    if not start:
        raise DataError(f"{root}: no images in files named like train-images-idx3-ubyte(.gz) and train-labels-...")
    values, ids = np.unique(np.concatenate(labels), return_inverse=True)
    class_names = tuple(map(str, values))
    y_all, task = labelled(str(root), ids, class_names)
    x_all = torch.from_numpy(np.concatenate(images)[:, None])
    official = rows if len(rows) == 2 else None
    return Source(
        root.name, x_all, y_all, task, "image", class_names=class_names, target_names=("class",),
        official=official,
    )  # fmt: skip
