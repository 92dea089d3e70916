"""Fewer rows of a data set, for trials that should end soon."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.checks import at_least
from ..core.random import permutation
from ..core.task import Classification
from .decode import ImageFiles
from .source import Source, digest


def capped(source: Source, rows: int, seed: int = 0) -> Source:
    """At most `rows` of every domain (of the whole where there are none), drawn once by `seed`, not by that of a run.

    Classes keep their proportions; official rows are those that are left. ValueError for rows < 1.
    """
    at_least("rows", rows, 1)
    group = torch.zeros(len(source), dtype=torch.long) if source.domain is None else source.domain
    kept = []
    for one in torch.unique(group):
        own = torch.nonzero(group == one).flatten()
        generator = torch.Generator().manual_seed(seed)
        own = own[permutation(len(own), generator)]
        if isinstance(source.task, Classification) and source.y.ndim == 1:
            own = own[interleaved(source.y[own], generator)]
        kept.append(own[:rows])
    index = torch.cat(kept).sort().values
    if len(index) == len(source):
        return source
    x: Tensor | ImageFiles
    if isinstance(source.x, Tensor):
        x = source.x[index]
    else:
        entries = [source.x.entries[row] for row in index.tolist()]
        x = ImageFiles(entries, source.x.size, source.x.grey, digest(source.x.digest, index))
    place = torch.full((len(source),), -1)
    place[index] = torch.arange(len(index))
    official = source.official and {part: _left(place[some]) for part, some in source.official.items()}
    said = f"{len(index)} of {len(source)} rows: at most {rows} {'in all' if source.domain is None else 'a domain'}"
    domain = None if source.domain is None else source.domain[index]
    return replace(
        source, x=x, y=source.y[index], domain=domain, official=official, digest="", builtin=False,
        notes=(*source.notes, said),
    )  # fmt: skip


def interleaved(y: Tensor, generator: torch.Generator) -> Tensor:
    """An order in which every stretch holds the classes in equal proportions."""
    _, label, counts = torch.unique(y, return_inverse=True, return_counts=True)
    order = label.argsort(stable=True)
    rank = torch.empty(len(y), dtype=torch.float64)
    rank[order] = (torch.arange(len(y)) - (counts.cumsum(0) - counts)[label[order]]).double()
    jitter = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    return torch.argsort((rank + jitter[label]) / counts[label], stable=True)


def _left(places: Tensor) -> Tensor:
    return places[places >= 0]
