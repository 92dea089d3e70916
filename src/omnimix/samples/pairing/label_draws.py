"""Exact draws from a label kernel: explicit rows for few or for vector labels, rejection among sorted scalar labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...core.random import uniform

Kernel: TypeAlias = Literal["gaussian", "tophat"]
KERNELS: tuple[Kernel, ...] = ("gaussian", "tophat")
Blocks: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Ranks (Q,) to blocks of ranks around them, each (Q, M): first rank, size, lowest and highest label."""
SMALL = 2048
"""Up to so many labels all rows of P are kept (32 MiB)."""
BLOCK = 1 << 20
"""How many weights are computed at a time."""


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(Q, N) distances between labels (Q,) and (N,), or (Q, D) and (N, D)."""
    if a.ndim == 1:
        return (a.unsqueeze(1) - b).abs()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # the other modes cancel digits


def log_weights(distance: Tensor, bandwidth: float | Tensor, kernel: Kernel) -> Tensor:
    """log w: 0 at distance 0, the largest; -infinity outside a top-hat."""
    if kernel == "tophat":
        return torch.zeros_like(distance).masked_fill_(distance > bandwidth, -torch.inf)
    return (distance / bandwidth).square_().mul_(-0.5)


def choose(cumulated: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """(Q, draws) columns, drawn with the probabilities whose cumulated sums (Q, M) are given, at any scale."""
    point = 1.0 - uniform(len(cumulated), draws, generator=generator).to(cumulated.device)  # in (0, 1]: never weight 0
    return torch.searchsorted(cumulated, point * cumulated[:, -1:])


class ExplicitRows:
    """Explicit rows of P, computed in blocks when asked for; kept for small sets."""

    def __init__(self, y: Tensor, bandwidth: float, kernel: Kernel) -> None:
        self.y, self.bandwidth, self.kernel = y, bandwidth, kernel
        self.kept = self._cumulated(torch.arange(len(y))) if len(y) <= SMALL else None

    def _cumulated(self, index: Tensor) -> Tensor:
        # The sample itself is a candidate with log weight 0: far labels underflow harmlessly, no row sums to 0.
        return log_weights(distances(self.y[index], self.y), self.bandwidth, self.kernel).exp_().cumsum(dim=1)

    def draw(self, index: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        found = []
        for block in torch.split(index, max(1, BLOCK // len(self.y))):
            rows = self._cumulated(block) if self.kept is None else self.kept.index_select(0, block)
            found.append(choose(rows, draws, generator))
        return torch.cat(found)


class SortedLabels:
    """Draws among sorted scalar labels, by rejection under a step function above the kernel.

    The labels are cut into cells one bandwidth wide; only occupied cells exist, so an outlier costs nothing. A cell
    near the query weighs (labels in it) * (kernel at its nearest label); a cell is drawn, a label in it, and accepted
    with the ratio of its kernel to the cell's. REACH cells on either side span 11 bandwidths: a label beyond weighs
    less than 1e-26 of the sample itself. Where rejections show that labels crowd at the far end of a cell, blocks
    double with the rank instead: 1, 2, 4, ... labels. The kernel falls with the rank, so the weights of doubling blocks
    sum to at most twice the kernel's (Cauchy condensation): half of their draws or more are accepted, whatever the
    labels.
    """

    REACH = 11
    DRAWS = 4  # candidates for each query in one attempt
    PATIENCE = 3  # attempts by cells before blocks double

    def __init__(self, y: Tensor, bandwidth: float, kernel: Kernel) -> None:
        self.bandwidth, self.kernel = bandwidth, kernel
        self.y, self.order = y.sort()
        self.rank = torch.empty_like(self.order)
        self.rank[self.order] = torch.arange(len(y))
        cells = (self.y / bandwidth).floor_()
        _, self.cell, size = torch.unique_consecutive(cells, return_inverse=True, return_counts=True)
        pad = size.new_zeros(self.REACH)
        self.size = torch.cat((pad, size, pad))
        self.start = torch.cat((pad, size.cumsum(0) - size, pad))
        self.low, self.high = self.y[self.start], self.y[(self.start + self.size - 1).clamp_(min=0)]
        self.near = torch.arange(2 * self.REACH + 1)
        self.steps = 2 ** torch.arange(len(y).bit_length())

    def draw(self, index: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        rank = self.rank[index if draws == 1 else index.repeat_interleave(draws)]
        found = torch.empty_like(rank)
        todo, attempts = torch.arange(len(rank)), 0
        while len(todo):
            blocks = self._cells if attempts < self.PATIENCE else self._doubling
            rejected = []
            for rows in torch.split(todo, BLOCK // 128):
                found[rows], accepted = self._attempt(rank[rows], blocks, generator)
                rejected.append(rows[~accepted])
            todo, attempts = torch.cat(rejected), attempts + 1
        return self.order[found].view(-1, draws)

    def _attempt(self, rank: Tensor, blocks: Blocks, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(Q,) ranks, and whether each was accepted as the partner of the label at `rank` (Q,)."""
        own = self.y[rank].unsqueeze(1)
        start, size, low, high = blocks(rank)
        bound = self._weight(torch.maximum(low - own, own - high).clamp_(min=0))
        block = choose((bound * size).cumsum(dim=1), self.DRAWS, generator)
        within, height = uniform(2, *block.shape, generator=generator).to(own.device)
        ranks = start.gather(1, block) + (within * size.gather(1, block)).long()
        accepted = height * bound.gather(1, block) < self._weight((self.y[ranks] - own).abs_())
        first = accepted.to(torch.uint8).argmax(dim=1, keepdim=True)
        return ranks.gather(1, first).squeeze(1), accepted.any(dim=1)

    def _cells(self, rank: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells = self.cell[rank].unsqueeze(1) + self.near
        return self.start[cells], self.size[cells], self.low[cells], self.high[cells]

    def _doubling(self, rank: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own, count = rank.unsqueeze(1), len(self.y)
        start = torch.cat((own + self.steps - 1, own - 2 * self.steps + 1), dim=1).clamp_(min=0)
        stop = torch.cat((own + 2 * self.steps - 1, own - self.steps + 1), dim=1).clamp_(max=count)
        size = (stop - start).clamp_(min=0)
        start = start.clamp_(max=count - 1)
        return start, size, self.y[start], self.y[(start + size - 1).clamp_(min=0)]

    def _weight(self, distance: Tensor) -> Tensor:
        return log_weights(distance, self.bandwidth, self.kernel).exp_()
