"""Selective mixup: mix only pairs of equal or different class and domain. A criterion also changes how often each class
and domain is seen, so what it changes is computed here and its controls are in `controls.py`.

    partner of u ~ uniform over {v : v satisfies the criterion with u};  x~ = c x_u + (1 - c) x_v,  c ~ Beta(alpha, alpha)
    p_partner(z) = sum_u p(u) P(z | criterion, u);   p_eff = (p + p_partner) / 2, since E[c] = 1/2

Source: Teney, Wang, Abbasnejad, "Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup", ICML
2024, arXiv 2305.16817. LISA: Yao et al., "Improving Out-of-Distribution Robustness via Selective Augmentation", ICML
2022, arXiv 2201.00299. Cost: 1. A sample that satisfies its own criterion is its own candidate like any other; one
without candidates stays unmixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...core.checks import in_unit, one_of
from ...core.method import Method, Mix
from ...core.pairing import NONE, InTable
from ...core.random import uniform
from ...core.ratio import Beta
from ...core.registry import register
from ...core.table import Table
from .controls import controls

Relation: TypeAlias = Literal["any", "same", "different"]
RELATIONS: tuple[Relation, ...] = ("any", "same", "different")


def groups(table: Table | None, column: str) -> Tensor:
    """(N,) ids 0..G-1 of the classes ("label") or domains of a table.

    Soft labels (N, C) count as their largest class. ValueError for real values, which form no groups, or no table.
    """
    if table is None:
        raise ValueError(f"this pairing needs the {column!r} of every training sample: setup(..., table=Table(...))")
    value = table[column]
    if value.is_floating_point() and value.ndim == 2 and value.shape[1] > 1:
        value = value.argmax(dim=1)
    if value.is_floating_point() or value.ndim != 1:
        raise ValueError(f"table column {column!r} must hold integer ids (N,), got {value.dtype} {tuple(value.shape)}")
    return value.unique(return_inverse=True)[1]


class Criterion(InTable):
    """Partners uniform over all training samples of the same, a different, or any class, and likewise domain.

    Exact for any number of classes and domains: O(N log N) preparation, O(log N) a draw, memory O(N). Rows are sorted
    so that the candidates of a sample are one block with one hole ("different" in both: a block whose hole is spread
    out, passed over by binary search).
    """

    def __init__(self, label: Relation = "any", domain: Relation = "any") -> None:
        self.label, self.domain = one_of("label", label, RELATIONS), one_of("domain", domain, RELATIONS)
        self.needs = tuple(name for name, relation in (("label", label), ("domain", domain)) if relation != "any") or (
            "label",
        )

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        ids = {name: groups(table, name) for name in self.needs}
        size, device = len(ids[self.needs[0]]), ids[self.needs[0]].device
        constant = torch.zeros(size, dtype=torch.long, device=device)  # "any" is "same" of what all share
        relation = {
            "label": "same" if self.label == "any" else self.label,
            "domain": "same" if self.domain == "any" else self.domain,
        }
        if "any" == self.label:
            ids["label"] = constant
        if "any" == self.domain:
            ids["domain"] = constant
        major, minor = ("label", "domain") if relation["label"] == "same" else ("domain", "label")
        self._different = relation[major] == "different", relation[minor] == "different"

        self._order = torch.argsort(ids[major] * (ids[minor].max() + 1) + ids[minor], stable=True)
        self._minor = ids[minor]
        cell = _Blocks(torch.stack((ids[major], ids[minor])).unique(dim=1, return_inverse=True)[1])
        self._block, self._cell = _Blocks(ids[major]), cell
        if all(self._different):
            positions = torch.argsort(self._minor[self._order], stable=True)
            self._group = _Blocks(self._minor)
            local = torch.arange(size, device=device) - self._group.start_of(self._minor[self._order][positions])
            self._gaps = self._minor[self._order][positions] * (size + 1) + positions - local
            self._rank = torch.empty_like(positions).scatter_(0, positions, local)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError
