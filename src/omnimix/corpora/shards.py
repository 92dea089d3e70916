"""The files of a corpus that are read and written as shards: rows in, the same rows with new columns out, in chunks.

JSON lines (also .gz, .zst), Parquet, and Arrow. The bytes of a chunk depend on its rows alone, those of a shard on its
chunks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.random import integers
from .annotation import shown
from .proxy.documents import JSON_LINES, PARQUET, READ, count_rows, ipc_file, objects, record_batches, schema_of

BLOCK = 2**20


def kind_of(file: Path) -> Lines | Records:
    """How the rows of a file are read and written."""
    return Lines(file) if file.name.endswith(JSON_LINES) else Records(file)


def documents(files: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of files, one after the other, read a few hundred at a time; each with its file and place there."""
    for file in files:
        kind = kind_of(file)
        for places, rows, _ in kind.batches(READ, 0):
            for place, document in zip(places, kind.documents(rows), strict=True):
                yield f"{file}, {place}", document


def sampled(files: Iterable[Path], count: int, generator: torch.Generator) -> list[tuple[str, dict[str, Any]]]:
    """`count` random rows of files, as of `documents`, or all if there are fewer; one pass, which holds only them."""
    source = np.random.default_rng(int(integers(2**31, 1, generator=generator)))
    kept: list[tuple[str, dict[str, Any]]] = []
    for seen, row in enumerate(documents(files), 1):
        if len(kept) < count:
            kept.append(row)
        elif (place := int(source.integers(seen))) < count:
            kept[place] = row
    return kept


class Lines:
    """JSON lines, plain or packed: a chunk is a whole member of the packed file, and members lie end to end."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def batches(self, size: int, skip: int) -> Iterator[tuple[list[str], list[dict[str, Any]], float]]:
        """Where the rows stand, the rows, and the share of the file that is read; `size` rows, but for the last."""
        position, whole = [0], max(1, self.file.stat().st_size)
        rows: list[dict[str, Any]] = []
        places: list[str] = []
        for number, row in objects(self.file, skip, position):
            rows.append(row)
            places.append(f"line {number}")
            if len(rows) == size:
                yield places, rows, position[0] / whole
                rows, places = [], []
        if rows:
            yield places, rows, 1.0

    def documents(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows

    def piece(
        self, rows: list[dict[str, Any]], columns: Mapping[str, list[Any]], keep: Sequence[str] | None,
        places: Sequence[str],
    ) -> bytes:  # fmt: skip
        new: list[dict[str, Any]] = [{} for _ in rows]
        for name, values in columns.items():
            for one, value in zip(new, values, strict=True):
                one[name] = value
        lines = [self._line(*one, keep) for one in zip(rows, new, places, strict=True)]
        return "".join(line + "\n" for line in lines).encode()

    def joined(
        self, types: dict[str, Any], piece: bytes, columns: Mapping[str, list[Any]], places: Sequence[str]
    ) -> dict[str, Any]:
        return {}

    def nothing(self, keep: Sequence[str] | None) -> list[bytes]:
        return []

    def _line(self, row: dict[str, Any], new: dict[str, Any], place: str, keep: Sequence[str] | None) -> str:
        try:
            whole = (row if keep is None else {name: row[name] for name in keep}) | new
            line = json.dumps(whole, ensure_ascii=False, allow_nan=False)
            # half a surrogate pair, which UTF-8 has not, is in the file as an escape
            return line if _encodable(line) else json.dumps(whole, allow_nan=False)
        except KeyError as error:
            raise ValueError(f"{self.file}, {place}: no column {error}; it has {', '.join(row)}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.file}, {place}: JSON cannot hold it ({error})") from None

    def size(self, piece: bytes) -> int:
        return len(piece)

    def encode(self, pieces: Sequence[bytes]) -> bytes:
        body = b"".join(pieces)
        if self.file.name.endswith(".gz"):
            return gzip.compress(body, 6, mtime=0)
        if self.file.name.endswith(".zst"):
            import pyarrow as pa

            return bytes(pa.compress(body, codec="zstd", asbytes=True))
        return body

    def join(self, parts: Sequence[Path], whole: Path) -> None:
        with open(whole, "wb") as out:
            for part in parts:
                with open(part, "rb") as piece:
                    shutil.copyfileobj(piece, out)


class Records:
    """Parquet and Arrow: a chunk is a table, which becomes a row group or record batches of the shard.

    A new column has one type in a shard: the one that holds the values of all chunks.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parquet = file.name.endswith(PARQUET)

    def batches(self, size: int, skip: int) -> Iterator[tuple[list[str], Any, float]]:
        import pyarrow as pa

        waiting: list[Any] = []
        whole, held, row = count_rows(self.file), 0, skip
        for found in record_batches(self.file, size=size, skip=skip):
            batch = found
            while held + batch.num_rows >= size:
                full = pa.Table.from_batches([*waiting, batch.slice(0, size - held)])
                yield self._places(row, size), full, (row + size) / max(1, whole)
                batch, row, waiting, held = batch.slice(size - held), row + size, [], 0
            if batch.num_rows:
                waiting.append(batch)
                held += batch.num_rows
        if waiting:
            yield self._places(row, held), pa.Table.from_batches(waiting), 1.0

    def _places(self, row: int, size: int) -> list[str]:
        return [f"row {number}" for number in range(row + 1, row + size + 1)]

    def documents(self, rows: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = rows.to_pylist()
        return found

    def piece(
        self, rows: Any, columns: Mapping[str, list[Any]], keep: Sequence[str] | None, places: Sequence[str]
    ) -> Any:
        import pyarrow as pa

        table = self._kept(rows, keep)
        for name, values in columns.items():
            try:
                table = table.append_column(name, pa.array(values))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # noqa: PERF203
                raise self._misfit(name, values, places) from None
        return table

    def _misfit(self, name: str, values: Sequence[Any], places: Sequence[str]) -> ValueError:
        """The error that tells the first value which Arrow cannot hold, or not with those before it."""
        import pyarrow as pa

        for n in range(1, len(values) + 1):
            for some, why in (
                (values[n - 1 : n], "Arrow cannot hold it"),
                (values[:n], "the rows before have another type"),
            ):
                try:
                    pa.array(some)
                except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:  # noqa: PERF203
                    got = shown(values[n - 1])
                    return ValueError(f"{self.file}, {places[n - 1]}: column {name!r} is {got}; {why} ({error})")
        raise AssertionError(name)

    def joined(
        self, types: dict[str, Any], piece: Any, columns: Mapping[str, list[Any]], places: Sequence[str]
    ) -> dict[str, Any]:
        """The types of the new columns of all pieces so far; ValueError for one that goes with no common type."""
        import pyarrow as pa

        found = dict(types)
        for name in columns:
            now = pa.schema([piece.schema.field(name)])
            try:
                found[name] = (
                    now if name not in types else pa.unify_schemas([types[name], now], promote_options="permissive")
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                at = next(i for i, value in enumerate(columns[name]) if value is not None)
                raise ValueError(
                    f"{self.file}, {places[at]}: column {name!r} is {shown(columns[name][at])}; the rows before have "
                    f"another type ({error})"
                ) from None
        return found

    def nothing(self, keep: Sequence[str] | None) -> list[Any]:
        """The piece of a file without rows; it has no new columns, as nothing tells their types."""
        return [self._kept(schema_of(self.file).empty_table(), keep)]

    def _kept(self, rows: Any, keep: Sequence[str] | None) -> Any:
        try:
            return rows if keep is None else rows.select(list(keep))
        except KeyError as error:
            raise ValueError(f"{self.file}: no column {error}; it has {', '.join(rows.column_names)}") from None

    def size(self, piece: Any) -> int:
        return int(piece.nbytes)

    def encode(self, pieces: Sequence[Any]) -> bytes:
        import pyarrow as pa

        whole = pa.concat_tables(pieces, promote_options="permissive").combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as out:
            out.write_table(whole)
        return bytes(sink.getvalue())

    def join(self, parts: Sequence[Path], whole: Path) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        def opened(part: Path) -> Any:
            return pa.ipc.open_stream(pa.memory_map(str(part)))

        schema = pa.unify_schemas([opened(part).schema for part in parts], promote_options="permissive")
        write = ParquetWriter if self.parquet else pa.ipc.new_file if ipc_file(self.file) else pa.ipc.new_stream
        with pa.OSFile(str(whole), "wb") as file, write(file, schema) as out:
            for part in parts:
                table = pa.concat_tables([schema.empty_table(), opened(part).read_all()], promote_options="permissive")
                out.write_table(table)


def _encodable(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def put(path: Path, body: bytes) -> None:
    """Write a file so that a kill leaves all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(body)
    rename(beside, path)


def rename(beside: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def sha256(file: Path) -> str:
    total = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(BLOCK):
            total.update(block)
    return total.hexdigest()
