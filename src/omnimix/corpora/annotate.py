"""Annotate a corpus shard by shard: the rows of every file, with new columns beside them, in a file of the same kind.

A shard grows in chunks, each written beside its place, flushed and renamed; a finished shard is its chunks, one after
the other, renamed into place as a whole. A job that was killed goes on after the last chunk, and ends with the bytes of
one that was not. Memory does not grow with the corpus: some thousand rows are held at a time.

    OUT/a.jsonl.gz, ..., OUT/manifest.json; and, while it lasts, OUT/.annotate/a.jsonl.gz/000000004096-4096.part
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.checks import at_least
from .annotation import Annotator, annotated
from .proxy.documents import find_files
from .shards import Lines, Records, kind_of, put, rename, sha256

FORMAT = "omnimix-annotation-1"
MANIFEST = "manifest.json"
WORK = ".annotate"
"""The folder, inside that of the output, of what a job needs to go on."""
BATCH = 64
CHUNK = 4096
LARGE = 2**25
"""Bytes at which a chunk is written though it has fewer rows."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Shard:
    """An input file, and the name of its output inside the folder."""

    source: Path
    name: str


@dataclass(frozen=True)
class Job:
    """What is annotated, into which folder, how; `identity` says by what, for a job that goes on later.

    keep: the columns that the output has of the input; None: all. batch: documents of a call of the annotator.
    chunk: rows that are written at a time. work: what the identity is of, for messages.
    """

    shards: tuple[Shard, ...]
    out: Path
    identity: str
    keep: tuple[str, ...] | None = None
    batch: int = BATCH
    chunk: int = CHUNK
    work: str = "annotator"

    def facts(self) -> dict[str, Any]:
        """All that decides the output, but the content of the files."""
        keep = None if self.keep is None else list(self.keep)
        return {
            "format": FORMAT, "version": __version__, self.work: self.identity, "keep": keep, "batch": self.batch,
            "chunk": self.chunk, "files": [shard.name for shard in self.shards],
        }  # fmt: skip


@dataclass(frozen=True)
class Annotated:
    """A finished shard. source: size and hash of the input."""

    name: str
    rows: int
    size: int
    sha256: str
    source: dict[str, Any]


class Together:
    """Several annotators as one; each sees the documents as they are in the file.

    names: other names for columns that they give, as {"quality": "fluency"}.
    """

    def __init__(self, annotators: Sequence[Annotator], names: Mapping[str, str] | None = None) -> None:
        self.annotators, self.names = list(annotators), dict(names or {})
        if not self.annotators:
            raise ValueError("there is nothing to annotate with")

    def annotate(self, documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {}
        for one in self.annotators:
            for name, values in one.annotate(documents).items():
                if name in columns:
                    raise ValueError(
                        f"two annotators give a column {name!r}: annotate with one of them, and what that wrote with "
                        f"the other, under another name (on the command line: --rename {name}=NAME)"
                    )
                columns[name] = values
        for name in self.names:
            if name not in columns:
                raise ValueError(f"there is no new column {name!r} to rename; new are {', '.join(columns)}")
        renamed = {self.names.get(name, name): values for name, values in columns.items()}
        if len(renamed) < len(columns):
            raise ValueError(f"{self.names} gives two columns of {', '.join(columns)} the same name")
        return renamed


def annotate(
    paths: str | Path | Sequence[str | Path],
    annotator: Annotator,
    out: str | Path,
    *,
    identity: str | None = None,
    keep: Sequence[str] | None = None,
    batch: int = BATCH,
    chunk: int = CHUNK,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Annotate the files of `paths` into the folder `out`, in this process; gives the manifest.

    The same call continues a job that was stopped. identity: what the annotator is, for that; default: its class and a
    hash of its pickle. See `Job` for the rest; `omnimix.compare.annotations` has the same for many processes and
    machines. ValueError, with file and row, for what cannot be read or annotated, and for a folder of another job.
    """
    job = prepare(paths, out, identity or fingerprint(annotator), keep=keep, batch=batch, chunk=chunk)
    sizes = [shard.source.stat().st_size for shard in job.shards]
    with locked(job):
        for number, shard in enumerate(job.shards):
            before, whole = sum(sizes[:number]), max(1, sum(sizes))

            def tell(share: float, before: int = before, size: int = sizes[number], whole: int = whole) -> None:
                progress((before + share * size) / whole)

            annotate_shard(job, shard, annotator, tell)
        return finish(job)


def prepare(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    identity: str,
    *,
    keep: Sequence[str] | None = None,
    batch: int = BATCH,
    chunk: int = CHUNK,
    work: str = "annotator",
) -> Job:
    """The job, new or as it was left; ValueError for a folder that holds another one, or something else."""
    folder, found = Path(out), _shards(paths)
    at_least("chunk", chunk, at_least("batch", batch, 1))
    job = Job(tuple(found), folder, identity, None if keep is None else tuple(keep), batch, chunk, work)
    for shard in found:
        if folder.resolve() in shard.source.resolve().parents:
            raise ValueError(f"the input {shard.source} lies in the output folder {folder}: choose another folder")
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if Path(path).is_dir() and Path(path).resolve() in folder.resolve().parents:
            raise ValueError(f"the output folder {folder} lies in the input {path}: choose another folder")
    facts, known = job.facts(), folder / WORK / "job.json"
    if known.exists():
        _refuse_another(folder, json.loads(known.read_text()), facts)
        return job
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: choose a new or empty folder")
    known.parent.mkdir(parents=True, exist_ok=True)
    put(known, (json.dumps(facts, indent=1) + "\n").encode())
    return job


def annotate_shard(job: Job, shard: Shard, annotator: Annotator, progress: Progress = lambda share: None) -> Annotated:
    """One shard, from where it was left; at once if it is finished."""
    parts, record, target = job.out / WORK / shard.name, job.out / WORK / f"{shard.name}.json", job.out / shard.name
    known = parts / "source.json"
    source = source_of(shard.source, [record, known])
    if record.exists():
        done = Annotated(**json.loads(record.read_text()))
        if target.exists() and target.stat().st_size == done.size:
            shutil.rmtree(parts, ignore_errors=True)  # a kill may have come before this
            return done
        record.unlink()
    if not known.exists():
        put(known, json.dumps(source).encode())
    kind = kind_of(shard.source)
    there = _parts(parts)
    for first, count, body in _chunks(job, shard.source, annotator, kind, sum(n for _, n in there), progress):
        put(parts / f"{first:012d}-{count}.part", body)
    there = _parts(parts)
    beside = parts / "whole"
    kind.join([path for path, _ in there], beside)
    rows = sum(count for _, count in there)
    done = Annotated(shard.name, rows, beside.stat().st_size, sha256(beside), source)
    put(record, json.dumps(vars(done)).encode())
    rename(beside, target)
    shutil.rmtree(parts, ignore_errors=True)
    return done


def finish(job: Job) -> dict[str, Any]:
    """Write the manifest of a job all of whose shards are finished."""
    shards = []
    for shard in job.shards:
        done = json.loads((job.out / WORK / f"{shard.name}.json").read_text())
        del done["source"]["modified"]
        shards.append(done)
    manifest = {**job.facts(), "rows": sum(shard["rows"] for shard in shards), "shards": shards}
    put(job.out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def fingerprint(annotator: Annotator) -> str:
    """The class of an annotator, and a hash of what is in it.

    What use changes is left out where a part has a method `contents()`, whose value stands for it.
    """
    from joblib.externals.loky.backend.reduction import get_loky_pickler  # also takes classes of a script

    class Hashed(get_loky_pickler()):  # type: ignore[misc]
        def reducer_override(self, part: Any) -> Any:
            if not isinstance(part, type) and callable(getattr(part, "contents", None)):
                return dict, (part.contents(),)
            return super().reducer_override(part)

    body, kind = io.BytesIO(), type(annotator)
    Hashed(body).dump(annotator)
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(body.getvalue()).hexdigest()[:16]}"


def fingerprint_of(*saved: str | Path) -> str:
    """A hash of the files of a saved annotator, named themselves or by their folder."""
    total = hashlib.sha256()
    for place in map(Path, saved):
        for file in sorted(path for path in [place, *place.rglob("*")] if path.is_file()):
            total.update(f"{file.relative_to(place)} {sha256(file)}\n".encode())
    return total.hexdigest()[:16]


@contextmanager
def locked(job: Job) -> Iterator[None]:
    """One job at a time works on a folder; ValueError for a second. It ends with its process, however that happens."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with open(job.out / WORK / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is writing into {job.out}") from None
        yield


def _shards(paths: str | Path | Sequence[str | Path]) -> list[Shard]:
    found: dict[str, Shard] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for file in find_files(path):
            name = file.relative_to(path).as_posix() if Path(path).is_dir() else file.name
            if name in found:
                raise ValueError(
                    f"{found[name].source} and {file} would both be written as {name}: give them to separate calls"
                )
            found[name] = Shard(file, name)
    return list(found.values())


def _refuse_another(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if old.get(name) != value:
            raise ValueError(
                f"{folder} holds a job with another {name}: {_short(old.get(name))}, now {_short(value)}; "
                "choose another folder, or remove it"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def source_of(file: Path, records: Sequence[Path]) -> dict[str, Any]:
    """Size and hash of an input; ValueError if they are not what they were when the job began on it.

    A file whose size and time of change are the same is not read again.
    """
    state = file.stat()
    old: dict[str, Any] | None = None
    for record in records:
        if old is None and record.exists():
            found = json.loads(record.read_text())
            old = found.get("source", found)
    if old is not None and (old["size"], old["modified"]) == (state.st_size, state.st_mtime_ns):
        return old
    now = {"size": state.st_size, "sha256": sha256(file), "modified": state.st_mtime_ns}
    if old is not None and old["sha256"] != now["sha256"]:
        raise ValueError(f"{file} has changed since the job began: annotate into another folder")
    return old or now


def _parts(folder: Path) -> list[tuple[Path, int]]:
    """The chunks from the first row on: file, and number of rows."""
    found: list[tuple[Path, int]] = []
    reached = 0
    for path in sorted(folder.glob("*.part")):
        first, count = map(int, path.stem.split("-"))
        if first != reached:
            break
        found.append((path, count))
        reached += count
    return found


def _chunks(
    job: Job, file: Path, annotator: Annotator, kind: Lines | Records, skip: int, progress: Progress
) -> Iterator[tuple[int, int, bytes]]:
    """First row, number of rows and bytes of the chunks after `skip` rows; an empty file has one of no rows."""
    pieces: list[Any] = []
    types: dict[str, Any] = {}
    first, count, size = skip, 0, 0
    for places, rows, share in kind.batches(job.batch, skip):
        documents = kind.documents(rows)
        columns = _annotated(annotator, documents, file, places)
        piece = kind.piece(rows, columns, job.keep, places)
        types = kind.joined(types, piece, columns, places)
        pieces.append(piece)
        count, size = count + len(places), size + kind.size(piece)
        progress(share)
        if count >= job.chunk or size >= LARGE:
            yield first, count, kind.encode(pieces)
            first, pieces, count, size = first + count, [], 0, 0
    if pieces or first == 0:
        yield first, count, kind.encode(pieces or kind.nothing(job.keep))


def _annotated(
    annotator: Annotator, documents: Sequence[Mapping[str, Any]], file: Path, places: Sequence[str]
) -> dict[str, list[Any]]:
    """The columns, as JSON and Arrow take them; ValueError that names the row which the annotator does not take."""
    try:
        columns = annotated(annotator, documents)
        return {n: [v.tolist() if hasattr(v, "tolist") else v for v in values] for n, values in columns.items()}
    except (ValueError, OverflowError) as error:
        for document, place in zip(documents, places, strict=True):
            if (fault := _fault(annotator, document)) is not None:
                raise ValueError(f"{file}, {place}: {fault}") from error
        raise ValueError(f"{file}, {places[0]} to {places[-1]}: {error}") from error


def _fault(annotator: Annotator, document: Mapping[str, Any]) -> Exception | None:
    try:
        annotated(annotator, [document])
    except (ValueError, OverflowError) as error:
        return error
    return None
