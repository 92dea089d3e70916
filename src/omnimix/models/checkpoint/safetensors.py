"""The safetensors format: the header of a file read with every rule checked, and the layout of a file to write.

8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the values, back to back.
Read by position and not by mapping, so that memory stays at what is asked for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, from the beginning of the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file; ValueError that names the file and what is wrong with it."""
    have = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if have < 8 or length > min(LONGEST_HEADER, have - 8):
            raise ValueError(
                f"{file}: truncated, or no safetensors file: it has {have} bytes and announces a header of {length}; "
                f"{AGAIN}"
            )
        text = opened.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ValueError(f"{file}: its safetensors header cannot be read ({error}); {AGAIN}") from None
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, said in header.items():
        entry, begin, end = _entry(file, 8 + length, name, said)
        entries[name] = entry
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise ValueError(f"{file}: the values of tensor {name!r} start at byte {begin}, not at {reached}; {AGAIN}")
        reached = end
    if 8 + length + reached != have:
        kind = "truncated" if have < 8 + length + reached else "too long"
        raise ValueError(f"{file}: {kind}: its header asks for {8 + length + reached} bytes, it has {have}; {AGAIN}")
    return entries


def _entry(file: Path, data: int, name: str, said: Any) -> tuple[Entry, int, int]:
    try:
        code, shape, (begin, end) = said["dtype"], tuple(said["shape"]), said["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{file}: the header entry of tensor {name!r} is incomplete; {AGAIN}") from None
    if code not in DTYPES:
        raise ValueError(f"{file}: tensor {name!r} has dtype {code!r}; known are {', '.join(DTYPES)}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{file}: tensor {name!r} has shape {shape} and bytes {begin} to {end}; {AGAIN}")
    entry = Entry(file, DTYPES[code], shape, data + begin)
    if entry.size != end - begin:
        raise ValueError(
            f"{file}: tensor {name!r} of shape {shape} needs {entry.size} bytes, has {end - begin}; {AGAIN}"
        )
    return entry, begin, end


def write_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """The header of a file with these tensors, the first byte of each, and the size of the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, reached = {}, 0
    for name in sorted(tensors, key=lambda name: -tensors[name][0].itemsize):  # so that every tensor is aligned
        dtype, shape = tensors[name]
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [reached, reached + size]}
        offsets[name], reached = reached, reached + size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: begin + at for name, at in offsets.items()}, begin + reached


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers as numbers: layer 2 before layer 10."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
