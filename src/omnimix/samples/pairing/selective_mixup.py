"""Selective mixup: mix only pairs of the same or of a different class or domain, under distribution shift.

    partner of u ~ uniform over all v that satisfy the criterion with u;   x~ = c x_u + (1 - c) x_v,  c ~ Beta(2, 2)

The choice of partners also changes how often each class and domain is seen (`effective.py`), which by itself can be the
whole gain: compare with the two controls (`controls.py`).
Source: Teney, Wang, Abbasnejad, "Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup", ICML
2024, arXiv 2305.16817. LISA: Yao et al., "Improving Out-of-Distribution Robustness via Selective Augmentation", ICML
2022, arXiv 2201.00299. Cost: 1. Ours: a sample that satisfies its own criterion ("any", "same") is a candidate like any
other; one without candidates stays unmixed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import in_unit, one_of
from ...core.method import Method, Mix
from ...core.pairing import NONE, InTable
from ...core.random import uniform
from ...core.ratio import Beta
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.table import Table
from .controls import Control, controls
from .effective import RELATIONS, Relation, groups


class Criterion(InTable):
    """Partners uniform over all training samples of any, the same or a different class, and likewise domain.

    Exact for any number of classes and domains in O(N log N) preparation, O(N) memory and O(log N) a draw: the rows are
    sorted so that the candidates of a sample are one block with one hole, and a draw is a rank among them.
    """

    def __init__(self, label: Relation = "any", domain: Relation = "any") -> None:
        self.label, self.domain = one_of("label", label, RELATIONS), one_of("domain", domain, RELATIONS)

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        label, domain = groups(table, "label", self.label), groups(table, "domain", self.domain)
        different = self.label == "different", self.domain == "different"
        # sort by the attribute that must agree; what is equal for all agrees
        major, minor = (domain, label) if different == (True, False) else (label, domain)
        size, width = len(label), int(minor.max()) + 1
        self._order = torch.argsort(major * width + minor, stable=True)
        block, block_size = _blocks(major)
        cell, cell_size = _blocks(torch.unique(major * width + minor, return_inverse=True)[1])
        self._skip: tuple[Tensor, Tensor, Tensor] | None = None
        if not any(different):
            self._low, self._hole, self._gap, self._count = cell, cell, torch.zeros_like(cell), cell_size
        elif not all(different):
            self._low, self._hole, self._gap, self._count = block, cell, cell_size, block_size - cell_size
        else:  # ranks among the rows of another minor group, less the own block; `_skip` turns ranks into positions
            sorted_minor, positions = torch.sort(minor[self._order], stable=True)
            start, minor_size = _blocks(minor)
            first = start[self._order][positions]
            local = torch.arange(size, device=label.device) - first
            before = torch.empty_like(local).scatter_(0, positions, local)[cell]
            self._low, self._hole, self._gap = torch.zeros_like(block), block - before, block_size - cell_size
            self._count = size - block_size - minor_size + cell_size
            self._skip = (sorted_minor * (size + 1) + positions - local, minor * (size + 1), start)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        own = index.to(self._order.device)
        count = self._count[own]
        rank = (uniform(len(index), generator=generator).to(own.device) * count).long()
        place = self._low[own] + rank
        place = torch.where(place >= self._hole[own], place + self._gap[own], place)
        if self._skip is not None:
            keys, base, start = self._skip
            place = place + torch.searchsorted(keys, base[own] + place, right=True) - start[own]
        partner = self._order[place.clamp(max=len(self._order) - 1)]
        return torch.where(count > 0, partner, NONE).to(index.device).unsqueeze(1)


def _blocks(ids: Tensor) -> tuple[Tensor, Tensor]:
    """For every row, where the block of its group starts once rows are sorted by group, and its size."""
    count = ids.bincount()
    return (count.cumsum(0) - count)[ids], count[ids]


class Either(InTable):
    """Each partner comes from `first` with probability p, else from `second`."""

    def __init__(self, first: InTable, second: InTable, p: float = 0.5) -> None:
        if first.k != second.k:
            raise ValueError(f"both pairings must mix equally many samples, got k = {first.k} and {second.k}")
        self.first, self.second, self.p, self.k = first, second, in_unit("p", p), first.k

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        self.first.prepare(table, generator)
        self.second.prepare(table, generator)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        first, second = self.first.draw(index, generator), self.second.draw(index, generator)
        chosen = uniform(len(index), 1, generator=generator).to(index.device) < self.p
        return torch.where(chosen, first, second)


class SelectiveMixup(Mix):
    """Mixup of pairs that satisfy a criterion; see `selective_mixup`."""

    def __init__(
        self, label: Relation = "different", domain: Relation = "any", alpha: float = 2.0, *, per_sample: bool = False
    ) -> None:
        super().__init__(Criterion(label, domain), Beta(alpha, per_sample=per_sample))
        self.needs = ("label",) if domain == "any" else ("domain",) if label == "any" else ("label", "domain")


class Lisa(Mix):
    """Mixup of the same class and a different domain, or of the same domain and a different class; see `lisa`."""

    needs = ("label", "domain")

    def __init__(self, p: float = 0.5, alpha: float = 2.0, *, per_sample: bool = False) -> None:
        pairing = Either(Criterion("same", "different"), Criterion("different", "same"), p)
        super().__init__(pairing, Beta(alpha, per_sample=per_sample))


@register(
    "selective-mixup",
    paper="Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup, ICML 2024, "
    "arXiv 2305.16817",
    tasks=("classification",),
    search={"alpha": Log(0.1, 8)},
)
def selective_mixup(
    label: Relation = "different",
    domain: Relation = "any",
    alpha: float = 2.0,
    *,
    per_sample: bool = False,
    control: Control | None = None,
) -> Method:
    """Mixup of pairs of the same or of a different class or domain.

    label, domain: "any", "same" or "different". alpha >= 0 of Beta(alpha, alpha). per_sample: one share a sample
    instead of one a batch. control: "pairs" trains on the same pairs without mixing, "resampling" on one sample of each
    pair; neither mixes anything.
    """
    method = SelectiveMixup(label, domain, alpha, per_sample=per_sample)
    return method if control is None else controls(method)[one_of("control", control, ("pairs", "resampling"))]


@register(
    "lisa",
    paper="Improving Out-of-Distribution Robustness via Selective Augmentation, ICML 2022, arXiv 2201.00299",
    tasks=("classification",),
    search={"p": Uniform(0, 1), "alpha": Log(0.1, 8)},
)
def lisa(p: float = 0.5, alpha: float = 2.0, *, per_sample: bool = False, control: Control | None = None) -> Method:
    """LISA: mixup of the same class and a different domain, or of the same domain and a different class.

    p: the probability of the first, drawn for each sample. alpha, per_sample, control: as for `selective_mixup`.
    """
    method = Lisa(p, alpha, per_sample=per_sample)
    return method if control is None else controls(method)[one_of("control", control, ("pairs", "resampling"))]
