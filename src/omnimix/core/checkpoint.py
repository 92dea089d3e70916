"""Checkpoints: one safetensors file whose header holds the rest as JSON; nothing is pickled, a torn file is noticed.

A file is written beside its place, flushed to the disk and renamed, so that a kill leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "omnimix-checkpoint-2"
_NOTHING = torch.empty(0, dtype=torch.uint8)


class CheckpointError(ValueError):
    """The file is no whole checkpoint."""


def flatten(state: Any) -> tuple[str, dict[str, Tensor]]:
    """A nest of dicts, lists, tuples, tensors, bytes, numbers, strings, bools and None as JSON text and tensors."""
    found: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> str:
        found[str(len(found))] = tensor.detach().to("cpu", copy=True).contiguous()
        return str(len(found) - 1)

    def encode(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return {"tensor": keep(value)}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": keep(torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else _NOTHING)}
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, (str, int)):
                    raise TypeError(f"keys of a checkpoint must be strings or integers, found {key!r}")
            return {"dict": [[key, encode(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        raise TypeError(f"a checkpoint holds tensors, numbers, strings, bytes, lists and dicts, not {type(value)!r}")

    return json.dumps(encode(state)), found


def unflatten(text: str, found: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return found[content]
        if kind == "bytes":
            return found[content].numpy().tobytes()
        if kind == "tuple":
            return tuple(decode(item) for item in content)
        return {key: decode(item) for key, item in content}

    return decode(json.loads(text))


def raw(tensor: Tensor) -> Any:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data if tensor.numel() else b""


def _digest(text: str, found: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(text.encode())
    for name, tensor in sorted(found.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(raw(tensor))
    return total.hexdigest()


def to_bytes(state: Any) -> bytes:
    """The whole file."""
    from safetensors.torch import save as save_tensors

    text, found = flatten(state)
    return save_tensors(found, {"format": FORMAT, "state": text, "digest": _digest(text, found)})


def from_bytes(content: bytes) -> Any:
    """The inverse of `to_bytes`; CheckpointError if `content` is torn or changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    try:
        found = load_tensors(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        text, digest, form = header["state"], header["digest"], header["format"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"it is torn or was not written by omnimix ({error})") from None
    if form != FORMAT:
        raise CheckpointError(f"it is of format {form!r}, this version reads {FORMAT!r}")
    if digest != _digest(text, found):
        raise CheckpointError("its content does not match its digest")
    return unflatten(text, found)


def save(path: Path, state: Any) -> None:
    """Write `state` to `path` so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two comparisons may share a folder
    try:
        with open(beside, "wb") as file:
            file.write(to_bytes(state))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    if os.name == "posix":  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path) -> Any:
    """What `save` wrote; CheckpointError, naming the file, if it is torn or changed."""
    try:
        return from_bytes(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from None
