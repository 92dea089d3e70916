"""Office-Caltech10 as SURF histograms: four domains, ten classes, 800 visual words, a .mat file a domain.

Every histogram is divided by its sum. Source: Gong, Shi, Sha, Grauman, "Geodesic Flow Kernel for Unsupervised Domain
Adaptation", CVPR 2012.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .source import DataError, Source, labelled

CLASSES = (
    "backpack", "bike", "calculator", "headphones", "keyboard", "laptop", "monitor", "mouse", "mug", "projector",
)  # fmt: skip


def load_office_caltech(root: Path) -> Source:
    """The .mat files in `root` (of MATLAB 7 or before) with `fts` (n, F) and `labels` 1..10; a file is a domain.

    DataError for other files, histograms without any count, and labels that are none of the ten.
    """
    paths = sorted(root.glob("*.mat")) if root.is_dir() else []
    if len(paths) < 2:
        raise DataError(
            f"{root} holds {len(paths)} .mat files; expected a folder with one a domain, such as amazon.mat"
        )
    parts = [_domain(path) for path in paths]
    widths = [x.shape[1] for x, _ in parts]
    for path, width in zip(paths, widths, strict=True):
        if width != widths[0]:
            raise DataError(f"{path} has {width} features, {paths[0]} has {widths[0]}; they must be of one vocabulary")
    y, task = labelled(str(root), np.concatenate([label for _, label in parts]), CLASSES)
    domain = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(x) for x, _ in parts]))
    names = tuple(path.stem.split("_")[0].lower() for path in paths)
    x = torch.from_numpy(np.concatenate([x for x, _ in parts]))
    words = tuple(f"word{number}" for number in range(widths[0]))
    return Source(
        "office-caltech", x, y, task, "table", domain, names, CLASSES, words, ("object",),
        notes=("every histogram is divided by its sum",),
    )  # fmt: skip


def _domain(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Histograms (n, F) that sum to 1, float32, and class ids (n,) from 0."""
    from scipy.io import loadmat

    try:
        found = loadmat(path)
    except NotImplementedError as error:
        raise DataError(f"{path} is of MATLAB 7.3 (HDF5), which is not read; save it with -v7") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a .mat file ({error}); copy or download it again") from error
    for name in ("fts", "labels"):
        if name not in found:
            own = [key for key in found if not key.startswith("__")]
            raise DataError(f"{path} has no {name!r}, only {', '.join(own) or 'nothing'}; is it of another data set?")
    x, labels = np.asarray(found["fts"], dtype=np.float64), np.asarray(found["labels"]).ravel()
    if x.ndim != 2 or len(x) != len(labels):
        raise DataError(f"{path}: fts has shape {x.shape}, but there are {len(labels)} labels")
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, len(CLASSES) + 1)))
    if len(wrong):
        raise DataError(f"{path}, row {wrong[0] + 1}: the label is {labels[wrong[0]]}, expected 1 to {len(CLASSES)}")
    bad = np.flatnonzero(~(np.isfinite(x).all(axis=1) & (x >= 0).all(axis=1) & (x.sum(axis=1) > 0)))
    if len(bad):
        raise DataError(
            f"{path}, row {bad[0] + 1}: no histogram (a count is negative or missing, or all are 0); remove it"
        )
    return (x / x.sum(axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64) - 1
