"""CSV and Parquet files of users: columns made into numbers, targets recognised, bad cells refused with their place.

Text becomes one 0/1 column a level (a missing cell is a level of its own); missing numbers stay NaN and are imputed by
`Scaler` from the training rows. What was changed or assumed is in `Source.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.task import Classification, MultiLabel, Regression, Task
from .sheet import Sheet, read
from .source import DataError, Source, check_classes, near, require

TASKS = ("auto", "classification", "regression")
MAX_CATEGORIES = 50
"""Levels of a text column above which it is refused."""
MOSTLY = 0.8
"""A column is numeric if at least this share of its cells are numbers; the others are then errors."""
FEW = 20
"""Whole numbers with at most this many values are classes unless the user says otherwise."""
IDENTIFIER = re.compile(r"(.*[_\s])?(id|idx|index|no|nr|row|rownames|#)|.*[a-z]Id", re.ASCII)
UNNAMED = re.compile(r"column\d+")


def load_table(
    path: Path,
    target: str | Sequence[str] | None = None,
    task: str = "auto",
    drop: str | Sequence[str] = (),
    domain: str | None = None,
    max_categories: int = MAX_CATEGORIES,
) -> Source:
    """The Source in a CSV (also .tsv, .txt, .dat; .gz) or Parquet file.

    target: a column, or several ("a,b,c" or a sequence): several of 0 and 1 are labels, other numbers a vector.
    task "auto": text and booleans are classes; so are whole numbers with at most 20 values; other numbers are
    regression. drop: columns to leave out. domain: a column whose levels are domains; it is no input. A file without a
    header (its first line holds numbers only) has columns column1, column2, ... DataError with file, line, column and
    remedy for what cannot be used.
    """
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}")
    sheet = read(path)
    notes = [] if sheet.header else [f"no header: the columns are {sheet.names[0]} to {sheet.names[-1]}"]
    if target is None:
        raise DataError(f"{path}: say which column to predict (--target NAME); columns: {_some(sheet.names)}")
    targets = _columns(sheet, target, "target")
    dropped = _columns(sheet, drop, "drop") if drop else []
    domains = _columns(sheet, [domain], "domain") if domain is not None else []
    for what, column in [("drop", c) for c in dropped] + [("domain", c) for c in domains]:
        if column in targets or (what == "drop" and column in domains):
            raise DataError(f"{path}: column {column!r} is the target or the domain and cannot be {what!r} too")
    y, found, class_names, note = _target(sheet, targets, task)
    codes, domain_names = _levels(sheet, domains[0]) if domains else (None, ())
    used = [c for c in sheet.names if c not in (*targets, *dropped, *domains)]
    x, features, said = _features(sheet, used, max_categories)
    return Source(
        path.name.split(".")[0],
        x,
        y,
        found,
        "table",
        codes,
        domain_names,
        class_names,
        features,
        tuple(targets),
        notes=(*notes, note, *said),
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _columns(sheet: Sheet, wanted: str | Sequence[str], what: str) -> list[str]:
    if isinstance(wanted, str):
        wanted = [wanted] if wanted in sheet.names else [part.strip() for part in wanted.split(",")]
    for name in wanted:
        if name not in sheet.names:
            raise DataError(
                f"{sheet.path}: there is no column {name!r} (--{what}){near(name, sheet.names)} "
                f"Columns: {_some(sheet.names)}"
            )
    return list(dict.fromkeys(wanted))


def _numbers(sheet: Sheet, name: str, optional: bool = True) -> Any:
    """The column as float64, NaN where missing; None if it is text. DataError for a few words among numbers.

    optional: the column may have gaps or be left out, which the messages then offer as a remedy.
    """
    pandas = require("pandas")
    column = sheet.frame[name]
    kinds = pandas.api.types
    if kinds.is_datetime64_any_dtype(column) or kinds.is_timedelta64_dtype(column):
        raise DataError(
            f"{sheet.path}: column {name!r} holds dates; make numbers of them (--drop {name} leaves it out)"
        )
    column = column.astype(object) if isinstance(column.dtype, pandas.CategoricalDtype) else column
    known = column.notna().to_numpy()
    if not kinds.is_numeric_dtype(column):
        cells = column if column.dtype == object else ()
        nested = [i for i, value in enumerate(cells) if isinstance(value, (list, tuple, dict, np.ndarray))]
        if nested:
            raise DataError(f"{sheet.path}, {sheet.at(nested[0])}, column {name!r}: a cell holds several values; "
                            f"give each a column of its own (--drop {name} leaves it out)")  # fmt: skip
        text = column[column.notna()].astype(str)
        if len(text) and text.str.fullmatch(r"[-+]?\d+,\d+").mean() >= MOSTLY:
            raise DataError(f"{sheet.cell(int(known.argmax()), name)} has a decimal comma; save with decimal points")
    values = pandas.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    words = known & np.isnan(values)
    if words.sum() > (1 - MOSTLY) * known.sum():
        return None
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    for wrong, what in ((words, "no number, as the others are"), (infinite, "infinite or too large")):
        if wrong.any():
            more = f" (and {wrong.sum() - 1} more such cells)" if wrong.sum() > 1 else ""
            remedy = f"leave the cell empty, or leave the column out (--drop {name})" if optional else "remove the row"
            raise DataError(f"{sheet.cell(int(wrong.argmax()), name)} is {what}{more}; correct it, or {remedy}")
    return values


def _text(sheet: Sheet, name: str) -> Any:
    """The column as stripped text; missing cells are whatever they print as."""
    return sheet.frame[name].astype(object).map(lambda value: str(value).strip()).to_numpy(dtype=str)


def _features(sheet: Sheet, names: Sequence[str], cap: int) -> tuple[Tensor, tuple[str, ...], list[str]]:
    """(x, names of its columns, notes)."""
    blocks, features, notes = [], [], []
    for name in names:
        missing = sheet.frame[name].isna().to_numpy()
        if missing.all():
            notes.append(f"column {name!r} is empty: left out")
            continue
        values = _numbers(sheet, name)
        if values is not None:
            counts = _counts_rows(values)
            if (counts and UNNAMED.fullmatch(name)) or (_is_identifier(name) and _all_different(values)):
                notes.append(f"column {name!r} has another whole number in every row, like an identifier: left out")
                continue
            if counts:
                notes.append(f"column {name!r} counts up with the rows; is it an input (--drop {name} leaves it out)?")
            if missing.any():
                notes.append(f"column {name!r}: {missing.sum()} missing, imputed by the median of the training rows")
            blocks.append(values[:, None])
            features.append(name)
            continue
        text = _text(sheet, name)
        levels = np.unique(text[~missing])
        if len(levels) == len(text):
            notes.append(f"column {name!r} has another text in every row, like an identifier: left out")
            continue
        if len(levels) > cap:
            raise DataError(
                f"{sheet.path}: column {name!r} has {len(levels)} different texts, at most {cap} are made into inputs; "
                f"leave it out (--drop {name}), group its values, or raise max_categories"
            )
        shown = [f"{name}={level}" for level in levels] + ([f"{name}=(missing)"] if missing.any() else [])
        codes = np.where(missing, len(levels), np.searchsorted(levels, text))
        blocks.append(np.eye(len(shown))[codes])
        features.extend(shown)
        told = f", {missing.sum()} missing as a level of their own" if missing.any() else ""
        notes.append(f"column {name!r}: {len(levels)} texts, one 0/1 input each{told}")
    if not blocks:
        raise DataError(f"{sheet.path}: no column is left to predict from")
    x = torch.from_numpy(np.concatenate(blocks, axis=1, dtype=np.float32))
    return x, tuple(features), notes


def _is_identifier(name: str) -> bool:
    return bool(IDENTIFIER.fullmatch(name) or IDENTIFIER.fullmatch(name.lower()))


def _all_different(values: Any) -> bool:
    return bool((values == np.round(values)).all()) and len(np.unique(values)) == len(values)


def _counts_rows(values: Any) -> bool:
    return len(values) > 2 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _levels(sheet: Sheet, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """(ids, names) of the domains; numbers are ordered as numbers."""
    _no_gaps(sheet, name, "domain")
    values = _numbers(sheet, name, optional=False)
    levels, codes = np.unique(_text(sheet, name) if values is None else values, return_inverse=True)
    names = tuple(str(level) if values is None else _written(level) for level in levels)
    return torch.from_numpy(codes.astype(np.int64)), names


def _written(value: float) -> str:
    """A number as text: whole ones as such, others with all their digits, so that different ones stay different."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _no_gaps(sheet: Sheet, name: str, what: str) -> None:
    missing = np.flatnonzero(sheet.frame[name].isna().to_numpy()).tolist()
    if missing:
        raise DataError(f"{sheet.path}, {sheet.all_at(missing)}: the {what} {name!r} is missing; "
                        "fill it in or remove the row")  # fmt: skip


def _target(sheet: Sheet, names: list[str], task: str) -> tuple[Tensor, Task, tuple[str, ...], str]:
    """(y, task, class names, note on how the task was recognised)."""
    for name in names:
        _no_gaps(sheet, name, "target")
    columns = [_numbers(sheet, name, optional=False) for name in names]
    text = [name for name, column in zip(names, columns, strict=True) if column is None]
    if len(names) == 1:
        choice, why = _choose(sheet, names[0], columns[0]) if task == "auto" else (task, "as told")
        if choice == "classification":
            return _as_classes(sheet, names[0], columns[0], why)
    elif task == "classification":
        raise DataError(f"{sheet.path}: classification has one target column, got {names}; several of 0 and 1 are "
                        "recognised as labels by --task auto")  # fmt: skip
    if text:
        raise DataError(f"{sheet.cell(0, text[0])} is no number; text can only be a single target (classification)")
    y = np.stack(columns, axis=1)
    for name, column in zip(names, y.T, strict=True):
        if column.min() == column.max():
            raise DataError(
                f"{sheet.path}: the target {name!r} is {column[0]:g} in every row; there is nothing to learn"
            )
    if len(names) > 1 and task == "auto" and bool(np.isin(y, (0, 1)).all()):
        note = f"multi-label: {len(names)} targets of 0 and 1"
        return torch.from_numpy(y.astype(np.float32)), MultiLabel(len(names)), tuple(names), note
    note = f"regression: {why}" if len(names) == 1 else f"regression of {len(names)} values"
    return torch.from_numpy(y.astype(np.float32)).squeeze(1), Regression(len(names)), (), note


def _choose(sheet: Sheet, name: str, values: Any) -> tuple[str, str]:
    """(task, reason) for a single target column."""
    if values is None or require("pandas").api.types.is_bool_dtype(sheet.frame[name]):
        return "classification", f"the target {name!r} is text or true/false"
    count = len(np.unique(values))
    if bool((values == np.round(values)).all()) and count <= FEW:
        return "classification", f"the target {name!r} has {count} whole values (--task regression for numbers)"
    return "regression", f"the target {name!r} has {count} different values"


def _as_classes(sheet: Sheet, name: str, values: Any, why: str) -> tuple[Tensor, Task, tuple[str, ...], str]:
    boolean = require("pandas").api.types.is_bool_dtype(sheet.frame[name])
    as_text = values is None or boolean
    levels, codes = np.unique(_text(sheet, name) if as_text else values, return_inverse=True)
    class_names = tuple(str(level) if as_text else _written(level) for level in levels)
    y = torch.from_numpy(codes.astype(np.int64))
    counts = torch.bincount(y)
    if len(levels) > 1 and int(counts.min()) < 2:
        lone = np.flatnonzero((counts == 1).numpy()[codes])
        classes = _some([class_names[code] for code in codes[lone]])
        raise DataError(
            f"{sheet.path}, {sheet.all_at(lone.tolist())}: the target {name!r} is {classes} in one row each, which "
            "cannot be both trained on and tested; remove such rows, merge the classes with others, or say "
            "--task regression if these are numbers"
        )
    check_classes(f"{sheet.path}: target {name!r}", y, class_names)
    return y, Classification(len(levels)), class_names, f"classification: {why}"
