"""Merge checkpoints on disk tensor by tensor: blocks in, blocks out, whatever the size of the model.

The layout of the output is known before any value: files are reserved and filled. A journal of finished tensors lets a
killed merge go on, and its result has the same bytes. The folder appears under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...core.checks import one_of
from ..merge import Linear, Merger
from ..merge.base import all_blocks, merged_blocks, same
from ..merge.source import BLOCK, spans
from .agreement import ALLOWED, Disagreement, differences
from .card import companions, facts, write_card
from .reader import INDEX, Checkpoint, raw, read_json, sha256
from .recipe import DTYPES, Recipe, depths
from .safetensors import in_order, write_header
from .sparse import averaged, sources, sparse_config

SHARD = 5_000_000_000
"""Bytes of values in a file, at most, unless a single tensor is larger."""

Told = Callable[[int, str], None]
"""Called with the bytes of the output that are done, and the tensor that was."""


@dataclass
class Plan:
    """A merge that was looked at: nothing is written yet."""

    recipe: Recipe
    models: list[Checkpoint]
    base: Checkpoint | None
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    """What the output holds, in order."""
    mergers: dict[str, Merger]
    """The operator of every floating-point tensor that is merged."""
    shards: dict[str, list[str]]
    """File name to tensors."""
    taken: dict[str, tuple[Checkpoint, str]] = field(default_factory=dict)
    """Tensors of experts: whose they are, and what they are called there."""
    drawn: dict[str, Tensor] = field(default_factory=dict)
    """Weights of routers."""
    evaluation: dict[str, Any] | None = None
    """What was measured, for the card."""

    @property
    def lead(self) -> Checkpoint:
        """Whose configuration and tokenizer the output has."""
        return self.base or self.models[0]

    @property
    def everyone(self) -> list[Checkpoint]:
        return self.models if self.base is None else [self.base, *self.models]

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration of a mixture of experts; None where that of `lead` stays."""
        k = self.recipe.experts_per_token
        return None if k is None else sparse_config(self.lead.config, len(self.models), k)

    @property
    def size(self) -> int:
        """Bytes of the values of the output."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.tensors.values())

    def fingerprint(self) -> dict[str, Any]:
        """What the output depends on, without reading the values."""
        files = [file for checkpoint in self.everyone for file in checkpoint.files]
        inputs = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return {
            "omnimix": __version__,
            "recipe": self.recipe.facts(),
            "shards": self.shards,
            "inputs": inputs,
            "evaluation": self.evaluation,
        }

    def close(self) -> None:
        for checkpoint in self.everyone:
            checkpoint.close()


def plan_merge(recipe: Recipe, *, shard_size: int = SHARD, allow: Collection[str] = (), unpickle: bool = False) -> Plan:
    """Open the checkpoints of a recipe and see whether they can be merged.

    shard_size: bytes of values in a file at most. allow: "config" or "vocabulary", what may differ. unpickle: see
    `Checkpoint`. ValueError for damaged files; `Disagreement`, with a table, for checkpoints that do not fit together.
    """
    for what in allow:
        one_of("allow", what, ALLOWED)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 byte, got {shard_size}")
    models = [Checkpoint(path, unpickle=unpickle) for path in recipe.models]
    base = None if recipe.base is None else Checkpoint(recipe.base, unpickle=unpickle)
    everyone = models if base is None else [base, *models]
    dtype = None if recipe.dtype is None else DTYPES[recipe.dtype]
    if rows := differences(everyone, dtype, allow):
        raise Disagreement([checkpoint.label for checkpoint in everyone], rows)
    lead = everyone[0]
    names = in_order(lead.names())
    taken: dict[str, tuple[Checkpoint, str]] = {}
    drawn: dict[str, Tensor] = {}
    mean: set[str] = set()
    if recipe.experts_per_token is not None:
        found = sources(lead, len(models), recipe.seed)
        taken = {name: (models[i], own) for name, (i, own) in found.taken.items()}
        names, drawn = found.shared, found.drawn
        mean = averaged(lead, names, recipe.average)
    place = depths(names)
    mergers = {name: recipe.merger(name, place[name]) for name in names if lead.dtype(name).is_floating_point}
    for name, merger in mergers.items():
        merger.fit(len(models), base is not None)
        if name in mean and not isinstance(merger, Linear):
            mergers[name] = Linear()
    held = {name: (lead.dtype(name), lead.shape(name)) for name in names}
    held |= {name: (one.dtype(own), one.shape(own)) for name, (one, own) in taken.items()}
    held |= {name: (value.dtype, tuple(value.shape)) for name, value in drawn.items()}
    tensors = {
        name: (dtype if dtype is not None and held[name][0].is_floating_point else held[name][0], held[name][1])
        for name in in_order(held)
    }
    return Plan(recipe, models, base, tensors, mergers, _shards(tensors, shard_size), taken, drawn)


def _shards(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], most: int) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def check_values(plan: Plan, told: Told = lambda done, name: None) -> None:
    """Make the merge without writing it: the ValueErrors of `merge_checkpoints` that lie in the values."""
    found, done = _measured(plan), 0
    for name in plan.tensors:
        for _ in _merged(plan, name, found):
            pass
        done += _size(plan, name)
        told(done, name)


def merge_checkpoints(plan: Plan, out: str | Path, told: Told = lambda done, name: None) -> Path:
    """Make the merge, in `out`, a folder that must not hold anything yet; go on where an earlier call was stopped.

    The folder has the weights in safetensors (with an index if there are several), the configuration and tokenizer of
    the base (or first model), README.md and merge.json with what was merged, from where and how. ValueError for NaN and
    infinity in the inputs, results that the dtype cannot hold, an unfinished merge of something else, a full disk.
    """
    out = Path(out)
    work = out.with_name(out.name + ".partial")
    if _finished(out, plan):
        shutil.rmtree(work, ignore_errors=True)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already; name a new folder")
    result = _begin(work, plan)
    with ExitStack() as stack:
        stack.callback(plan.close)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        hashes = {file: pool.submit(sha256, file) for checkpoint in plan.everyone for file in checkpoint.files}
        stack.callback(pool.shutdown, cancel_futures=True)
        written = _write_all(plan, work, result, told)
        sources = {file: future.result() for file, future in hashes.items()}
    if len(plan.shards) > 1:
        places = {name: file for file, names in plan.shards.items() for name in names}
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(places.items()))}
        (result / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    companions(plan.lead, result, plan.recipe.dtype, plan.config)
    write_card(plan, result, sources, written)
    out.parent.mkdir(parents=True, exist_ok=True)
    result.rename(out)
    shutil.rmtree(work)
    return out


def _finished(out: Path, plan: Plan) -> bool:
    """Whether `out` is this very merge, made before from the same files."""
    card = out / "merge.json"
    if not card.is_file():
        return False
    held = read_json(card, {})
    written = held.get("files")
    if not isinstance(written, dict) or [*written] != [*plan.shards]:
        return False
    sources = {file: sha256(file) for checkpoint in plan.everyone for file in checkpoint.files}
    if {**held, **facts(plan, sources, written)} != held:
        return False
    for file, digest in written.items():
        if not (out / file).is_file() or sha256(out / file) != digest:
            raise ValueError(f"{out / file}: is no longer as it was written; delete {out} to merge again")
    return True


def _begin(work: Path, plan: Plan) -> Path:
    """The folder to fill: new, or that of the same merge, stopped."""
    said, fingerprint, size = work / "plan.json", plan.fingerprint(), plan.size
    result = work / "result"
    if said.exists():
        if said.read_text(encoding="utf-8") != json.dumps(fingerprint):
            raise ValueError(f"{work}: holds an unfinished merge of something else; delete it, or name another folder")
        result.mkdir(exist_ok=True)
        return result
    if work.exists() and any(path.name != "plan.new" for path in work.iterdir()):
        raise ValueError(f"{work}: is in the way; delete it, or name another folder")
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < size:
        work.rmdir()
        raise ValueError(f"{work.parent}: has {free / 1e9:.1f} GB free, the merge needs {size / 1e9:.1f} GB")
    (work / "plan.new").write_text(json.dumps(fingerprint), encoding="utf-8")
    (work / "plan.new").rename(said)
    result.mkdir()
    return result


def _write_all(plan: Plan, work: Path, result: Path, told: Told) -> dict[str, str]:
    """Fill the files of weights; file name to SHA-256."""
    done = _journal(work / "journal")
    found = None if plan.mergers.keys() <= done.keys() else _measured(plan)
    written, bytes_done = {}, 0
    with (work / "journal").open("a", encoding="utf-8") as journal, ThreadPoolExecutor(1) as pool:
        for file, names in plan.shards.items():
            header, offsets, size = write_header({name: plan.tensors[name] for name in names})
            shard = _Shard(result / file, header, size, pool)
            with shard:
                for name in sorted(names, key=offsets.__getitem__):
                    if name not in done or not shard.holds(offsets[name], _size(plan, name), done[name]):
                        reached = shard.fill(offsets[name], _merged(plan, name, found))
                        journal.write(json.dumps([name, reached]) + "\n")
                        journal.flush()
                    bytes_done += _size(plan, name)
                    told(bytes_done, name)
                written[file] = shard.digest()
    return written


def _measured(plan: Plan) -> Any:
    """What an operator that looks at the whole model first has found; None for the others."""
    names = [name for name, merger in plan.mergers.items() if merger.scope == "model"]
    if not names:
        return None
    one = plan.mergers[names[0]]  # with such a scope all have the same settings
    return one.measure(all_blocks(one, names, plan.models, plan.base))


def _size(plan: Plan, name: str) -> int:
    dtype, shape = plan.tensors[name]
    return math.prod(shape) * dtype.itemsize


def _journal(file: Path) -> dict[str, str]:
    """Finished tensors, and the hash of their file up to there; a line that was cut off by a kill does not count."""
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else [""]
    if lines[-1]:
        file.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    return dict(json.loads(line) for line in lines[:-1])


def _merged(plan: Plan, name: str, found: Any) -> Any:
    """The blocks of a tensor of the output."""
    dtype, shape = plan.tensors[name]
    if name in plan.drawn:
        values = plan.drawn[name].reshape(-1)
        return (values[start:stop].to(dtype) for start, stop in spans(shape))
    if name in plan.taken:  # a copy that is looked at, as merged tensors are
        one, own = plan.taken[name]
        return merged_blocks(Linear(), own, [one], None, None, dtype)
    if name in plan.mergers:
        merger = plan.mergers[name]
        base = plan.base if merger.base == "required" else None
        return merged_blocks(merger, name, plan.models, base, found, dtype)
    return (same(name, plan.everyone, start, stop) for start, stop in spans(shape))


class _Shard:
    """A file that is reserved and then filled in order, and hashed on the side."""

    def __init__(self, path: Path, header: bytes, size: int, pool: ThreadPoolExecutor) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.file, size)
        os.pwrite(self.file, header, 0)
        self.sha, self.pool = hashlib.sha256(header), pool
        self.pending: list[Future[None]] = []

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def _hash(self, data: Any) -> None:
        self.pending.append(self.pool.submit(self.sha.update, data))
        if len(self.pending) > 2:  # so that blocks do not pile up
            self.pending.pop(0).result()

    def fill(self, offset: int, blocks: Any) -> str:
        """Write a tensor; the hash of the file up to its end."""
        for block in blocks:
            data = raw(block.reshape(-1).contiguous())
            written = 0
            while written < len(data):
                written += os.pwrite(self.file, data[written:], offset + written)
            self._hash(data)
            offset += len(data)
        return self.digest()

    def holds(self, offset: int, size: int, reached: str) -> bool:
        """Whether the tensor that the journal calls finished is there, and all before it; if so it is hashed too."""
        sha = self._settled()
        for start in range(offset, offset + size, BLOCK):
            sha.update(os.pread(self.file, min(BLOCK, offset + size - start), start))
        if sha.hexdigest() == reached:
            self.sha = sha
        return bool(sha.hexdigest() == reached)

    def _settled(self) -> Any:
        while self.pending:
            self.pending.pop(0).result()
        return self.sha.copy()

    def digest(self) -> str:
        """The hash of what was written or found so far."""
        return str(self._settled().hexdigest())
