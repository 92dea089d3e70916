"""Choose the documents of a corpus under quotas, file by file, with memory that does not grow with the corpus.

The same choice as `select_documents` with ids: in a domain, documents by descending key until w_d * budget is reached.
One pass writes domain, length, key and chance of every document, 28 bytes; a few passes over these count tokens by the
next byte of the key, as a radix sort does, which finds the key where the quota is reached; a last one writes.
Wettig et al., ICML 2025, arXiv 2502.10341. Cost: the corpus is read twice.

    OUT/a.jsonl.gz, ..., OUT/manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..core.checks import one_of, positive
from .annotate import CHUNK, LARGE, MANIFEST, WORK, Job, Progress, Shard, locked, prepare, source_of
from .annotation import shown
from .draw.select import SEED, SHORTAGES, digests_of, nearest, noisy, quotas, uniforms
from .mixture import Mixture
from .proxy.documents import JSON_LINES, READ, objects, record_batches
from .shards import kind_of, put, rename

FORMAT = "omnimix-selection-1"
COPIES = "copies"
FACTS = np.dtype([("domain", "<i4"), ("length", "<i8"), ("key", "<u8"), ("chance", "<u8")])
BLOCK = 1 << 16
"""Documents whose facts are held at a time."""
NONE = -1
"""The domain of documents whose domain has no weight."""
MOST = 2**53
"""The largest sum of lengths; up to there float64 counts exactly."""

Blocks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Fields:
    """The columns of a document: its domain, its length in tokens (None: the bytes of `text`), its score, its id."""

    domain: str = "domain"
    tokens: str | None = None
    text: str = "text"
    score: str | None = None
    id: str | None = None


def select_shards(
    paths: str | Path | Sequence[str | Path],
    mixture: Mixture | Mapping[str, float],
    budget: float,
    out: str | Path,
    *,
    fields: Fields | None = None,
    tau: float | None = None,
    seed: int = SEED,
    shortage: str = "redistribute",
    keep: Sequence[str] | None = None,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Write the chosen documents of each file into a file of the same name and kind in the folder `out`.

    mixture: constant weights in tokens, or in documents; `budget` is in the same. A document whose domain has no weight
    is left out. fields: without a score, documents are taken at random; without an id, what is random hangs on the name
    of the file and the row. tau, seed, shortage: as of `select_documents`; "repeat" writes a column "copies", how often
    to use a document. keep: columns of the output, by default all.
    Gives the manifest: what each domain was to give and gives. The same call goes on with a job that was stopped.
    ValueError, with file and row, for a document without domain, length > 0 or finite score, and for a domain with a
    weight and no documents.
    """
    columns, mix = fields or Fields(), mixture if isinstance(mixture, Mixture) else Mixture(mixture)
    positive("budget", budget), one_of("shortage", shortage, SHORTAGES)
    if budget > MOST:
        raise ValueError(f"budget must be at most 2^53, got {budget!r}")
    if mix.unit == "sequences":
        raise ValueError("documents are counted in tokens or as documents, the mixture is in sequences: convert it")
    if tau is not None:
        positive("tau", tau)
        if columns.score is None:
            raise ValueError(f"tau={tau!r} divides scores: name the column of the score")
    weights = {name: weight for name, weight in mix.weights.items() if weight > 0}
    given = {
        "weights": weights, "unit": mix.unit, "budget": float(budget), "fields": vars(columns), "tau": tau,
        "seed": seed, "shortage": shortage,
    }  # fmt: skip
    job = prepare(paths, out, json.dumps(given), keep=keep, work="selection")
    with locked(job):
        return _Selection(job, columns, list(weights), mix.unit, tau, seed, progress).run(weights, budget, shortage)


class _Selection:
    """A job under way."""

    def __init__(
        self, job: Job, fields: Fields, domains: list[str], unit: str, tau: float | None, seed: int, progress: Progress
    ) -> None:
        self.job, self.fields, self.unit, self.tau, self.seed = job, fields, unit, tau, seed
        self.domains, self.code = domains, {name: i for i, name in enumerate(domains)}
        self.work, self.progress = job.out / WORK, progress

    def run(self, weights: Mapping[str, float], budget: float, shortage: str) -> dict[str, Any]:
        shards, whole = self.job.shards, self.job.out / MANIFEST
        sources = [self._source(shard) for shard in shards]
        if whole.exists() and all(self._finished(shard) for shard in shards):
            self._clean()
            found: dict[str, Any] = json.loads(whole.read_text())
            return found
        for number, shard in enumerate(shards):
            self._scan(shard)
            self.progress((number + 1) / (2 * len(shards)))
        sums, counts, others = self._totals()
        missing = [name for name, documents in zip(self.domains, counts, strict=True) if not documents]
        if missing:
            raise ValueError(f"the domain {missing[0]!r} has a weight, but no documents")
        size = dict(zip(self.domains, sums.tolist(), strict=True))
        quota, short = quotas(weights, size, budget, shortage, self.unit)
        wanted = np.array([quota[name] for name in self.domains])
        passes = np.where(np.isin(self.domains, short), wanted // sums, 0).astype(np.int64)
        cut = _cut(self._blocks, wanted - passes * sums, sums)
        tally = _Tally(len(sums))
        for number, shard in enumerate(shards):
            self._write(shard, cut, passes, tally, repeated=shortage == "repeat")
            self.progress((len(shards) + number + 1) / (2 * len(shards)))
        taken, total = tally.length, int(tally.length.sum())
        rows = {
            name: {
                "weight": weights[name], "quota": quota[name], "selected": int(taken[i]),
                "share": float(taken[i] / max(1, total)), "documents": int(tally.documents[i]),
                "available": int(sums[i]),
            }
            for i, name in enumerate(self.domains)
        }  # fmt: skip
        manifest = {
            **self.job.facts(), "format": FORMAT, "unit": self.unit, "budget": budget, "selected": total,
            "documents": int(tally.documents.sum()), "without weight": others, "short": list(short), "domains": rows,
            "sources": sources,
        }  # fmt: skip
        put(whole, (json.dumps(manifest, indent=1) + "\n").encode())
        self._clean()
        return manifest

    def _clean(self) -> None:
        for shard in self.job.shards:
            self._facts(shard).unlink(missing_ok=True)

    def _facts(self, shard: Shard) -> Path:
        return self.work / f"{shard.name}.facts"

    def _finished(self, shard: Shard) -> bool:
        return (self.work / f"{shard.name}.done").exists() and (self.job.out / shard.name).exists()

    def _source(self, shard: Shard) -> dict[str, Any]:
        known = self.work / f"{shard.name}.source.json"
        found = source_of(shard.source, [known])
        put(known, json.dumps(found).encode())
        return {"name": shard.name, "size": found["size"], "sha256": found["sha256"]}

    def _blocks(self) -> Iterator[np.ndarray]:
        for shard in self.job.shards:
            yield from _read(self._facts(shard))

    def _totals(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(k,) lengths and (k,) documents of the domains, and the documents of other domains."""
        k, others = len(self.domains), 0
        sums, counts = np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
        for block in self._blocks():
            mine = block[block["domain"] != NONE]
            others += len(block) - len(mine)
            found = np.bincount(mine["domain"], weights=mine["length"], minlength=k)
            if (sums + found > MOST).any():
                name = self.domains[int(np.argmax(sums + found))]
                raise ValueError(
                    f"the lengths in the domain {name!r} add up to more than 2^53: select from fewer files"
                )
            sums += found.astype(np.int64)
            counts += np.bincount(mine["domain"], minlength=k)
        return sums, counts, others

    def _scan(self, shard: Shard) -> None:
        """The facts of all documents of a file, in a file that is there as a whole or not at all."""
        if self._facts(shard).exists():
            return
        beside = self._facts(shard).with_name(self._facts(shard).name + ".tmp")
        beside.parent.mkdir(parents=True, exist_ok=True)
        names = [name for name in (self.fields.domain, self.fields.score, self.fields.id) if name is not None]
        if self.unit == "tokens":
            names.append(self.fields.tokens or self.fields.text)
        with open(beside, "wb") as file:
            row = 0
            for places, columns in _columns(shard.source, list(dict.fromkeys(names))):
                file.write(self._described(shard, places, columns, row).tobytes())
                row += len(places)
        rename(beside, self._facts(shard))

    def _described(
        self, shard: Shard, places: Sequence[str], columns: Mapping[str, Sequence[Any]], row: int
    ) -> np.ndarray:
        one, n = self.fields, len(places)

        def refuse(at: int, column: str, wanted: str) -> ValueError:
            got = shown(columns[column][at])
            return ValueError(f"{shard.source}, {places[at]}: column {column!r} must hold {wanted}, got {got}")

        facts = np.empty(n, dtype=FACTS)
        for at, domain in enumerate(columns[one.domain]):
            if domain is None or isinstance(domain, (list, dict, float)):
                raise refuse(at, one.domain, "the name of a domain")
            facts["domain"][at] = self.code.get(str(domain), NONE)
        facts["length"] = 1
        if self.unit == "tokens":
            name = one.tokens or one.text
            for at, value in enumerate(columns[name]):
                if one.tokens is None:
                    if not isinstance(value, str) or not value:
                        raise refuse(at, name, "text, to be counted in bytes (or name the column of tokens)")
                    facts["length"][at] = len(value.encode("utf-8", "surrogatepass"))
                else:
                    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**53:
                        raise refuse(at, name, "a whole number of tokens, 1 to 2^53")
                    facts["length"][at] = value
        score = np.zeros(n)
        if one.score is not None:
            for at, value in enumerate(columns[one.score]):
                score[at] = _number(value)
                if not np.isfinite(score[at]):
                    raise refuse(at, one.score, "a finite number")
        if one.id is None:
            ids = [f"{shard.name} {number}" for number in range(row, row + n)]
        else:
            for at, value in enumerate(columns[one.id]):
                if value is None:
                    raise refuse(at, one.id, "an id")
            ids = [str(value) for value in columns[one.id]]
        words = np.frombuffer(b"".join(digests_of(ids, self.seed)), dtype="<u8")
        facts["key"] = _ordered(noisy(score, uniforms(words), self.tau))
        facts["chance"] = words & ~np.uint64(0xFFF)  # as far as `uniforms` tells them apart
        return facts

    def _copies(self, shard: Shard, cut: _Cut, passes: np.ndarray, tally: _Tally) -> Iterator[np.ndarray]:
        """How often each document of a file is taken, block by block; counts them in `tally`."""
        for block in _read(self._facts(shard)):
            copies = np.where(block["domain"] == NONE, 0, passes[block["domain"]] + cut.above(block, tally.first))
            tally.add(block, copies)
            yield copies

    def _write(self, shard: Shard, cut: _Cut, passes: np.ndarray, tally: _Tally, repeated: bool) -> None:
        """Write what is chosen of a file."""
        done, parts = self.work / f"{shard.name}.done", self.work / f"{shard.name}.parts"
        blocks = self._copies(shard, cut, passes, tally)
        if self._finished(shard):
            for _ in blocks:
                pass
            return
        shutil.rmtree(parts, ignore_errors=True)
        kind, copies = kind_of(shard.source), np.zeros(0, dtype=np.int64)
        pieces: list[Any] = []
        size, number = 0, count()
        for places, rows, _ in kind.batches(READ, 0):
            while len(copies) < len(places):
                copies = np.concatenate([copies, next(blocks)])
            own, copies = copies[: len(places)], copies[len(places) :]
            at = np.flatnonzero(own)
            if not len(at):
                continue
            kept = rows.take(at) if hasattr(rows, "take") else [rows[i] for i in at.tolist()]
            where = [places[i] for i in at.tolist()]
            if repeated and any(COPIES in document for document in kind.documents(kept)):
                raise ValueError(f"{shard.source}, {where[0]}: column {COPIES!r} is there already; rename it")
            new = {COPIES: own[at].tolist()} if repeated else {}
            pieces.append(kind.piece(kept, new, self.job.keep, where))
            size += kind.size(pieces[-1])
            if size >= LARGE or len(pieces) * READ >= CHUNK:
                put(parts / f"{next(number):012d}.part", kind.encode(pieces))
                pieces, size = [], 0
        if pieces or not parts.exists():
            put(parts / f"{next(number):012d}.part", kind.encode(pieces or kind.nothing(self.job.keep)))
        kind.join(sorted(parts.glob("*.part")), parts / "whole")
        rename(parts / "whole", self.job.out / shard.name)
        put(done, b"")
        shutil.rmtree(parts)


class _Tally:
    """What has been taken: (k,) lengths, copies counted, and (k,) documents; and how many documents were looked at."""

    def __init__(self, k: int) -> None:
        self.length, self.documents, self.first = np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64), 0

    def add(self, block: np.ndarray, copies: np.ndarray) -> None:
        known, k = copies > 0, len(self.length)
        domain, length = block["domain"][known], copies[known] * block["length"][known]
        self.length += np.bincount(domain, weights=length, minlength=k).astype(np.int64)
        self.documents += np.bincount(domain, minlength=k)
        self.first += len(block)


@dataclass(frozen=True)
class _Cut:
    """Where the quotas are reached: documents above the `prefix` of the first `depth` bytes of (key, chance) are taken.

    Of those with that very prefix, few, the documents numbered `chosen` (sorted) are.
    """

    depth: int
    prefix: np.ndarray
    whole: np.ndarray
    chosen: np.ndarray

    def above(self, block: np.ndarray, first: int) -> np.ndarray:
        """(n,) 1 for a document that is taken, else 0; first: the number of the block's first document."""
        at = np.where(block["domain"] == NONE, 0, block["domain"])
        limit = self.prefix[at]
        key, chance = _prefixes(block, self.depth)
        higher = (key > limit[:, 0]) | ((key == limit[:, 0]) & (chance > limit[:, 1]))
        listed = np.isin(np.arange(first, first + len(block)), self.chosen, assume_unique=True)
        return np.asarray(higher | listed | self.whole[at]).astype(np.int64)


def _cut(blocks: Blocks, quota: np.ndarray, total: np.ndarray, few: int = BLOCK) -> _Cut:
    """Where the (k,) quotas of (k,) totals are reached, in as many passes as leave `few` documents undecided."""
    k, whole = len(quota), quota >= total
    prefix, above = np.zeros((k, 2), dtype=np.uint64), np.zeros(k)
    depth, inside = 0, few + 1
    while depth < 16 and inside > few:
        sums, counts = np.zeros((k, 256)), np.zeros((k, 256), dtype=np.int64)
        for block in blocks():
            mine = _undecided(block, prefix, whole, depth)
            digit = _prefixes(mine, depth + 1)[depth // 8] & np.uint64(255)
            place = mine["domain"].astype(np.int64) * 256 + digit.astype(np.int64)
            sums += np.bincount(place, weights=mine["length"], minlength=256 * k).reshape(k, 256)
            counts += np.bincount(place, minlength=256 * k).reshape(k, 256)
        down = above[:, None] + sums[:, ::-1].cumsum(1)
        at = np.minimum((down < quota[:, None]).sum(1), 255)
        above = np.where(at > 0, down[np.arange(k), at - 1], above)
        prefix[:, depth // 8] = (prefix[:, depth // 8] << np.uint64(8)) | (255 - at).astype(np.uint64)
        inside = int(np.where(whole, 0, counts[np.arange(k), 255 - at]).sum())
        depth += 1
    left, numbers, first = [], [], 0
    for block in blocks():
        numbers.append(first + np.flatnonzero(_is_undecided(block, prefix, whole, depth)))
        left.append(_undecided(block, prefix, whole, depth))
        first += len(block)
    rows, number = np.concatenate(left), np.concatenate(numbers)
    order = np.lexsort((number, ~rows["chance"], ~rows["key"]))
    chosen = [np.zeros(0, dtype=np.int64)]
    for domain in np.flatnonzero(~whole):
        own = order[rows["domain"][order] == domain]
        reached = np.concatenate([[above[domain]], above[domain] + np.cumsum(rows["length"][own])])
        chosen.append(number[own[: max(0, nearest(reached, quota[domain]) - 1)]])
    return _Cut(depth, prefix, whole, np.sort(np.concatenate(chosen)))


def _undecided(block: np.ndarray, prefix: np.ndarray, whole: np.ndarray, depth: int) -> Any:
    return block[_is_undecided(block, prefix, whole, depth)]


def _is_undecided(block: np.ndarray, prefix: np.ndarray, whole: np.ndarray, depth: int) -> np.ndarray:
    """(n,) whether a document has the prefix of its domain."""
    at = np.where(block["domain"] == NONE, 0, block["domain"])
    key, chance = _prefixes(block, depth)
    same = (key == prefix[at, 0]) & (chance == prefix[at, 1])
    return np.asarray(same & (block["domain"] != NONE) & ~whole[at])


def _prefixes(block: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,), (n,) the first `depth` bytes of key and chance as numbers."""
    key, chance = min(depth, 8), max(0, depth - 8)
    return _first_bytes(block["key"], key), _first_bytes(block["chance"], chance)


def _first_bytes(words: np.ndarray, n: int) -> np.ndarray:
    return np.asarray(words >> np.uint64(64 - 8 * n)) if n else np.zeros(len(words), dtype=np.uint64)


def _ordered(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 in the order of (n,) float64."""
    bits = (values + 0.0).view(np.uint64)  # -0.0 is 0.0
    negative = (bits >> np.uint64(63)).astype(bool)
    return np.asarray(np.where(negative, ~bits, bits | np.uint64(1 << 63)))


def _number(value: Any) -> float:
    """NaN for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("nan")


def _read(file: Path) -> Iterator[np.ndarray]:
    with open(file, "rb") as opened:
        while body := opened.read(BLOCK * FACTS.itemsize):
            yield np.frombuffer(body, dtype=FACTS)


def _columns(file: Path, names: Sequence[str]) -> Iterator[tuple[list[str], dict[str, list[Any]]]]:
    """Where some documents stand, and the named columns of them; ValueError, with file and place, if one is missing."""
    if not file.name.endswith(JSON_LINES):
        row = 0
        for batch in record_batches(file, names):
            places = [f"row {number}" for number in range(row + 1, row + batch.num_rows + 1)]
            yield places, {name: batch.column(name).to_pylist() for name in names}
            row += batch.num_rows
        return
    where: list[str] = []
    found: dict[str, list[Any]] = {name: [] for name in names}
    for number, document in objects(file):
        for name in names:
            if name not in document:
                raise ValueError(f"{file}, line {number}: no column {name!r}; it has {', '.join(document)}")
            found[name].append(document[name])
        where.append(f"line {number}")
        if len(where) == READ:
            yield where, found
            where, found = [], {name: [] for name in names}
    if where:
        yield where, found
