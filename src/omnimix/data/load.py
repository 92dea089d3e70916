"""One door to all data: a built-in name, or the path of a table, a folder of images, IDX or CIFAR files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .builtin import BUILTIN
from .cifar import archives, load_cifar
from .decode import MEMORY
from .domain_folder import load_domain_folder, load_pacs
from .idx import load_idx
from .image_folder import load_images
from .office_caltech import load_office_caltech
from .shifted_digits import coloured, rotated, styled
from .source import DataError, Source, near
from .subset import capped
from .table_file import MAX_CATEGORIES, load_table
from .wilds import load_wilds

DOMAINS: dict[str, Callable[..., Source]] = {"pacs": load_pacs, "domainbed": load_domain_folder, "wilds": load_wilds}
"""Folders of images of several domains."""
SHIFTED: dict[str, Callable[..., Source]] = {
    f"{what}-{name}": make
    for name in ("mnist", "fashion-mnist")
    for what, make in (("rotated", rotated), ("coloured", coloured), ("styled", styled))
}
"""Domains that are made from a folder of IDX files."""
KINDS = ("table", "images", "idx", "cifar", "office-caltech", *DOMAINS, *SHIFTED)
FOLDER = "folder"


def load(
    spec: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    task: str = "auto",
    drop: str | Sequence[str] = (),
    domain: str | None = None,
    resize: int | tuple[int, int] | None = None,
    max_categories: int = MAX_CATEGORIES,
    memory: int = MEMORY,
    rows: int | None = None,
    data_seed: int = 0,
) -> Source:
    """The data set `spec`: one of `BUILTIN`, a path, or "KIND:PATH" with a kind of `KINDS`.

    Tables (CSV, Parquet): target, task, drop, domain (a column) and max_categories as in `load_table`. Images: domain
    "folder" says that the folders above the classes are domains, resize brings images to one size, memory is the cap
    above which pixels stay on disk. rows: at most so many of every domain, or in all. data_seed: draws them, and
    makes the domains of `SHIFTED`, whatever the seed of a run. DataError for bad data, and for options that the data
    set has no use for.
    """
    source = _load(str(spec), target, task, drop, domain, resize, max_categories, memory, rows, data_seed)
    return source if rows is None else capped(source, rows, data_seed)


def _load(
    spec: str,
    target: str | Sequence[str] | None,
    task: str,
    drop: str | Sequence[str],
    domain: str | None,
    resize: int | tuple[int, int] | None,
    max_categories: int,
    memory: int,
    rows: int | None,
    data_seed: int,
) -> Source:
    kind, path = _parse(spec)
    given = {
        "target": target is not None, "task": task != "auto", "drop": bool(drop), "domain": domain is not None,
        "resize": resize is not None, "max_categories": max_categories != MAX_CATEGORIES, "memory": memory != MEMORY,
        "data_seed": data_seed != 0,
    }  # fmt: skip
    allowed = {
        "table": {"target", "task", "drop", "domain", "max_categories"}, "images": {"domain", "resize", "memory"},
        "cifar": {"memory"}, **{name: {"resize", "memory"} for name in DOMAINS},
        **{name: {"data_seed"} for name in SHIFTED},
    }.get(kind, set())  # fmt: skip
    if rows is not None:
        allowed = {*allowed, "data_seed"}
    useless = [option for option, set_ in given.items() if set_ and option not in allowed]
    if useless:
        raise DataError(f"{spec}: {', '.join(useless)} has no meaning for {kind} data; leave it out")
    if kind == "built-in":
        return BUILTIN[spec]()
    if kind in DOMAINS:
        return DOMAINS[kind](path, resize=resize, memory=memory)
    if kind in SHIFTED:
        return SHIFTED[kind](path, data_seed)
    if kind == "office-caltech":
        return load_office_caltech(path)
    if kind == "table":
        return load_table(path, target, task, drop, domain, max_categories)
    if kind == "idx":
        return load_idx(path)
    if kind == "cifar":
        return load_cifar(path, memory=memory)
    if domain not in (None, FOLDER):
        raise DataError(f"{spec}: for images, domain must be {FOLDER!r} (DOMAIN/CLASS/FILE), got {domain!r}")
    return load_images(path, domains=domain == FOLDER, resize=resize, memory=memory)


def _parse(spec: str) -> tuple[str, Path]:
    """(kind, path) of a specification; a built-in name comes before a file of that name."""
    if spec in BUILTIN:
        return "built-in", Path()
    prefix, colon, rest = spec.partition(":")
    stated = prefix if colon and prefix in KINDS else None
    path = Path(rest if stated else spec).expanduser()
    if not path.exists() and stated in (*DOMAINS, *SHIFTED, "office-caltech"):
        raise DataError(f"{path} is not there; {stated}:FOLDER reads data that you have, nothing is downloaded")
    if not path.exists():
        beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{spec!r} is neither a file or folder nor a built-in data set{near(spec, [*BUILTIN, *beside])} "
            f"Built in: {', '.join(BUILTIN)}"
        )
    if stated and stated not in ("table", "images") and not path.is_dir():
        raise DataError(f"{spec}: {stated} data lie in a folder, this is a file")
    if stated == "table" and path.is_dir():
        raise DataError(f"{spec}: a table is a file, this is a folder")
    return stated or _guess(path), path


def _guess(path: Path) -> str:
    if path.is_file():
        return "images" if ".tar" in path.suffixes or path.suffix == ".tgz" else "table"
    if any(path.glob("*-idx?-ubyte*")) or any(path.glob("*.idx?-ubyte*")):
        return "idx"
    binary = any(path.glob("data_batch_*")) or any(path.glob("*/data_batch_*.bin")) or (path / "train.bin").exists()
    return "cifar" if binary or archives(path) else "images"
