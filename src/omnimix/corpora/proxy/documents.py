"""Documents read from files as a stream: JSON lines (also .gz, .zst), Parquet, and Arrow (IPC file or stream).

A file is read a few hundred documents at a time, whatever its size; nothing is held beyond that.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..annotation import shown

READ = 256
"""Documents that are read at a time."""
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")


@dataclass(frozen=True)
class Columns:
    """Where a document's domain is, and either its text or its token ids (a list of integers)."""

    domain: str = "domain"
    text: str | None = "text"
    tokens: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise ValueError(
                f"give the column of the text or that of the tokens: text={self.text!r}, tokens={self.tokens!r}"
            )

    @property
    def content(self) -> str:
        return self.text if self.text is not None else str(self.tokens)


@dataclass(frozen=True)
class Documents:
    """Some documents: their domains, their texts or token ids, and where they stand."""

    domains: list[str]
    contents: list[Any]
    places: list[str]

    def __len__(self) -> int:
        return len(self.domains)


def find_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files named, and those in the folders named, sorted; ValueError if there are none or one is unknown."""
    known = JSON_LINES + PARQUET + ARROW
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.name.endswith(known))
        elif not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        elif not path.name.endswith(known):
            raise ValueError(f"{path}: documents are read from files that end in {', '.join(known)}")
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no documents found in {paths}: files must end in {', '.join(known)}")
    return found


def read_documents(files: Sequence[Path], columns: Columns) -> Iterator[Documents]:
    """The documents of the files in order, up to `READ` at a time.

    ValueError, with file and row, for a document without domain or content.
    """
    for file in files:
        read = _json_lines if file.name.endswith(JSON_LINES) else _record_documents
        row = 0
        for domains, contents in read(file, columns):
            places = [f"{file}, row {number}" for number in range(row + 1, row + len(domains) + 1)]
            row += len(domains)
            for place, domain, content in zip(places, domains, contents, strict=True):
                if domain is None:
                    raise ValueError(f"{place}: column {columns.domain!r} must hold a domain, got None")
                if not (isinstance(content, str) if columns.text is not None else _token_ids(content)):
                    wanted = "text" if columns.text is not None else "a list of token ids"
                    raise ValueError(f"{place}: column {columns.content!r} must hold {wanted}, got {shown(content)}")
            yield Documents([str(domain) for domain in domains], list(contents), places)


def _token_ids(content: Any) -> bool:
    if not isinstance(content, (list, np.ndarray)):
        return False
    try:
        found = np.asarray(content)
    except ValueError:  # lists of different lengths within it
        return False
    return found.ndim == 1 and (not found.size or found.dtype.kind in "iu")


def objects(file: Path, skip: int = 0, position: list[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line (from 1), without the first `skip`.

    Blank lines are passed over. position: a list whose first number is kept at the bytes read so far, packed as they
    are. ValueError, with file and line, for what is no object.
    """
    number = 0
    try:
        with open(file, "rb") as raw, _text(file, raw) as lines:
            for number, line in enumerate(lines, 1):
                if position is not None:
                    position[0] = raw.tell()
                if not line.strip():
                    continue
                if skip:
                    skip -= 1
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    why = "it is nested too deeply" if isinstance(error, RecursionError) else error
                    raise ValueError(f"{file}, line {number}: not a JSON object ({why})") from None
                if not isinstance(found, dict):
                    raise ValueError(f"{file}, line {number}: not a JSON object, but {line.strip()[:40]}")
                yield number, found
    except (EOFError, zlib.error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read beyond line {number} ({error})") from None


def _text(file: Path, raw: Any) -> io.TextIOWrapper:
    """The lines of an opened file, whatever it is packed with."""
    unpacked: Any = raw
    if file.name.endswith(".zst"):
        import pyarrow as pa

        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    elif file.name.endswith(".gz"):
        unpacked = gzip.GzipFile(fileobj=raw)
    return io.TextIOWrapper(unpacked, encoding="utf-8")


def record_batches(file: Path, columns: Sequence[str] | None = None, size: int = READ, skip: int = 0) -> Iterator[Any]:
    """The rows of a Parquet or Arrow file as record batches of `size` or less, without the first `skip` rows.

    ValueError, with the file, where a column is missing or the file is another.
    """
    import pyarrow as pa

    read, kind = (
        (_parquet, "a Parquet file") if file.name.endswith(PARQUET) else (_arrow, "an Arrow file or stream")
    )  # fmt: skip
    try:
        for batch in read(file, columns, size, skip):
            for start in range(0, batch.num_rows, size):
                yield batch.slice(start, size)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not {kind} ({error})") from None


def schema_of(file: Path) -> Any:
    """The Arrow schema of a Parquet or Arrow file."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    if file.name.endswith(PARQUET):
        return read_schema(file)
    with pa.OSFile(str(file)) as source:
        return (pa.ipc.open_file if ipc_file(file) else pa.ipc.open_stream)(source).schema


def count_rows(file: Path) -> int:
    """The rows of a Parquet or Arrow file."""
    if file.name.endswith(PARQUET):
        from pyarrow.parquet import read_metadata

        return int(read_metadata(file).num_rows)
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        if not ipc_file(file):
            return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
        opened = pa.ipc.open_file(source)
        return sum(opened.get_batch(i).num_rows for i in range(opened.num_record_batches))


def ipc_file(file: Path) -> bool:
    """Whether an Arrow file is of the IPC file format; the other is the stream."""
    with open(file, "rb") as opened:
        return opened.read(6) == b"ARROW1"


def _json_lines(file: Path, columns: Columns) -> Iterator[tuple[list[Any], list[Any]]]:
    domains: list[Any] = []
    contents: list[Any] = []
    for number, document in objects(file):
        try:
            domains.append(document[columns.domain])
            contents.append(document[columns.content])
        except KeyError as error:
            raise ValueError(f"{file}, line {number}: no column {error}; it has {', '.join(document)}") from None
        if len(domains) == READ:
            yield domains, contents
            domains, contents = [], []
    if domains:
        yield domains, contents


def _record_documents(file: Path, columns: Columns) -> Iterator[tuple[list[Any], list[Any]]]:
    for batch in record_batches(file, [columns.domain, columns.content]):
        yield batch.column(columns.domain).to_pylist(), _values(batch.column(columns.content), columns)


def _parquet(file: Path, columns: Sequence[str] | None, size: int, skip: int) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file, pre_buffer=False) as opened:
        _check_columns(file, opened.schema_arrow.names, columns)
        group, groups = 0, opened.num_row_groups
        while group < groups and (rows := opened.metadata.row_group(group).num_rows) <= skip:
            group, skip = group + 1, skip - rows
        wanted = None if columns is None else list(columns)
        yield from _after(skip, opened.iter_batches(size, row_groups=range(group, groups), columns=wanted))


def _arrow(file: Path, columns: Sequence[str] | None, size: int, skip: int) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        opened: Any
        if ipc_file(file):
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            opened = batches = pa.ipc.open_stream(source)
        _check_columns(file, opened.schema.names, columns)
        for batch in _after(skip, batches):
            yield batch if columns is None else batch.select(list(columns))


def _after(skip: int, batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if skip < batch.num_rows:
            yield batch.slice(skip)
        skip = max(0, skip - batch.num_rows)


def _values(column: Any, columns: Columns) -> list[Any]:
    if columns.text is not None:
        return list(column.to_pylist())
    return [None if value is None else np.asarray(value.values) for value in column]


def _check_columns(file: Path, names: Sequence[str], columns: Sequence[str] | None) -> None:
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{file}: no column {name!r}; it has {', '.join(names)}")
