"""Tokenise documents once into flat files that runs map into memory: nothing is ever loaded whole.

    document -> tokens + end of document, appended to its domain; a sequence is T + 1 tokens, T apart, so that every
    token but a domain's first is predicted once in an epoch

Held-out parts are chosen document by document by a hash of the content: equal documents stay on one side, and the
choice depends on neither order nor other documents.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checks import at_least, one_of
from ...networks.language_model import IGNORED
from .documents import Columns, find_files, read_documents
from .tokenizer import Bytes, Subwords, Tokenizer, learn_subwords, load_subwords

FORMAT = "omnimix-packed-1"
TRAIN = "train"
HELD_OUT = {"valid": 0.1, "test": 0.1}
"""Shares of the documents that are held out by default: one part to choose mixtures on, one to judge the choice by."""
FLUSH = 2**15
"""Tokens of a domain that wait in memory before they are written."""


def pack(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Columns | None = None,
    tokenizer: str = "bytes",
    vocabulary: int | None = None,
    end: int | str | None = None,
    held_out: Mapping[str, float] | None = None,
    keep: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Packed:
    """Tokenise and pack the documents of `paths` into the folder `out`, and open it.

    tokenizer: "bytes"; "bpe:4096", learned from the documents that are not held out; or a tokenizer.json, whose token
    `end` closes a document. Where `columns.tokens` names token ids, `vocabulary` says how many there are and `end` (an
    id) closes a document; without it nothing does. held_out: name -> share of documents. keep: domain -> share of its
    training documents to keep, chosen by their hash (1 where it is not named). A folder that was packed with the same
    arguments is opened as it is. ValueError for files and rows that cannot be used, naming them.
    """
    columns, folder = columns or Columns(), Path(out)
    shares = dict(HELD_OUT if held_out is None else held_out)
    if TRAIN in shares or any(not 0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(
            f"held_out must name parts other than 'train' with shares that sum to less than 1, got {shares}"
        )
    for domain, share in (keep or {}).items():
        if not 0 < share <= 1:
            raise ValueError(f"keep[{domain!r}] must be in (0, 1], got {share}")
    files = find_files(paths)
    given = {
        "files": [[str(file), file.stat().st_size, _sha256(file)] for file in files],
        "columns": [columns.domain, columns.text, columns.tokens],
        "tokenizer": [tokenizer, _sha256(Path(tokenizer)) if Path(tokenizer).is_file() else None, vocabulary, end],
        "held_out": shares, "keep": dict(keep or {}), "seed": seed,
    }  # fmt: skip
    if (folder / "packed.json").exists():
        packed = Packed(folder)
        if packed.facts["given"] != json.loads(json.dumps(given)):
            raise ValueError(
                f"{folder} holds documents that were packed otherwise; choose another folder, or remove it"
            )
        return packed
    folder.mkdir(parents=True, exist_ok=True)
    encode = _tokenizer(files, columns, tokenizer, vocabulary, end, shares, keep or {}, seed)
    if isinstance(encode, Subwords):
        encode.inner.save(str(folder / "tokenizer.json"))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        parts = _Parts(Path(scratch), np.uint16 if encode.vocabulary <= 2**16 else np.uint32)
        for found in read_documents(files, columns):
            kept = []
            for domain, content, place in zip(found.domains, found.contents, found.places, strict=True):
                part, rank = _place(content, shares, seed)
                if part != TRAIN or rank < (keep or {}).get(domain, 1.0):
                    kept.append((part, domain, content, place))
            ids = _encoded(encode, [content for _, _, content, _ in kept], [place for *_, place in kept])
            for (part, domain, *_), one in zip(kept, ids, strict=True):
                parts.add(part, domain, one, encode.end)
        facts = parts.join(folder, [TRAIN, *shares])
    facts |= {"format": FORMAT, "vocabulary": encode.vocabulary, "end": encode.end, "given": given}
    beside = folder / "packed.json.tmp"
    beside.write_text(json.dumps(facts, indent=1) + "\n")
    beside.replace(folder / "packed.json")  # last: a folder without it was not finished
    return Packed(folder)


@dataclass(frozen=True)
class Part:
    """One part of the packed tokens: a file, and where in it each domain begins and ends."""

    tokens: np.memmap
    start: np.ndarray
    end: np.ndarray


class Packed:
    """A folder that `pack` wrote. domains: sorted by name; vocabulary: number of token ids; digest: of all tokens."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / "packed.json"
        if not file.is_file():
            raise ValueError(f"{self.folder} holds no packed documents (no packed.json)")
        self.facts: dict[str, Any] = json.loads(file.read_text())
        if self.facts.get("format") != FORMAT:
            raise ValueError(f"{file}: not what pack() wrote")
        self.domains: tuple[str, ...] = tuple(self.facts["domains"])
        self.vocabulary, self.digest = int(self.facts["vocabulary"]), str(self.facts["digest"])
        self.parts = {name: self._open(name) for name in self.facts["parts"]}

    def _open(self, name: str) -> Part:
        spans = np.array([self.facts["parts"][name][domain]["span"] for domain in self.domains], dtype=np.int64)
        file, kind = self.folder / f"{name}.bin", np.dtype(self.facts["type"])
        if not spans[-1, 1]:
            return Part(np.memmap(file, kind, "r", shape=(0,)) if file.stat().st_size else np.empty(0, kind), *spans.T)  # type: ignore[arg-type]
        if file.stat().st_size != spans[-1, 1] * kind.itemsize:
            raise ValueError(
                f"{file} is {file.stat().st_size} bytes long, not {spans[-1, 1] * kind.itemsize}; pack again"
            )
        return Part(np.memmap(file, kind, "r"), *spans.T)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def tokens(self, part: str = TRAIN) -> dict[str, int]:
        """Tokens by domain."""
        found = self.parts[one_of("part", part, self.parts)]
        return dict(zip(self.domains, (found.end - found.start).tolist(), strict=True))

    def documents(self, part: str = TRAIN) -> dict[str, int]:
        """Documents by domain."""
        return {domain: self.facts["parts"][part][domain]["documents"] for domain in self.domains}

    def sequences(self, part: str, context: int) -> np.ndarray:
        """(k,) sequences of `context` predicted tokens by domain; the last of a domain may be shorter."""
        at_least("context", context, 1)
        found = self.parts[one_of("part", part, self.parts)]
        count: np.ndarray = -(-np.maximum(found.end - found.start - 1, 0) // context)
        return count

    def read(self, part: str, domain: np.ndarray, index: np.ndarray, context: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, context), int64, of the sequences `index` (B,) of `domain` (B,).

        Where a domain ends before the sequence does, targets are `IGNORED` and inputs 0.
        """
        found = self.parts[part]
        first = found.start[domain] + index * context
        place = first[:, None] + np.arange(context + 1)
        inside = place < found.end[domain][:, None]
        ids = torch.from_numpy(found.tokens[np.where(inside, place, first[:, None])].astype(np.int64))
        known = torch.from_numpy(inside)
        return ids[:, :-1].masked_fill(~known[:, :-1], 0), ids[:, 1:].masked_fill(~known[:, 1:], IGNORED)


class _Parts:
    """Tokens on their way to the files, by part and domain."""

    def __init__(self, folder: Path, kind: type) -> None:
        self.folder, self.kind = folder, kind
        self.waiting: dict[tuple[str, str], list[np.ndarray]] = {}
        self.held: dict[tuple[str, str], int] = {}
        self.counts: dict[tuple[str, str], list[int]] = {}
        self.names: dict[tuple[str, str], str] = {}

    def add(self, part: str, domain: str, ids: np.ndarray, end: int | None) -> None:
        key = (part, domain)
        if key not in self.counts:
            self.waiting[key], self.held[key], self.counts[key] = [], 0, [0, 0]
            self.names[key] = f"{len(self.names)}.bin"
        closed: np.ndarray = ids.astype(self.kind) if end is None else np.append(ids, end).astype(self.kind)
        self.waiting[key].append(closed)
        self.held[key] += len(closed)
        self.counts[key][0] += 1
        self.counts[key][1] += len(closed)
        if self.held[key] >= FLUSH:
            self._flush(key)

    def _flush(self, key: tuple[str, str]) -> None:
        with open(self.folder / self.names[key], "ab") as file:
            file.write(np.concatenate(self.waiting[key]).tobytes())
        self.waiting[key], self.held[key] = [], 0

    def join(self, folder: Path, parts: Sequence[str]) -> dict[str, Any]:
        """One file a part, its domains one after the other; gives what packed.json says of them."""
        domains = sorted({domain for _, domain in self.counts})
        total, found = hashlib.sha256(), {}
        for part in parts:
            place, spans = 0, {}
            with open(folder / f"{part}.bin", "wb") as file:
                for domain in domains:
                    documents, tokens = self.counts.get((part, domain), (0, 0))
                    if documents:
                        if self.held[part, domain]:
                            self._flush((part, domain))
                        with open(self.folder / self.names[part, domain], "rb") as piece:
                            shutil.copyfileobj(piece, file)
                    if part == TRAIN and tokens < 2:
                        raise ValueError(
                            f"domain {domain!r} has {tokens} tokens to train on ({documents} documents): "
                            "add documents, or leave it out"
                        )
                    spans[domain] = {"span": [place, place + tokens], "documents": documents}
                    place += tokens
            total.update(f"{part} {json.dumps(spans)} {_sha256(folder / f'{part}.bin')}".encode())
            found[part] = spans
        return {"domains": domains, "parts": found, "type": np.dtype(self.kind).name, "digest": total.hexdigest()}


class _Ids:
    """Token ids that are there already."""

    def __init__(self, vocabulary: int | None, end: int | str | None) -> None:
        if vocabulary is None:
            raise ValueError("token ids need vocabulary=, the number of different ones")
        if isinstance(end, str):
            raise ValueError(f"end must be a token id, got {end!r}")
        self.vocabulary, self.end = at_least("vocabulary", vocabulary, 2), end

    def encode(self, ids: Sequence[Any]) -> list[np.ndarray]:
        found = [np.asarray(one) for one in ids]
        for one in found:
            if one.size and (one.dtype.kind not in "iu" or one.min() < 0 or one.max() >= self.vocabulary):
                raise ValueError(
                    f"token ids must be integers in 0..{self.vocabulary - 1}, got {one.min()}..{one.max()}"
                )
        return found


def _encoded(encode: Any, contents: list[Any], places: list[str]) -> list[np.ndarray]:
    """Token ids; ValueError that names the document which has none."""
    try:
        found: list[np.ndarray] = encode.encode(contents)
    except ValueError:
        for content, place in zip(contents, places, strict=True):
            try:
                encode.encode([content])
            except ValueError as error:  # noqa: PERF203
                raise ValueError(f"{place}: {error}") from None
        raise
    return found


def _tokenizer(
    files: Sequence[Path],
    columns: Columns,
    name: str,
    vocabulary: int | None,
    end: int | str | None,
    shares: Mapping[str, float],
    keep: Mapping[str, float],
    seed: int,
) -> Tokenizer | _Ids:
    if columns.tokens is not None:
        return _Ids(vocabulary, end)
    if name == "bytes":
        return Bytes()
    if name.startswith("bpe:"):
        try:
            size = int(name[4:])
        except ValueError:
            raise ValueError(f"tokenizer must be 'bpe:' and a number, as bpe:4096, got {name!r}") from None
        return learn_subwords(_training_texts(files, columns, shares, keep, seed), size)
    return load_subwords(name) if end is None else load_subwords(name, str(end))


def _training_texts(
    files: Sequence[Path], columns: Columns, shares: Mapping[str, float], keep: Mapping[str, float], seed: int
) -> Iterator[str]:
    for found in read_documents(files, columns):
        for domain, text in zip(found.domains, found.contents, strict=True):
            part, rank = _place(text, shares, seed)
            if part == TRAIN and rank < keep.get(domain, 1.0):
                yield text


def _place(content: Any, shares: Mapping[str, float], seed: int) -> tuple[str, float]:
    """The part of a document, and a number in [0, 1) that ranks it there."""
    body = content.encode() if isinstance(content, str) else np.asarray(content, dtype=np.int64).tobytes()
    found = hashlib.blake2b(body, digest_size=16, key=str(seed).encode()).digest()
    left = int.from_bytes(found[:8], "little") / 2**64
    for part, share in shares.items():
        if left < share:
            return part, 0.0
        left -= share
    return TRAIN, int.from_bytes(found[8:], "little") / 2**64


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _blocks(opened)


def _blocks(opened: Any) -> str:
    total = hashlib.sha256()
    while block := opened.read(2**20):
        total.update(block)
    return total.hexdigest()
