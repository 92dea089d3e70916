"""Folders (or tar files) of images: CLASS/FILE, SPLIT/CLASS/FILE or DOMAIN/CLASS/FILE.

All images are decoded once while loading, so that a broken one is found before training; the pixels are kept as 8-bit
numbers if they fit the memory cap, and decoded again when asked for otherwise.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .source import DataError, Source, digest, labelled, require

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "training": "train", "test": "test", "valid": "valid", "val": "valid", "validation": "valid"}
MEMORY = 2**30
"""Bytes of decoded pixels up to which images are kept in memory."""
GREY = ("1", "L", "LA")
DEEP = ("I", "F")
BLOCK = 256


@dataclass(frozen=True)
class Entry:
    """One image: the folder names above it and the file, or its content where it comes from a tar file."""

    parts: tuple[str, ...]
    label: str
    content: Path | bytes

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


class ImageFiles:
    """Images on disk, decoded by a pool of threads when asked for."""

    def __init__(self, entries: Sequence[Entry], size: tuple[int, int], grey: bool, digest: str) -> None:
        self.entries, self.size, self.grey, self.digest = tuple(entries), size, grey, digest
        self.shape = (len(entries), 1 if grey else 3, *size)

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, rows: Tensor) -> Tensor:
        """Images `rows` (n,) as uint8 (n, C, H, W)."""
        image = require("PIL.Image")
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        wanted = [self.entries[row] for row in rows.tolist()]

        def fill(place: int) -> None:
            out[place] = _pixels(image, wanted[place], wanted[place].read(), self.size, self.grey)

        with ThreadPoolExecutor(_threads()) as pool:
            list(pool.map(fill, range(len(wanted))))
        return torch.from_numpy(out)


def load_images(
    root: Path,
    *,
    domains: bool = False,
    resize: int | tuple[int, int] | None = None,
    memory: int = MEMORY,
    name: str | None = None,
) -> Source:
    """Images below `root`, a folder or a tar file; the class is the name of the folder an image lies in.

    domains: the folders above the classes are domains. Without it they may only be splits (train, valid, test), which
    become the official rows. resize: side, or (height, width), that all images are brought to. memory: bytes of pixels
    above which they stay on disk. DataError for anything else, and for images that cannot be decoded.
    """
    return from_entries(_listing(root), root, name or root.name.split(".")[0], domains, resize, memory)


def from_entries(
    found: tuple[list[Entry], list[str]],
    root: Path,
    name: str,
    domains: bool = False,
    resize: int | tuple[int, int] | None = None,
    memory: int = MEMORY,
) -> Source:
    """The Source of the images listed; see `load_images`."""
    entries, notes = found
    above = _above(entries, root, domains)
    class_names = tuple(sorted({entry.parts[-1] for entry in entries}))
    ids = {label: i for i, label in enumerate(class_names)}
    y, task = labelled(str(root), np.array([ids[entry.parts[-1]] for entry in entries]), class_names)
    x = _decode(entries, resize, memory)
    if isinstance(x, ImageFiles):
        notes.append(f"{len(entries)} images stay on disk and are decoded when needed (over {memory} bytes of pixels)")
    parts = np.array([SPLITS[a.lower()] if above == "split" else a for a in (e.parts[0] for e in entries)])
    domain, domain_names, official = None, (), None
    if above == "domain":
        names, codes = np.unique(parts, return_inverse=True)
        domain, domain_names = torch.from_numpy(codes.astype(np.int64)), tuple(map(str, names))
    elif above == "split":
        official = {split: torch.from_numpy(np.flatnonzero(parts == split)) for split in sorted(set(parts.tolist()))}
        _same_classes(root, official, y, class_names)
    return Source(
        name, x, y, task, "image", domain, domain_names, class_names, target_names=("class",), official=official,
        notes=tuple(notes),
    )  # fmt: skip


def listing_of_tar(path: Path, above: tuple[str, ...] = ()) -> tuple[list[Entry], list[str]]:
    """The images in a tar file, in memory and in order of their names; nothing is unpacked to disk."""
    entries, skipped = [], 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                parts = Path(member.name).parts
                if not member.isfile() or parts[-1].startswith("."):
                    continue
                file = archive.extractfile(member) if parts[-1].lower().endswith(SUFFIXES) else None
                if file is None or len(parts) < 2:
                    skipped += 1
                    continue
                entries.append(Entry((*above, *parts[:-1]), f"{path}: {member.name}", file.read()))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read to its end ({error}); copy or download it again") from error
    return sorted(entries, key=lambda entry: entry.label), _skipped(skipped)


def _skipped(count: int) -> list[str]:
    return [f"{count} files that are not images in a class folder were left out"] if count else []


def _listing(root: Path) -> tuple[list[Entry], list[str]]:
    if root.is_file():
        return listing_of_tar(root)
    entries, skipped = [], 0
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(i for i in inner if not i.startswith("."))
        here = Path(folder).relative_to(root).parts
        before = len(entries)
        for file in sorted(f for f in files if not f.startswith(".")):
            if here and file.lower().endswith(SUFFIXES):
                path = Path(folder, file)
                entries.append(Entry(here, str(path), path))
            else:
                skipped += 1
        if here and not inner and len(entries) == before:
            raise DataError(f"{folder}: this folder has no images ({', '.join(SUFFIXES)}); remove it or fill it")
    return entries, _skipped(skipped)


def _above(entries: list[Entry], root: Path, domains: bool) -> str | None:
    """What the folders above the classes are: "split", "domain" or nothing."""
    if not entries:
        raise DataError(f"{root}: no images found in class folders; expected FOLDER/CLASS/FILE ({', '.join(SUFFIXES)})")
    depth = len(entries[0].parts)
    for entry in entries:
        if len(entry.parts) != depth or depth > 2:
            wanted = "DOMAIN/CLASS/FILE" if domains else "CLASS/FILE or SPLIT/CLASS/FILE"
            raise DataError(f"{entry.label}: the image lies at an unexpected depth below {root}; expected {wanted}")
    if domains and depth == 1:
        raise DataError(f"{root}: --domain folder needs DOMAIN/CLASS/FILE, but there is one level of folders only")
    if depth == 1:
        return None
    if domains:
        return "domain"
    for entry in entries:
        if entry.parts[0].lower() not in SPLITS:
            raise DataError(
                f"{root}: there are two levels of folders, and {entry.parts[0]!r} is no split (train, valid, test); "
                "if the first level holds domains, say --domain folder"
            )
    return "split"


def _same_classes(root: Path, official: dict[str, Tensor], y: Tensor, class_names: tuple[str, ...]) -> None:
    if "train" not in official:
        raise DataError(f"{root}: there is no 'train' folder, only {', '.join(official)}")
    known = set(y[official["train"]].tolist())
    for split, rows in official.items():
        for label in set(y[rows].tolist()) - known:
            raise DataError(f"{root}: class {class_names[label]!r} is in {split!r} but not in 'train'")


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _pixels(image: Any, entry: Entry, content: bytes, size: tuple[int, int] | None, grey: bool) -> np.ndarray[Any, Any]:
    """(C, H, W) uint8 of one image, brought to `size` (height, width) if given."""
    try:
        with image.open(io.BytesIO(content)) as opened:
            if opened.mode.startswith(DEEP):
                raise DataError(f"{entry.label} has more than 8 bits a channel; convert the images to 8 bits")
            decoded = opened.convert("L" if grey else "RGB")
            if size is not None and decoded.size != size[::-1]:
                decoded = decoded.resize(size[::-1], image.Resampling.BILINEAR)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, zlib.error, image.DecompressionBombError) as error:
        raise DataError(
            f"{entry.label} cannot be decoded ({error}); replace the file or remove it"
        ) from error
    pixels = np.asarray(decoded)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _is_grey(image: Any, entry: Entry) -> bool:
    try:
        with image.open(io.BytesIO(entry.read())) as opened:
            return opened.mode in GREY
    except (OSError, SyntaxError, ValueError):
        return True  # decoding will name the file


def _blocks(count: int, work: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
    """(i, work(i)) in order, computed by threads, a bounded number ahead."""
    with ThreadPoolExecutor(_threads()) as pool:
        for start in range(0, count, BLOCK):
            block = range(start, min(start + BLOCK, count))
            yield from zip(block, pool.map(work, block), strict=True)


def _decode(entries: list[Entry], resize: int | tuple[int, int] | None, memory: int) -> Tensor | ImageFiles:
    """All images, in memory if they fit; every one is decoded."""
    image = require("PIL.Image")
    size = (resize, resize) if isinstance(resize, int) else resize
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"resize must be a side or (height, width), integers > 0, got {resize!r}")
    grey = all(kind for _, kind in _blocks(len(entries), lambda i: _is_grey(image, entries[i])))
    first = _pixels(image, entries[0], entries[0].read(), size, grey).shape
    total = len(entries) * int(np.prod(first))
    keep = total <= memory
    if not keep and isinstance(entries[0].content, bytes):
        raise DataError(
            f"{entries[0].label.split(': ')[0]}: {total} bytes of pixels exceed the memory cap of {memory}; "
            "unpack the file to a folder, or pass resize="
        )
    out = np.empty((len(entries), *first), dtype=np.uint8) if keep else None
    seen = hashlib.sha256()

    def work(i: int) -> bytes:
        content = entries[i].read()
        pixels = _pixels(image, entries[i], content, size, grey)
        if pixels.shape != first:
            usual, found = ("{} x {}".format(*shape[1:]) for shape in (first, pixels.shape))
            raise DataError(
                f"{entries[i].label} has {found} pixels, but {entries[0].label} has {usual} (height x width); "
                "bring all images to one size with --resize"
            )
        if out is not None:
            out[i] = pixels
            return b""
        return hashlib.sha256(content).digest()

    for i, part in _blocks(len(entries), work):
        seen.update(repr(entries[i].parts).encode() + part)
    if out is not None:
        return torch.from_numpy(out)
    return ImageFiles(entries, (first[1], first[2]), grey, digest(seen.hexdigest()))
