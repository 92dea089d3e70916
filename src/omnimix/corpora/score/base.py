"""Where quality scores come from: an annotator of any kind, or columns that the file has already."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..annotation import Annotator, Document, shown

LARGEST = sys.float_info.max
QUALITY = "quality"
"""The column that an annotator of quality writes."""
RUBRIC = {
    "clarity": 1, "completeness": 1, "structure": 1, "credibility": 1, "significance": 1, "richness": 2, "depth": 2,
}  # fmt: skip
"""SampleMix's dimensions and the highest rating of each: clarity and accuracy of expression, completeness, structure
and style, accuracy and credibility of content, significance, richness of knowledge, logic and analytical depth. They
sum to 9, while the paper's scale ends at 10: another rubric is another mapping."""


class QualityColumns:
    """Quality that is in the file already: a column, or the sum of several.

    highest: column -> its highest value, above which, or below 0, a value is an error; a `RUBRIC` is one. Writes the
    column `name`.
    """

    def __init__(self, *columns: str, highest: Mapping[str, float] | None = None, name: str = QUALITY) -> None:
        self.columns = columns or tuple(highest or ())
        if not self.columns:
            raise ValueError("quality needs a column")
        self.highest, self.name = dict(highest or {}), name

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[float]]:
        return {
            self.name: [
                math.fsum(self._value(row, document, column) for column in self.columns)
                for row, document in enumerate(documents)
            ]
        }

    def _value(self, row: int, document: Document, column: str) -> float:
        value: Any = document.get(column)
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not number or (column in self.highest and not 0 <= value <= self.highest[column]):
            within = f" of 0 to {self.highest[column]:g}" if column in self.highest else ""
            raise ValueError(
                f"document {row}: column {column!r} must hold a number{within}, got {shown(value)}; "
                f"its columns are {', '.join(map(str, document))}"
            )
        return float(value)


def qualities(annotator: Annotator, documents: Sequence[Document]) -> np.ndarray:
    """(N,) float64: the column "quality" of an annotator, or the only one; ValueError where it is no finite number."""
    columns = annotator.annotate(documents)
    if QUALITY not in columns and len(columns) != 1:
        raise ValueError(f"an annotator of quality writes one column, or {QUALITY!r}; got {', '.join(columns)}")
    name = QUALITY if QUALITY in columns else next(iter(columns))
    try:
        values = np.asarray(columns[name], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"column {name!r} of {type(annotator).__name__} must hold numbers") from None
    if values.shape != (len(documents),):
        raise ValueError(f"column {name!r} has shape {values.shape} for {len(documents)} documents")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"document {wrong[0]}: its {name!r} is {values[wrong[0]]}; it must be a finite number")
    return values
