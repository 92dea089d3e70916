"""Documents read from files as a stream: JSON lines (also .gz), Parquet, and Arrow (IPC file or stream).

A file is read a few hundred documents at a time, whatever its size; nothing is held beyond that.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

READ = 256
"""Documents that are read at a time."""
JSON_LINES = (".jsonl", ".jsonl.gz", ".json.gz", ".ndjson")
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
    """Some documents: their domains, and their texts or token ids."""

    domains: list[str]
    contents: list[Any]

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
        read = _json_lines if file.name.endswith(JSON_LINES) else _parquet if file.name.endswith(PARQUET) else _arrow
        row = 0
        for domains, contents in read(file, columns):
            for domain, content in zip(domains, contents, strict=True):
                row += 1
                wanted = str if columns.text is not None else (list, np.ndarray)
                if domain is None or not isinstance(content, wanted):
                    name = columns.domain if domain is None else columns.content
                    raise ValueError(
                        f"{file}, row {row}: column {name!r} must hold "
                        + (
                            "a domain"
                            if domain is None
                            else "text"
                            if columns.text is not None
                            else "a list of token ids"
                        )
                        + f", got {None if domain is None else content!r}"
                    )
            yield Documents([str(domain) for domain in domains], list(contents))


def _json_lines(file: Path, columns: Columns) -> Iterator[tuple[list[Any], list[Any]]]:
    opened: Any = gzip.open if file.name.endswith(".gz") else open
    domains: list[Any] = []
    contents: list[Any] = []
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
                domains.append(document[columns.domain])
                contents.append(document[columns.content])
            except KeyError as error:
                raise ValueError(f"{file}, line {number}: no column {error}; it has {', '.join(document)}") from None
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: not a JSON object ({error})") from None
            if len(domains) == READ:
                yield domains, contents
                domains, contents = [], []
    if domains:
        yield domains, contents


def _parquet(file: Path, columns: Columns) -> Iterator[tuple[list[Any], list[Any]]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            _check_columns(file, opened.schema_arrow.names, columns)
            for batch in opened.iter_batches(READ, columns=[columns.domain, columns.content]):
                yield batch.column(columns.domain).to_pylist(), _values(batch.column(columns.content), columns)
    except ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error})") from None


def _arrow(file: Path, columns: Columns) -> Iterator[tuple[list[Any], list[Any]]]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        try:
            opened = pa.ipc.open_file(mapped)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pa.ArrowInvalid:
            mapped.seek(0)
            try:
                opened = batches = pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{file}: not an Arrow file or stream ({error})") from None
        _check_columns(file, opened.schema.names, columns)
        for batch in batches:
            for start in range(0, batch.num_rows, READ):
                piece = batch.slice(start, READ)
                yield piece.column(columns.domain).to_pylist(), _values(piece.column(columns.content), columns)


def _values(column: Any, columns: Columns) -> list[Any]:
    if columns.text is not None:
        return list(column.to_pylist())
    return [None if value is None else np.asarray(value.values) for value in column]


def _check_columns(file: Path, names: Sequence[str], columns: Columns) -> None:
    for name in (columns.domain, columns.content):
        if name not in names:
            raise ValueError(f"{file}: no column {name!r}; it has {', '.join(names)}")
