"""The image sets of WILDS as they lie on disk: Camelyon17 (hospitals), iWildCam (cameras), FMoW (regions).

A table of metadata names image, class, domain and split of every row. The official rows are those that WILDS trains on,
validates on in other domains (or years), and tests; rows that it keeps for validation and tests within the training
domains are in no official part, but in a comparison that holds out one domain after the other. Source: Koh et al.,
"WILDS: A Benchmark of in-the-Wild Distribution Shifts", ICML 2021, arXiv 2012.07421.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .decode import MEMORY, Entry, decode
from .source import DataError, Source, labelled, require

if TYPE_CHECKING:
    from pandas import DataFrame

OFFICIAL = {"train": "train", "val": "valid", "test": "test"}
VALIDATES, TESTS = 1, 2
"""The hospitals of Camelyon17 that validate and test."""


@dataclass(frozen=True)
class Layout:
    """file: of the metadata. columns: that it must have. read: file, class, domain and split, a row an image."""

    file: str
    columns: tuple[str, ...]
    read: Callable[[Any, Path], tuple[Any, Any, Any, Any]]


def _camelyon(table: DataFrame, root: Path) -> tuple[Any, Any, Any, Any]:
    places = zip(*(table[name] for name in ("patient", "node", "x_coord", "y_coord")), strict=True)
    files = [f"patches/patient_{p}_node_{n}/patch_patient_{p}_node_{n}_x_{x}_y_{y}.png" for p, n, x, y in places]
    hospital = table["center"].astype(int)
    inside = np.where(table["split"].astype(int) == 0, "train", "id_val")
    split = np.where(hospital == VALIDATES, "val", np.where(hospital == TESTS, "test", inside))
    label = np.where(table["tumor"].astype(int) == 1, "tumour", "normal")
    return files, label, "hospital " + hospital.astype(str), split


def _iwildcam(table: DataFrame, root: Path) -> tuple[Any, Any, Any, Any]:
    camera = "camera " + table["location_remapped"].astype(str)
    return "train/" + table["filename"], "species " + table["y"].astype(str), camera, table["split"]


def _fmow(table: DataFrame, root: Path) -> tuple[Any, Any, Any, Any]:
    codes = root / "country_code_mapping.csv"
    if not codes.exists():
        raise DataError(f"{codes} is missing; it lies beside the metadata in the archive of WILDS")
    known = require("pandas").read_csv(codes, dtype=str, keep_default_na=False)
    region = table["country_code"].map(dict(zip(known["alpha-3"], known["region"], strict=True))).fillna("Other")
    year = table["timestamp"].str[:4].astype(int)
    split, later = table["split"], np.where(year >= 2016, "test", np.where(year >= 2013, "val", "train"))
    official = np.where(split == later, split, np.where((split == "seq") | (later != "train"), "none", "id_" + split))
    files = "images/rgb_img_" + table.index.astype(str) + ".png"
    return files, table["category"], region, np.where(split == "seq", "seq", official)


LAYOUTS = (
    Layout("metadata.csv", ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split"), _camelyon),
    Layout("metadata.csv", ("filename", "y", "location_remapped", "split"), _iwildcam),
    Layout("rgb_metadata.csv", ("category", "country_code", "timestamp", "split"), _fmow),
)


def load_wilds(root: Path, *, resize: int | tuple[int, int] | None = None, memory: int = MEMORY) -> Source:
    """The images below `root`, such as data/camelyon17_v1.0; resize, memory as in `load_images`.

    DataError for metadata of another layout, a cell that is empty, and images that are not there or cannot be decoded.
    """
    table, layout = _metadata(root)
    files, label, domain, split = (np.asarray(column, dtype=object) for column in layout.read(table, root))
    rows = np.flatnonzero(split != "seq")  # what FMoW sequesters has no images
    files, label, domain, split = files[rows], label[rows], domain[rows], split[rows]
    for row, file in zip(rows, files, strict=True):
        if not (root / file).is_file():
            raise DataError(
                f"{root / layout.file}, line {row + 2}: there is no image {root / file}; is the copy whole?"
            )
    entries = [Entry((d, c), str(root / f), root / f) for d, c, f in zip(domain, label, files, strict=True)]
    class_names, y = np.unique(label.astype(str), return_inverse=True)
    domain_names, ids = np.unique(domain.astype(str), return_inverse=True)
    targets, task = labelled(str(root), y, tuple(class_names))
    official = {part: torch.from_numpy(np.flatnonzero(split == word)) for word, part in OFFICIAL.items()}
    empty = [part for part, some in official.items() if not len(some)]
    if empty:
        raise DataError(f"{root / layout.file}: no rows are for {empty[0]} in the split of WILDS; is the table whole?")
    within = len(rows) - sum(map(len, official.values()))
    return Source(
        root.name, decode(entries, resize, memory), targets, task, "image", torch.from_numpy(ids.astype(np.int64)),
        tuple(map(str, domain_names)), tuple(map(str, class_names)), target_names=("class",), official=official,
        notes=(f"{within} rows are in no part of WILDS' split: they are of training domains, or of no year of it",),
    )  # fmt: skip


def _metadata(root: Path) -> tuple[DataFrame, Layout]:
    pandas, seen = require("pandas"), []
    for file in dict.fromkeys(layout.file for layout in LAYOUTS):
        if not (root / file).is_file():
            continue
        # patients have numbers such as 004, and Namibia the code NA
        table = pandas.read_csv(root / file, dtype=str, keep_default_na=False)
        seen.append(f"{file} with {', '.join(filter(None, table.columns))}")
        for layout in LAYOUTS:
            if layout.file == file and set(layout.columns) <= set(table.columns):
                for column in layout.columns:
                    empty = np.flatnonzero(table[column] == "")
                    if len(empty):
                        raise DataError(f"{root / file}, line {empty[0] + 2}, column {column!r}: the cell is empty")
                return table, layout
    wanted = "; ".join(f"{layout.file} with {', '.join(layout.columns)}" for layout in LAYOUTS)
    raise DataError(f"{root}: no metadata of a known image set of WILDS; expected {wanted}; found {seen or 'none'}")
