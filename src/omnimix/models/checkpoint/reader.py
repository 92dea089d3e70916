"""A checkpoint on disk, read block by block: a folder as Hugging Face writes it, or a single file of weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..merge.lora import LowRank, adapter
from .safetensors import CODES, Entry, read_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """Named tensors in files, with the configuration beside them. A `Source` for the merge operators.

    path: a folder with model.safetensors, or with shards and their index; or one file. MODEL+ADAPTER, with a folder as
    PEFT writes it, is the model with the low-rank changes added while it is read, in float32 at least. unpickle: also
    read files of torch.save, through `weights_only`, which builds tensors and runs no code; otherwise they are refused.
    ValueError for what is missing, truncated, or not as the index says, and for changes that do not fit.
    """

    def __init__(self, path: str | Path, *, unpickle: bool = False) -> None:
        self.label, self.path = str(path), Path(path)
        self.adapter: Path | None = None
        if not self.path.exists():
            parts = self.label.split("+")
            joined = (("+".join(parts[:i]), "+".join(parts[i:])) for i in range(1, len(parts)))
            model, beside = next(((m, a) for m, a in joined if Path(m).exists()), (path, None))
            self.path, self.adapter = Path(model), None if beside is None else Path(beside)
        if not self.path.exists():
            raise ValueError(f"{path}: there is no such file or folder (models are local folders or files)")
        self.folder = self.path if self.path.is_dir() else None
        self.config: dict[str, Any] = {} if self.folder is None else read_json(self.folder / "config.json", {})
        self.entries: dict[str, Entry] = {}
        self._loaded: dict[str, Tensor] = {}
        self._opened: dict[Path, int] = {}
        self.files = self._find(unpickle)
        """Files of weights; for an adapter with its settings."""
        self.changes: dict[str, LowRank] = {}
        if self.adapter is not None:
            self.changes = self._changes(self.adapter, unpickle)

    def _find(self, unpickle: bool) -> list[Path]:
        if self.folder is None:
            files = [self.path]
        elif (self.folder / INDEX).exists():
            return self._by_index(self.folder / INDEX)
        else:
            files = [*self.folder.glob("*.safetensors")]
            if len(files) > 1 and self.folder / "model.safetensors" not in files:
                raise ValueError(f"{self.path}: holds {len(files)} safetensors files but no {INDEX}")
            files = [self.folder / "model.safetensors"] if len(files) > 1 else files
            files = files or self._pickles(self.folder)
        if self.folder is not None and (self.folder / "adapter_config.json").exists():
            raise ValueError(f"{self.path}: is an adapter, not a whole model; write MODEL+ADAPTER")
        if not files:
            raise ValueError(f"{self.path}: holds no weights (model.safetensors, or shards with {INDEX})")
        for file in files:
            if file.suffix == ".safetensors":
                self.entries |= read_header(file)
            elif file.suffix in PICKLES:
                loaded = _unpickled(file, unpickle)
                if twice := loaded.keys() & self._loaded.keys():
                    raise ValueError(f"{file}: tensor {min(twice)!r} is in another file too")
                self._loaded |= loaded
            else:
                raise ValueError(f"{file}: is no file of weights; known endings are .safetensors, {', '.join(PICKLES)}")
        return files

    def _changes(self, folder: Path, unpickle: bool) -> dict[str, LowRank]:
        settings = folder / "adapter_config.json"
        if not settings.is_file():
            raise ValueError(f"{folder}: is no adapter, it has no adapter_config.json (MODEL+ADAPTER takes a folder)")
        names = ("adapter_model.safetensors", "adapter_model.bin")
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            raise ValueError(f"{folder}: holds no {names[0]}")
        with Checkpoint(file, unpickle=unpickle) as held:
            sizes = {name: held.shape(name) for name in held.names()}
            tensors = {name: held.block(name, 0, math.prod(size)).reshape(size) for name, size in sizes.items()}
        try:
            changes = adapter(tensors, read_json(settings, {}))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        known = set(self.names())
        for name, change in changes.items():
            if name not in known:
                raise ValueError(f"{file}: changes {name!r}, which {self.path} does not have")
            size = (len(change.up), change.down.shape[1])
            if self.shape(name) != size or not self.dtype(name).is_floating_point:
                raise ValueError(f"{file}: the change of {name!r} is {size}, the weight {self.shape(name)}")
        self.files = [*self.files, file, settings]
        return changes

    def _pickles(self, folder: Path) -> list[Path]:
        held = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
        named = [path for path in held if path.name.startswith("pytorch_model")]
        if len(held) > 1 and not named:
            raise ValueError(f"{self.path}: holds {len(held)} pickles; name the one with the weights")
        return named or held

    def _by_index(self, index: Path) -> list[Path]:
        places = read_json(index, {}).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{index}: has no weight_map from tensor to file")
        files = {}
        for name in sorted(set(places.values())):
            file = index.parent / name
            if Path(name).name != name:
                raise ValueError(f"{index}: names {name!r}; shards lie beside their index")
            if not file.exists():
                raise ValueError(f"{index}: names the shard {name!r}, which is not there")
            files[name] = read_header(file)
        for tensor, name in places.items():
            if tensor not in files[name]:
                elsewhere = [other for other, held in files.items() if tensor in held]
                hint = f"; it is in {elsewhere[0]}" if elsewhere else ""
                raise ValueError(f"{index}: says that tensor {tensor!r} is in {name}, where it is not{hint}")
            self.entries[tensor] = files[name][tensor]
        for name, held in files.items():
            for tensor in held:
                if tensor not in places:
                    raise ValueError(f"{index}: does not name tensor {tensor!r}, which is in {name}")
        return [index.parent / name for name in files]

    def names(self) -> list[str]:
        return [*self.entries, *self._loaded]

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype if name in self.entries else self._loaded[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape if name in self.entries else tuple(self._loaded[name].shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        block = self._block(name, start, stop)
        change = self.changes.get(name)
        if change is None:
            return block
        width = change.down.shape[1]
        first = start // width
        rows = change.up[first : -(-stop // width)] @ change.down
        return block + rows.reshape(-1)[start - first * width : stop - first * width]

    def _block(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self.entries:
            return self._loaded[name].reshape(-1)[start:stop]
        entry = self.entries[name]
        block = torch.empty(stop - start, dtype=entry.dtype)
        self._fill(raw(block), entry, start * entry.dtype.itemsize)
        return block

    def _fill(self, into: memoryview, entry: Entry, offset: int) -> None:
        if entry.file not in self._opened:
            self._opened[entry.file] = os.open(entry.file, os.O_RDONLY)
        filled = 0
        while filled < len(into):
            got = os.preadv(self._opened[entry.file], [into[filled:]], entry.start + offset + filled)
            if not got:
                raise ValueError(f"{entry.file}: became shorter while it was read")
            filled += got

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raw(block: Tensor) -> memoryview:
    """The bytes of a flat tensor in memory."""
    return memoryview(block.view(torch.uint8).numpy()) if len(block) else memoryview(b"")  # type: ignore[arg-type]


def _unpickled(file: Path, allowed: bool) -> dict[str, Tensor]:
    if not allowed:
        raise ValueError(
            f"{file}: is a pickle, which can run code when it is read. Convert it to safetensors; or, if you must, "
            "pass --unpickle (unpickle=True), which loads nothing but tensors from it"
        )
    try:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            held = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file}: holds more than tensors, or is damaged; it was not loaded ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in held.items()):
        raise ValueError(f"{file}: is no state dict (a dictionary of tensors); save model.state_dict() alone")
    for name, value in held.items():
        if value.dtype not in CODES or value.layout != torch.strided:
            raise ValueError(f"{file}: tensor {name!r} is {value.dtype}, {value.layout}, which safetensors cannot hold")
    return {name: value.detach() for name, value in held.items()}


def read_json(file: Path, default: Any = None) -> Any:
    """What a JSON file holds, `default` where there is none; ValueError for a damaged one."""
    if default is not None and not file.exists():
        return default
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is no JSON ({error})") from None
    if default is not None and not isinstance(held, type(default)):
        raise ValueError(f"{file}: must hold a JSON object")
    return held


def sha256(file: Path) -> str:
    """The SHA-256 of a file, as hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
