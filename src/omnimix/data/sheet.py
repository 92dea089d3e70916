"""Text and Parquet tables as pandas frames that know where in the file each row is."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .source import DataError, near, require

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
PARQUET = (".parquet", ".pq")
BLANKS = r"\s+"


@dataclass(frozen=True)
class Sheet:
    """The cells of a file and where in it they are."""

    path: Path
    frame: Any
    separator: str | None
    """None: Parquet."""
    header: bool

    @property
    def names(self) -> list[str]:
        return list(self.frame.columns)

    def at(self, row: int) -> str:
        """The place of a row as a user sees it: "line 18" of a text file, "row 17" of a Parquet file."""
        if self.separator is None:
            return f"row {row + 1}"
        for position, line in enumerate(_lines(self.path, self.separator), start=-self.header):
            if position == row:
                return f"line {line}"
        return f"record {row + 1}"

    def all_at(self, rows: Sequence[int]) -> str:
        """The places of the first few rows."""
        shown = self.at(rows[0]).split()[0] + ("s " if len(rows) > 1 else " ")
        shown += ", ".join(self.at(row).split()[1] for row in rows[:5])
        return shown if len(rows) <= 5 else f"{shown} and {len(rows) - 5} more"

    def cell(self, row: int, name: str) -> str:
        return f"{self.path}, {self.at(row)}, column {name!r}: {str(self.frame[name].iloc[row])!r}"


def read(path: Path) -> Sheet:
    """The sheet in `path`, by its suffix; DataError if it cannot be read or has no rows or doubled names."""
    pandas = require("pandas")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: there is no such file{near(path.name, beside)}")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in PARQUET:
        require("pyarrow")
        try:
            frame = pandas.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as Parquet ({error})") from error
        frame.columns = [str(column) for column in frame.columns]
        sheet = Sheet(path, frame.reset_index(drop=True), None, True)
    elif suffix in TEXT:
        sheet = _read_text(pandas, path, suffix)
    else:
        raise DataError(f"{path}: files of type {suffix!r} are not read; save it as CSV or Parquet")
    twice = [name for name in dict.fromkeys(sheet.names) if sheet.names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: several columns are named {twice[0]!r}; rename or remove all but one")
    if not len(sheet.frame):
        raise DataError(f"{path}: there is a header, but no rows")
    return sheet


def _read_text(pandas: Any, path: Path, suffix: str) -> Sheet:
    try:
        with _open(path) as file:
            first = next((line for line in file if line.strip()), "")
        if "\0" in first:
            raise DataError(f"{path} is no text, for it holds zero bytes; save the table as UTF-8 text or Parquet")
        separator = _separator(first, suffix)
        cells = _first(path, separator)
        names = [cell.strip() or f"column{i + 1}" for i, cell in enumerate(cells)]
        header = not all(_is_number(cell) for cell in cells)
        frame = pandas.read_csv(
            path, sep=separator, header=0 if header else None, na_values=["?"], skipinitialspace=True,
            low_memory=False, encoding="utf-8-sig",
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {_undecodable(path)}: not UTF-8 text; save the file as UTF-8") from error
    except (pandas.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    frame.columns = names if header else [f"column{i + 1}" for i in range(len(names))]
    return Sheet(path, frame, separator, header)


def _first(path: Path, separator: str) -> list[str]:
    """The cells of the first record; DataError for an empty file, and for a record of more or fewer cells than it has.

    pandas fills up records that are too short, and takes a name for every row from those that are all too long.
    """
    records = _records(path, separator)
    _, cells = next(records, (0, None))
    if cells is None:
        raise DataError(f"{path}: the file is empty")
    for line, more in records:
        if len(more) != len(cells):
            remedy = (
                "remove the extra separator or quote the text"
                if len(more) > len(cells)
                else "fill it up; a cell that is empty needs its separator, too"
            )
            raise DataError(
                f"{path}, line {line}: {len(more)} cells instead of {len(cells)} as in the header; {remedy}"
            )
    return cells


def _open(path: Path) -> Any:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line of its beginning, cells) of every record that is not blank, as pandas counts them."""
    with _open(path) as file:
        lines, delimiter = file, separator
        if separator == BLANKS:
            lines, delimiter = (line.strip().replace("\t", " ") + "\n" for line in file), " "
        reader, start = csv.reader(lines, delimiter=delimiter, skipinitialspace=True), 1
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield start, cells
            start = reader.line_num + 1


def _lines(path: Path, separator: str) -> Iterator[int]:
    return (line for line, _ in _records(path, separator))


def _separator(line: str, suffix: str) -> str:
    if suffix == ".tsv":
        return "\t"
    best = max((",", ";", "\t", "|"), key=line.count)
    if best in line:
        return best
    return BLANKS if suffix != ".csv" and len(line.split()) > 1 else ","


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _undecodable(path: Path) -> str:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        lines = (i for i, line in enumerate(file, 1) if "\ufffd" in line.decode("utf-8", errors="replace"))
        return f"line {next(lines, 1)}"
