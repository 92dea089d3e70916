"""What two training runs must share for one to continue the other's checkpoint; the files are `core.checkpoint`'s."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checkpoint import FORMAT, CheckpointError, flatten, from_bytes, load, raw, save, to_bytes, unflatten
from ..core.method import Method, Setup
from ..core.split import Split
from ..core.table import Table

__all__ = [
    "FORMAT", "CheckpointError", "configuration", "describe",
    "flatten", "from_bytes", "load", "save", "to_bytes", "unflatten",
]  # fmt: skip


def describe(value: Any, depth: int = 8) -> Any:
    """The settings of a method and its parts: class names and public attributes that are numbers, strings or parts."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value).__qualname__
    opaque = (Tensor, nn.Module, torch.Generator, Setup, Split, Table, torch.optim.Optimizer)
    if depth == 0 or isinstance(value, opaque):
        return kind
    if isinstance(value, (list, tuple)):
        return [describe(item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
    if hasattr(value, "__qualname__"):  # functions and classes
        return value.__qualname__
    if not hasattr(value, "__dict__"):
        return kind if " at 0x" in repr(value) else repr(value)
    running = ("missing", "steps_done", "given", "generator", "split")
    names = [name for name in vars(value) if not name.startswith("_") and name not in running]
    return {"class": kind, **{name: describe(getattr(value, name), depth - 1) for name in names}}


def configuration(method: Method, model: nn.Module, settings: Mapping[str, Any], *data: Tensor) -> dict[str, str]:
    """What two runs must share for one to continue the other, as texts by name."""
    content = hashlib.sha256()
    for tensor in data:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(raw(tensor))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        **{name: json.dumps(value) for name, value in settings.items()},
        "method": json.dumps(describe(method), sort_keys=True),
        "model": json.dumps([type(model).__qualname__, shapes]),
        "data": content.hexdigest(),
    }
