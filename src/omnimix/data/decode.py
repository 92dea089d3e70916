"""Decoding images with Pillow, all at once into memory or by rows from disk."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .source import DataError, digest, require

MEMORY = 2**30
"""Bytes of decoded pixels up to which images are kept in memory."""
GREY = ("1", "L", "LA")
DEEP = ("I", "F")
BLOCK = 16
BROKEN = (OSError, SyntaxError, ValueError, zlib.error)
"""What Pillow raises for content it cannot decode."""


@dataclass(frozen=True)
class Entry:
    """One image: the folder names above it and the file, or its content where it comes from a tar file."""

    parts: tuple[str, ...]
    label: str
    content: Path | bytes

    def read(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except OSError as error:
            raise DataError(f"{self.label} cannot be read ({error.strerror})") from error


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

        for _ in _each(len(wanted), fill):
            pass
        return torch.from_numpy(out)


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _pixels(image: Any, entry: Entry, content: bytes, size: tuple[int, int] | None, grey: bool) -> np.ndarray[Any, Any]:
    """(C, H, W) uint8 of one image, brought to `size` (height, width) if given."""
    try:
        with image.open(io.BytesIO(content)) as opened:
            if opened.mode.startswith(DEEP):
                raise DataError(f"{entry.label} has more than 8 bits a channel; convert the images to 8 bits")
            mode = "L" if grey else "RGB"
            decoded = opened if opened.mode == mode else opened.convert(mode)
            if size is not None and decoded.size != size[::-1]:
                decoded = decoded.resize(size[::-1], image.Resampling.BILINEAR)
            pixels = np.asarray(decoded)
    except DataError:
        raise
    except BROKEN as error:
        why = "no known image format" if isinstance(error, image.UnidentifiedImageError) else error
        raise DataError(f"{entry.label} cannot be decoded ({why}); replace the file or remove it") from error
    except image.DecompressionBombError as error:
        raise DataError(f"{entry.label} is too large ({error}); make the image smaller") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _is_grey(image: Any, entry: Entry) -> bool:
    try:
        with image.open(io.BytesIO(entry.read())) as opened:
            return opened.mode in GREY
    except (*BROKEN, image.DecompressionBombError):
        return True  # decoding reports it


def _each(count: int, work: Callable[[int], Any]) -> Iterator[Any]:
    """work(0), work(1), ... in order, computed by threads; a task is a block, for small images are quick to decode."""
    with ThreadPoolExecutor(_threads()) as pool:
        for part in pool.map(lambda block: [work(i) for i in block], _split(count)):
            yield from part


def _split(count: int) -> list[range]:
    return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def decode(entries: list[Entry], resize: int | tuple[int, int] | None, memory: int) -> Tensor | ImageFiles:
    """All images, in memory if they fit; every one is decoded."""
    image = require("PIL.Image")
    size = (resize, resize) if isinstance(resize, int) else resize
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"resize must be a side or (height, width), integers > 0, got {resize!r}")
    grey = all(_each(len(entries), lambda i: _is_grey(image, entries[i])))
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
                "bring all images to one size (resize)"
            )
        if out is not None:
            out[i] = pixels
            return b""
        return hashlib.sha256(content).digest()

    for entry, part in zip(entries, _each(len(entries), work), strict=True):
        seen.update(repr(entry.parts).encode() + part)
    if out is not None:
        return torch.from_numpy(out)
    return ImageFiles(entries, (first[1], first[2]), grey, digest(f"{first}{seen.hexdigest()}"))
