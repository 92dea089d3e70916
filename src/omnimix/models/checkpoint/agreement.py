"""Whether checkpoints can be merged: what differs between them, as a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .reader import Checkpoint, read_json, sha256

HARMLESS = {
    "_name_or_path", "torch_dtype", "dtype", "transformers_version", "use_cache", "_commit_hash",
    "_attn_implementation",
}  # fmt: skip
"""Entries of config.json that do not change what a tensor means."""
ALLOWED = ("config", "vocabulary")
"""What a user may overrule."""
QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Difference:
    """One row of the table."""

    kind: str
    """tensor, shape, dtype, tied weights, quantised, config or vocabulary."""
    name: str
    values: tuple[str, ...]
    """What each checkpoint has."""


class Disagreement(ValueError):
    """Checkpoints that cannot be merged, with all that differs."""

    def __init__(self, labels: Sequence[str], rows: Sequence[Difference]) -> None:
        self.labels, self.rows = list(labels), list(rows)
        lines = [f"  {row.kind} {row.name}: {' | '.join(row.values)}" for row in self.rows[:20]]
        more = f"\n  and {len(rows) - 20} more" if len(rows) > 20 else ""
        super().__init__(
            f"the models do not fit together ({' | '.join(labels)}):\n" + "\n".join(lines) + more + "\n" + self.remedy()
        )

    def remedy(self) -> str:
        """What the user can do."""
        kinds = {row.kind for row in self.rows}
        said = []
        if "dtype" in kinds:
            said.append("--dtype DTYPE merges models of different precision")
        said += [
            f"--allow {kind} merges all the same, with the {kind} of the first" for kind in ALLOWED if kind in kinds
        ]
        if kinds - {"dtype", *ALLOWED}:
            said.append("models must share an architecture, a size and a vocabulary")
        return "; ".join(said)


def differences(
    checkpoints: Sequence[Checkpoint], dtype: torch.dtype | None = None, allow: Collection[str] = ()
) -> list[Difference]:
    """What stands in the way of a merge. dtype: asked for, if any; inputs may then differ. allow: of ALLOWED."""
    rows = [*_tensors(checkpoints, dtype is not None), *_ties(checkpoints), *_quantised(checkpoints)]
    if "config" not in allow:
        rows += _configs(checkpoints)
    if "vocabulary" not in allow:
        rows += _vocabularies(checkpoints)
    return rows


def _tensors(checkpoints: Sequence[Checkpoint], convert: bool) -> list[Difference]:
    held = [set(checkpoint.names()) for checkpoint in checkpoints]
    rows = []
    for name in sorted(set().union(*held)):
        if not all(name in names for names in held):
            values = tuple("present" if name in names else "missing" for names in held)
            rows.append(Difference("tensor", name, values))
            continue
        shapes = [checkpoint.shape(name) for checkpoint in checkpoints]
        if len(set(shapes)) > 1:
            rows.append(Difference("shape", name, tuple("x".join(map(str, shape)) or "scalar" for shape in shapes)))
        dtypes = [checkpoint.dtype(name) for checkpoint in checkpoints]
        floats = {dtype.is_floating_point for dtype in dtypes}
        if len(set(dtypes)) > 1 and not (convert and floats == {True}):
            rows.append(Difference("dtype", name, tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)))
    return rows


def _ties(checkpoints: Sequence[Checkpoint]) -> list[Difference]:
    said = [bool(checkpoint.config.get("tie_word_embeddings")) for checkpoint in checkpoints if checkpoint.config]
    if len(set(said)) < 2:
        return []
    values = tuple(
        ("tied" if c.config.get("tie_word_embeddings") else "untied") if c.config else "no config" for c in checkpoints
    )
    return [Difference("tied weights", "tie_word_embeddings", values)]


def _quantised(checkpoints: Sequence[Checkpoint]) -> list[Difference]:
    values = []
    for checkpoint in checkpoints:
        said = checkpoint.config.get("quantization_config")
        method = said.get("quant_method", "yes") if isinstance(said, dict) else None
        small = next((n for n in checkpoint.names() if checkpoint.dtype(n) in QUANTISED), None)
        values.append(str(method) if method else f"8-bit {small}" if small else "no")
    return [Difference("quantised", "weights", tuple(values))] if set(values) != {"no"} else []


def _configs(checkpoints: Sequence[Checkpoint]) -> list[Difference]:
    configs = [checkpoint.config for checkpoint in checkpoints]
    with_one = [config for config in configs if config]
    rows = []
    for key in sorted({key for config in with_one for key in config} - HARMLESS - {"tie_word_embeddings"}):
        values = [config.get(key) or None for config in with_one]  # absent, null, false and 0 are one
        if any(value != values[0] for value in values):
            rows.append(Difference("config", key, tuple(str(c.get(key, "-")) if c else "no config" for c in configs)))
    return rows


def _vocabularies(checkpoints: Sequence[Checkpoint]) -> list[Difference]:
    found = [vocabulary(checkpoint) for checkpoint in checkpoints]
    with_one = [tokens for tokens in found if tokens is not None]
    if all(tokens == with_one[0] for tokens in with_one):
        return []
    first = with_one[0]
    values = []
    for tokens in found:
        if tokens is None:
            values.append("none")
        elif isinstance(tokens, dict) and isinstance(first, dict):
            other = sorted((t for t in {*tokens, *first} if tokens.get(t) != first.get(t)), key=str)
            example = f", {len(other)} differ from the first, as {other[0]!r}" if other else ""
            values.append(f"{len(tokens)} tokens{example}")
        else:
            values.append("another kind of tokenizer" if tokens != first else "tokenizer")
    return [Difference("vocabulary", "tokens", tuple(values))]


def vocabulary(checkpoint: Checkpoint) -> dict[str, Any] | str | None:
    """Token to id, the hash of a binary tokenizer, or None where the folder has no tokenizer."""
    folder = checkpoint.folder
    if folder is None:
        return None
    if (folder / "tokenizer.json").exists():
        held = read_json(folder / "tokenizer.json", {})
        known = (held.get("model") or {}).get("vocab") or {}
        if isinstance(known, list):  # Unigram: pairs of token and score, in the order of ids
            known = {pair[0]: i for i, pair in enumerate(known)}
        return {**known, **{token["content"]: token["id"] for token in held.get("added_tokens", [])}}
    if (folder / "vocab.json").exists():
        return {**read_json(folder / "vocab.json", {}), **read_json(folder / "added_tokens.json", {})}
    if (folder / "vocab.txt").exists():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return {token: i for i, token in enumerate(lines)}
    return sha256(folder / "tokenizer.model") if (folder / "tokenizer.model").exists() else None
