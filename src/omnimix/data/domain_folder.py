"""Images as DOMAIN/CLASS/FILE, the layout of DomainBed's data sets and of PACS, with the publisher's split where it is.

A folder, or a folder that holds one tar file of it, which is read where it lies. Official splits are text files as for
PACS: `DOMAIN_train_kfold.txt` and `DOMAIN_crossval_kfold.txt`, with a line `DOMAIN/CLASS/FILE class-number` an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .decode import MEMORY, Entry
from .image_folder import from_entries, listing
from .source import DataError, Source, near

PARTS = {"train": "train", "valid": "crossval"}
"""The name of a part, and its name in the files of the publisher."""
PACS = ("art_painting", "cartoon", "photo", "sketch")
PACS_IMAGES = 9991


def load_domain_folder(
    root: Path, *, resize: int | tuple[int, int] | None = None, memory: int = MEMORY, domains: Sequence[str] = ()
) -> Source:
    """Images below `root`, domains and classes in the order of their names, and the official rows if files say so.

    resize, memory: as in `load_images`. domains: the names that there must be. official: "train" and "valid" rows of
    every domain, no test rows, since whole domains are tested. DataError for another layout, for a split that does not
    name every image once, and for what `load_images` refuses.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is a file; name the folder that holds it, with DOMAIN/CLASS/FILE or one tar file of that"
        )
    packed = sorted(path for path in root.iterdir() if ".tar" in path.suffixes or path.suffix == ".tgz")
    if len(packed) > 1:
        raise DataError(f"{root} holds several tar files ({', '.join(p.name for p in packed)}); leave one")
    lists = sorted(root.glob("*_kfold.txt"))
    entries, notes = listing(packed[0] if packed else root, ignore=lists)
    if len({entry.parts[:-2] for entry in entries}) == 1:  # all in one more folder, as an archive's own
        entries = [replace(entry, parts=entry.parts[-2:]) for entry in entries]
    found = sorted({entry.parts[0] for entry in entries})
    if domains and found != sorted(domains):
        missing = [name for name in domains if name not in found]
        odd = [name for name in found if name not in domains]
        said = f"has no {missing[0]!r}" if missing else f"has {odd[0]!r}, which is no domain of it"
        raise DataError(f"{root} {said}; expected the folders {', '.join(domains)}, found {', '.join(found) or 'none'}")
    source = from_entries((entries, notes), root, root.name.split(".")[0], True, resize, memory)
    return replace(source, official=_official(lists, entries, source)) if lists else source


def load_pacs(root: Path, *, resize: int | tuple[int, int] | None = None, memory: int = MEMORY) -> Source:
    """PACS: photos, art paintings, cartoons and sketches of 7 classes; `load_domain_folder` with their names.

    Source: Li, Yang, Song, Hospedales, "Deeper, Broader and Artier Domain Generalization", ICCV 2017, arXiv 1710.03077.
    """
    source = load_domain_folder(root, resize=resize, memory=memory, domains=PACS)
    short = f"these are {len(source)} images, PACS has {PACS_IMAGES}"
    return replace(source, name="pacs", notes=(*source.notes, *([short] if len(source) != PACS_IMAGES else [])))


def _official(lists: list[Path], entries: list[Entry], source: Source) -> dict[str, Tensor]:
    """The rows that the files name. Endings of file names do not count: converted images keep their stems."""
    rows = {"/".join((*entry.parts, Path(entry.label).stem)): row for row, entry in enumerate(entries)}
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    named: dict[int, str] = {}
    numbers: dict[str, str] = {}
    for domain in source.domain_names:
        for part, word in PARTS.items():
            path = lists[0].with_name(f"{domain}_{word}_kfold.txt")
            if not path.exists():
                raise DataError(f"{path} is missing, though there are official splits of other domains; add it")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not line.strip():
                    continue
                where, (name, *label) = f"{path}, line {number}", line.split()
                stem = name.rpartition(".")[0] or name
                row = rows.get(stem)
                if row is None:
                    raise DataError(f"{where}: there is no image {name!r}{near(stem, rows)} Is the copy whole?")
                if row in named:
                    raise DataError(f"{where}: {name!r} was named before in {named[row]}; a row has one part")
                own = entries[row].parts[1]
                if label and numbers.setdefault(own, label[0]) != label[0]:
                    raise DataError(
                        f"{where}: {own!r} is class {label[0]}, but {numbers[own]} in lines before; mend one"
                    )
                named[row] = where
                parts[part].append(row)
    left = [stem for stem, row in rows.items() if row not in named]
    if left:
        raise DataError(f"{lists[0].parent}: no *_kfold.txt names {left[0]!r} ({len(left)} images); remove the lists")
    return {part: torch.tensor(sorted(some)) for part, some in parts.items()}
