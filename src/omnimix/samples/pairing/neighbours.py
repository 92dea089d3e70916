"""Neighbour pairing: the partner is one of the k nearest other training samples, k one for all or one a sample.

    j ~ uniform over the first k_i of O_i,   O_i = all others by |z_i - z_j|, ties by index,   z = (x - mean) / sd

Source: Hwang, Whang, "RegMix: Data Mixing Augmentation for Regression", preprint 2021-2022, arXiv 2106.03374. Cost: 1,
plus O(N^2) distances once. k = N - 1 is uniform over all others and needs no list, k = 0 leaves the sample unmixed.
Neighbourhood is not mutual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import at_least
from ...core.pairing import NONE, InTable
from ...core.random import uniform
from ...core.table import Table

LISTED = 2**25
"""Longest table of neighbours kept (entries); beyond it, they are searched anew for the rows of each batch."""


class Neighbours(InTable):
    """Partners uniform among the `nearest` nearest other training samples by standardised Euclidean distance.

    nearest: an integer >= 0, or (N,) integers, one a training sample, in 0..N-1.
    """

    def __init__(self, nearest: int | Tensor) -> None:
        self.given = nearest if isinstance(nearest, Tensor) else at_least("nearest", nearest, 0)

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        if table is None:
            raise ValueError(
                "neighbours are sought in the whole training set: pass setup(..., table=Table(feature=...))"
            )
        self.z = standardised(table["feature"])
        self._lists = torch.empty(len(self.z), 0, dtype=torch.int32, device=self.z.device)
        self.assign(self.given)

    def assign(self, nearest: int | Tensor) -> None:
        """Take other numbers of neighbours from now on; ValueError outside 0..N-1."""
        others = len(self.z) - 1
        value = torch.as_tensor(nearest, device=self.z.device)
        if value.is_floating_point() or value.ndim > 1 or (value.ndim == 1 and len(value) != others + 1):
            raise ValueError(f"nearest must be an integer or hold one a training sample ({others + 1}), got {value!r}")
        if bool(((value < 0) | (value > others)).any()):
            low, high = int(value.min()), int(value.max())
            raise ValueError(
                f"nearest must lie in 0..{others}, the number of other training samples; got {low}..{high}"
            )
        self.nearest = value.long().expand(others + 1).clone()
        listed = self.nearest[self.nearest < others]
        self.list_up_to(int(listed.max()) if len(listed) else 0)

    def list_up_to(self, count: int) -> None:
        """Keep the first `count` neighbours of every sample ready, where memory allows."""
        rows = len(self.z)
        if self._lists.shape[1] < count and rows * count <= LISTED:
            self._lists = nearest_others(self.z, torch.arange(rows, device=self.z.device), count).int()

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        own = index.to(self.z.device)
        point = uniform(len(index), generator=generator).to(own.device)
        return self.choose(own, self.nearest[own], point).to(index.device).unsqueeze(1)

    def choose(self, index: Tensor, nearest: Tensor, point: Tensor) -> Tensor:
        """(B,) partners of `index` (B,) for the given numbers of neighbours and uniforms in [0, 1); NONE where 0."""
        others = len(self.z) - 1
        rank = (point * nearest).long()
        partner = rank + (rank >= index)  # uniform over all others
        near = ((nearest > 0) & (nearest < others)).nonzero().squeeze(1)
        if len(near):
            partner[near] = self._ranked(index[near], rank[near])
        return torch.where(nearest == 0, NONE, partner)

    def _ranked(self, index: Tensor, rank: Tensor) -> Tensor:
        """The neighbours of given rank, from the lists or searched for these rows."""
        count = int(rank.max()) + 1
        if count <= self._lists.shape[1]:
            return self._lists[index, rank].long()
        rows, back = torch.unique(index, return_inverse=True)
        return nearest_others(self.z, rows, count)[back, rank]


def standardised(feature: Tensor) -> Tensor:
    """(N, D) float64 columns of mean 0 and sd 1 from (N, ...); constant columns become 0. ValueError for NaN, inf."""
    z = feature.flatten(1).double() if feature.ndim > 1 else feature.double().unsqueeze(1)
    if not bool(torch.isfinite(z).all()):
        raise ValueError("table column 'feature' holds NaN or infinite values; impute them first")
    sd, scale = z.std(dim=0, correction=0), z.abs().amax(dim=0)
    return (z - z.mean(dim=0)) / torch.where(sd > 1e-12 * scale, sd, torch.inf)


def nearest_others(z: Tensor, index: Tensor, count: int) -> Tensor:
    """(B, count) rows of z (N, D) by Euclidean distance from the rows `index` (B,), these excluded, ties by index."""
    found = []
    for rows in torch.split(index, max(1, 2**22 // len(z))):
        distance = torch.cdist(z[rows], z, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.float()  # ties up to rounding are ties
        distance[torch.arange(len(rows), device=z.device), rows] = torch.inf
        value, near = distance.topk(count, dim=1, largest=False)
        near, order = near.sort(dim=1)
        near = near.gather(1, value.gather(1, order).argsort(dim=1, stable=True))
        cut = (distance <= value[:, -1:]).sum(dim=1) > count  # a tie across the end of the list
        near[cut] = distance[cut].argsort(dim=1, stable=True)[:, :count]
        found.append(near)
    return torch.cat(found)
