"""Folders (or tar files) of images: CLASS/FILE, SPLIT/CLASS/FILE or DOMAIN/CLASS/FILE.

All images are decoded once while loading, so that a broken one is found before training; the pixels are kept as 8-bit
numbers if they fit the memory cap, and decoded again when asked for otherwise.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decode import MEMORY, Entry, ImageFiles, decode
from .source import DataError, Source, labelled

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
}


def load_images(
    root: Path,
    *,
    domains: bool = False,
    resize: int | tuple[int, int] | None = None,
    memory: int = MEMORY,
) -> Source:
    """Images below `root`, a folder or a tar file; the class is the name of the folder an image lies in.

    domains: the folders above the classes are domains. Without it they may only be splits (train, valid, test), which
    become the official rows. resize: side, or (height, width), that all images are brought to. memory: bytes of pixels
    above which they stay on disk. DataError for anything else, and for images that cannot be decoded.
    """
    return from_entries(listing(root), root, root.name.split(".")[0], domains, resize, memory)


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
    x = decode(entries, resize, memory)
    if isinstance(x, ImageFiles):
        notes.append(f"{len(entries)} images stay on disk and are decoded when needed (over {memory} bytes of pixels)")
    parts = np.array([SPLITS[a.lower()] if above == "split" else a for a in (e.parts[0] for e in entries)])
    domain, official = None, None
    domain_names: tuple[str, ...] = ()
    if above == "domain":
        names, codes = np.unique(parts, return_inverse=True)
        domain, domain_names = torch.from_numpy(codes.astype(np.int64)), tuple(map(str, names))
    elif above == "split":
        official = {split: torch.from_numpy(np.flatnonzero(parts == split)) for split in sorted(set(parts.tolist()))}
        _same_classes(root, official, y, class_names)
        if "test" not in official:
            notes.append(f"there is no 'test' folder: the images of {', '.join(official)} are pooled")
            official = None
    return Source(
        name, x, y, task, "image", domain, domain_names, class_names, target_names=("class",), official=official,
        notes=tuple(notes),
    )  # fmt: skip


def listing_of_tar(path: Path) -> tuple[list[Entry], list[str]]:
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
                entries.append(Entry(parts[:-1], f"{path}: {member.name}", file.read()))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read to its end ({error}); copy or download it again") from error
    return in_order(entries), _skipped(skipped)


def in_order(entries: list[Entry]) -> list[Entry]:
    """By folder, then by file name, whatever the images were read from."""
    return sorted(entries, key=lambda entry: (entry.parts, Path(entry.label).name))


def _skipped(count: int) -> list[str]:
    return [f"{count} files that are not images in a class folder were left out"] if count else []


def listing(root: Path, ignore: Container[Path] = ()) -> tuple[list[Entry], list[str]]:
    """The images below a folder or in a tar file, and notes on what was left out; `ignore`d files are not noted."""
    if root.is_file():
        entries, notes = listing_of_tar(root)
        if all(len(e.parts) == 3 for e in entries) and len({e.parts[0] for e in entries}) == 1:
            entries = [replace(e, parts=e.parts[1:]) for e in entries]  # the archive's own folder
        return entries, notes
    entries, skipped = [], 0
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(i for i in inner if not i.startswith("."))
        here = Path(folder).relative_to(root).parts
        before = len(entries)
        for file in sorted(f for f in files if not f.startswith(".")):
            if here and file.lower().endswith(SUFFIXES):
                path = Path(folder, file)
                entries.append(Entry(here, str(path), path))
            elif Path(folder, file) not in ignore:
                skipped += 1
        if here and not inner and len(entries) == before:
            raise DataError(f"{folder}: this folder has no images ({', '.join(SUFFIXES)}); remove it or fill it")
    return in_order(entries), _skipped(skipped)


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
