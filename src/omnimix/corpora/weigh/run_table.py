"""The table of finished runs: the mixture of each and the losses that it reached, read from CSV files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from .base import Array

KEYS = ("run", "index")
LABELS = ("run", "name", "index")
"""Columns that name a run; the others are numbers."""
SUM_TOLERANCE = 0.01
"""How far rounded weights of a row may sum from 1."""


@dataclass(frozen=True, eq=False)
class RunTable:
    """Runs as rows: (n, k) weights over `domains` and (n, m) losses, columns `metrics`; `runs` are their names.

    With `amounts` the weights are amounts (as millions of tokens) instead of shares.
    """

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    weights: Array
    losses: Array
    runs: tuple[str, ...]
    amounts: bool = False

    @classmethod
    def read(cls, mixtures: str | Path, losses: str | Path, *, amounts: bool = False) -> RunTable:
        """Join two CSV files on their column "run", else "index", whatever the order of their rows.

        mixtures: one column a domain. losses: one column a metric. ValueError that names file, line and column for
        cells that are no number, weights below 0, rows whose weights sum to less than 0.99 or more than 1.01 (unless
        `amounts`), runs that occur twice, and runs that only one of the files has.
        """
        left, right = _Sheet(Path(mixtures)), _Sheet(Path(losses))
        key = next((k for k in KEYS if k in left.header and k in right.header), None)
        if key is None:
            raise ValueError(
                f"{mixtures} and {losses} must share a column named {' or '.join(map(repr, KEYS))} to be joined on; "
                f"they begin with {left.header[0]!r} and {right.header[0]!r}"
            )
        domains, weights = left.numbers(key)
        metrics, values = right.numbers(key)
        for run, row in weights.items():
            negative = np.flatnonzero(row < 0)
            if len(negative):
                raise ValueError(f"{left.cell(run, domains[negative[0]])}: a weight is never below 0")
            if not amounts and abs(row.sum() - 1) > SUM_TOLERANCE:
                raise ValueError(
                    f"{mixtures}, line {left.lines[run]}: the weights of {key} {run} sum to {row.sum():.4g}, not to 1; "
                    "columns that are no domain must go (token amounts are for the law dmo only)"
                )
        for one, other, name in ((weights, values, losses), (values, weights, mixtures)):
            missing = [run for run in one if run not in other]
            if missing:
                raise ValueError(
                    f"{name} has no row for {key} {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} "
                    f"({len(missing)} of {len(one)} runs of the other file): do both count from the same number?"
                )
        runs = tuple(weights)
        return cls(
            domains, metrics, np.array([weights[r] for r in runs]), np.array([values[r] for r in runs]), runs, amounts
        )

    def __len__(self) -> int:
        return len(self.runs)

    def loss(self, metric: str) -> Array:
        """(n,) the losses of a column."""
        return self.losses[:, self.metrics.index(self.metric(metric))]

    def metric(self, name: str) -> str:
        """The column that `name` means: its exact name, or what tells it from the others, as "pile-cc"."""
        return _find("target", name, self.metrics)

    def domain(self, name: str) -> str:
        """The domain that `name` means."""
        return _find("domain", name, self.domains)

    def own_domain(self, metric: str) -> int:
        """The position of the domain whose own loss the column is, by name; ValueError if no name fits."""
        short = dict(zip(self.metrics, short_names(self.metrics), strict=True))[self.metric(metric)]
        names = [_plain(name) for name in short_names(self.domains)]
        if _plain(short) not in names:
            raise ValueError(
                f"this law is of a domain's own loss, but no domain is named like {metric!r} "
                f"({', '.join(short_names(self.domains))}): give the columns the same names in both files"
            )
        return names.index(_plain(short))

    def take(self, rows: Sequence[int] | Array) -> RunTable:
        """Some of the runs."""
        chosen = np.asarray(rows)
        runs = tuple(self.runs[row] for row in chosen)
        return RunTable(self.domains, self.metrics, self.weights[chosen], self.losses[chosen], runs, self.amounts)

    def ordered(self, domains: Sequence[str]) -> RunTable:
        """The same runs with their domains in another order; ValueError if the domains differ."""
        if set(domains) != set(self.domains):
            raise ValueError(
                f"the runs must be over the same domains: {sorted(set(domains) ^ set(self.domains))} are only in one"
            )
        columns = [self.domains.index(domain) for domain in domains]
        return RunTable(
            tuple(domains), self.metrics, self.weights[:, columns], self.losses, self.runs, self.amounts
        )  # fmt: skip


def write_mixtures(path: str | Path, domains: Sequence[str], weights: Array, first: int = 1) -> None:
    """Write (n, k) weights as a CSV file with the columns index (from `first`) and one a domain."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["index", *domains])
        # repr of a rounded float: 0.0002, not 0.00020000000000000001
        table.writerows([number, *(f"{w:.12g}" for w in row)] for number, row in enumerate(weights, start=first))


def read_mixtures(path: str | Path) -> tuple[tuple[str, ...], dict[str, Array]]:
    """The domains, and run -> its weights (k,), of what `write_mixtures` wrote; ValueError as in `RunTable.read`."""
    sheet = _Sheet(Path(path))
    key = next((k for k in KEYS if k in sheet.header), None)
    if key is None:
        raise ValueError(f"{path} must have a column named {' or '.join(map(repr, KEYS))}")
    domains, weights = sheet.numbers(key)
    for run, row in weights.items():
        if (row < 0).any() or abs(row.sum() - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"{path}, line {sheet.lines[run]}: the weights of {key} {run} must be >= 0 and sum to 1, "
                f"they sum to {row.sum():.4g}"
            )
    return domains, weights


def read_sizes(path: str | Path) -> dict[str, float]:
    """Numbers of domains (tokens, or shares) from a CSV file with two columns and a header, domain first."""
    sheet = _Sheet(Path(path))
    if len(sheet.header) != 2:
        raise ValueError(f"{path} must have two columns, the domain and its number, got {', '.join(sheet.header)}")
    sizes: dict[str, float] = {}
    for line, (domain, text) in sheet.rows:
        number = _number(text, f"{path}, line {line}, column {sheet.header[1]!r}")
        if number < 0 or domain in sizes:
            raise ValueError(f"{path}, line {line}: {domain!r} is {'there twice' if domain in sizes else 'below 0'}")
        sizes[domain] = number
    return sizes


def short_names(columns: Sequence[str]) -> list[str]:
    """The columns without what all of them begin and end with, cut at separators: train_the_pile_X -> X."""
    if len(columns) < 2:
        return list(columns)
    parts = [re.split(r"(?<=[^0-9A-Za-z])", column) for column in columns]
    head = _shared(parts)
    tails = [re.split(r"(?=[^0-9A-Za-z])", column)[::-1] for column in columns]
    tail = _shared(tails)
    short = []
    for column, words, ends in zip(columns, parts, tails, strict=True):
        start, stop = sum(map(len, words[:head])), len(column) - sum(map(len, ends[:tail]))
        short.append(column[start:stop] or column)
    return short if len(set(short)) == len(short) else list(columns)


def _shared(words: Sequence[Sequence[str]]) -> int:
    """How many first words all have in common, never all of one's words."""
    most = min(map(len, words)) - 1
    return next((n for n in range(most) if len({one[n] for one in words}) > 1), most)


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _find(what: str, name: str, columns: Sequence[str]) -> str:
    if name in columns:
        return name
    short: Mapping[str, str] = {_plain(s): c for c, s in zip(columns, short_names(columns), strict=True)}
    if _plain(name) in short:
        return short[_plain(name)]
    near = get_close_matches(_plain(name), short, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(short[n]) for n in near)}?" if near else ""
    raise ValueError(f"there is no {what} {name!r}{hint} All: {', '.join(columns)}")


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {text!r} is not a finite number")
    return number


class _Sheet:
    """A CSV file with a header, that knows on which line each row is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            self.header = [name.strip() for name in next(reader, [])]
            self.rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        twice = [name for name in self.header if self.header.count(name) > 1]
        if len(self.header) < 2 or twice:
            raise ValueError(f"{path}: {f'column {twice[0]!r} is there twice' if twice else 'needs a header of names'}")
        for line, row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{path}, line {line}: {len(row)} cells, but the header names {len(self.header)}")
        if not self.rows:
            raise ValueError(f"{path}: there is no row below the header")
        self.lines: dict[str, int] = {}

    def numbers(self, key: str) -> tuple[tuple[str, ...], dict[str, Array]]:
        """The number columns, and run -> its numbers."""
        at = self.header.index(key)
        columns = [i for i, name in enumerate(self.header) if i != at and name not in LABELS]
        table: dict[str, Array] = {}
        for line, row in self.rows:
            run = row[at]
            if run in table:
                raise ValueError(
                    f"{self.path}, line {line}: {key} {run} is there twice, first on line {self.lines[run]}"
                )
            self.lines[run] = line
            table[run] = np.array(
                [_number(row[i], f"{self.path}, line {line}, column {self.header[i]!r}") for i in columns]
            )
        return tuple(self.header[i] for i in columns), table

    def cell(self, run: str, column: str) -> str:
        return f"{self.path}, line {self.lines[run]}, column {column!r}"
