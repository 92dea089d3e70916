"""A data set in memory or on disk, ready to be split: inputs, targets and what they mean."""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.task import Classification, Task
from .scale import Kind, Scaler

if TYPE_CHECKING:
    from .decode import ImageFiles

CHUNK = 4096
"""Images that are held as floats at a time while their statistics are taken."""


class DataError(ValueError):
    """Data that cannot be trained on as they are; the message says where and what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """N samples as they were found; nothing is imputed or scaled before rows are chosen for training.

    x: (N, D) float32 table, NaN where a value is missing; or (N, C, H, W) images, float32 in [0, 1] or uint8, in memory
    or decoded when asked for. y: class ids (N,), multi-hot (N, C), or real (N,) or (N, D) in raw units. official: row
    sets "train", "test" and maybe "valid" that the publisher fixed. notes: what loading changed or assumed.
    digest: SHA-256 of x, y and domain. builtin: it comes with omnimix or scikit-learn, so its name says what it is.
    DataError if the parts do not fit together or two domains or classes have one name.
    """

    name: str
    x: Tensor | ImageFiles = field(repr=False)
    y: Tensor = field(repr=False)
    task: Task
    kind: Literal["table", "image"]
    domain: Tensor | None = field(default=None, repr=False)
    domain_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = field(default=(), repr=False)
    target_names: tuple[str, ...] = ()
    official: dict[str, Tensor] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    digest: str = ""
    builtin: bool = False

    def __post_init__(self) -> None:
        for what, rows in (("y", self.y), ("domain", self.domain)):
            if rows is not None and len(rows) != len(self.x):
                raise DataError(f"{self.name}: {what} has {len(rows)} rows, x has {len(self.x)}")
        for what, names in (("domain", self.domain_names), ("class", self.class_names)):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                raise DataError(f"{self.name}: two {what} names are {twice[0]!r}; rename one")
        if len(self.x) == 0:
            raise DataError(f"{self.name}: there are no samples")
        if not self.digest:
            content = self.x if isinstance(self.x, Tensor) else self.x.digest
            object.__setattr__(self, "digest", digest(content, self.y, self.domain))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Inputs `rows` (n,) as float32; 8-bit images become floats in [0, 1]."""
        x = self.x[rows] if isinstance(self.x, Tensor) else self.x.take(rows)
        return x.float().div_(255) if x.dtype == torch.uint8 else x.float()

    def scaler(self, rows: Tensor, kind: Kind = "standard") -> Scaler:
        """Imputation and scaling whose parameters come from `rows` alone; see `Scaler`."""
        if self.kind == "table":
            return Scaler.fit(self.take(rows), kind)
        return Scaler.fit_images((self.take(part) for part in torch.split(rows, CHUNK)), kind)


def digest(*parts: Tensor | str | None) -> str:
    """SHA-256 (hex) of the types, shapes and values of `parts`."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(np.ascontiguousarray(part.detach().cpu().numpy()).data)
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


def near(name: str, names: Iterable[str]) -> str:
    """The end of a sentence: "; did you mean ...?" with the nearest of `names`, or a full stop."""
    lower = {known.lower(): known for known in names}
    found = [lower[hit] for hit in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else "."


def require(module: str) -> Any:
    """Import an optional `module`; ImportError with the install command if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needed = module.split(".")[0]
        raise ImportError(f'this needs the package {needed!r}: pip install "omnimix[compare]"') from error


def check_classes(name: str, y: Tensor, class_names: tuple[str, ...], places: list[str] | None = None) -> None:
    """DataError unless there are two classes or more, each with two samples or more.

    places: where each sample was found, for the message.
    """
    counts = torch.bincount(y, minlength=len(class_names))
    if int((counts > 0).sum()) < 2:
        raise DataError(f"{name}: all samples are of class {class_names[int(y[0])]!r}; there is nothing to learn")
    for label in torch.nonzero(counts < 2).flatten().tolist():
        first = torch.nonzero(y == label).flatten().tolist()
        where = f" ({places[first[0]]})" if places and first else ""
        raise DataError(
            f"{name}: class {class_names[label]!r} has {len(first)} sample{where}, too few to be in both training and "
            "test rows; remove the class, merge it with another, or add samples"
        )


def labelled(name: str, y: np.ndarray[Any, Any], class_names: tuple[str, ...]) -> tuple[Tensor, Classification]:
    """Class ids as a tensor, checked, with their task."""
    ids = torch.from_numpy(np.asarray(y, dtype=np.int64))
    check_classes(name, ids, class_names)
    return ids, Classification(len(class_names))
