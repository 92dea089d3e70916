"""Minimum cuts on grids, many at once, with tensor operations only; and exact labellings by a few of them.

    min over S  sum_{i in S} cost_i + sum_{edges ij} weight_ij [i in S xor j in S]

Duality: a cut costs at least what its edges can carry. Flow is moved along the edges until the excess (-cost at first)
is level, by projected over-relaxation of min 1/2 |excess|^2, |flow_ij| <= weight_ij; once no positive excess can reach
a negative one, the cells that reach none are a minimum cut. Sources: Kolmogorov, Zabih, "What Energy Functions Can Be
Minimized via Graph Cuts?", PAMI 2004; Murota, Shioura, "Exact bounds for steepest descent algorithms of L-convex
function minimization", 2014 (more labels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .inference import in_inference_mode

ROUNDS = 200
"""So often the flow is checked at most; a few times are common."""


@dataclass
class _Arcs:
    """Edges no two of which meet, so that all can carry at once: cells `near` to cells `far`, along one axis."""

    near: tuple[slice, ...]
    far: tuple[slice, ...]
    least: Tensor
    most: Tensor
    flow: Tensor

    def ends(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the cells on both sides."""
        return cells[self.near], cells[self.far]

    def level(self, low: Tensor, high: Tensor, pace: float) -> None:
        flow = torch.add(self.flow, low - high, alpha=pace)
        torch.clamp(flow, self.least, self.most, out=flow)
        moved = torch.sub(flow, self.flow, out=self.flow)
        low -= moved
        high += moved
        self.flow = flow

    def of(self, samples: Tensor) -> _Arcs:
        return _Arcs(self.near, self.far, *(t[..., samples] for t in (self.least, self.most, self.flow)))


def _arcs(size: Sequence[int], weights: Sequence[Tensor]) -> Iterator[_Arcs]:
    whole = (slice(None),) * len(size)
    for axis, (side, weight) in enumerate(zip(size, weights, strict=True)):
        for first in (0, 1):
            last = first + (side - first) // 2 * 2
            near, far = ((*whole[:axis], slice(first + i, last + i, 2), *whole[axis + 1 :]) for i in range(2))
            if last > first:
                most = weight.movedim(0, -1)[near].contiguous()
                yield _Arcs(near, far, -most, most, torch.zeros_like(most))


@in_inference_mode
def min_cut(cost: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(N, *size) True in the largest minimum cut of each of N grids.

    cost: (N, *size) floats, of any sign, of being in the cut. weights: for each axis of the grid, the costs >= 0 of
    separating a cell from the next along that axis, (N, *size) with one cell less there. Exact up to 1e-6 of the
    largest |cost| of a grid for each of its cells.
    """
    excess = torch.neg(cost).movedim(0, -1).contiguous()
    size = excess.shape[:-1]
    arcs = list(_arcs(size, weights))
    inside = torch.empty(excess.shape, dtype=torch.bool, device=cost.device)
    samples = torch.arange(len(cost), device=cost.device)
    slack = 1e-6 * excess.abs().flatten(0, -2).amax(dim=0)
    pace = 1.0 / (1.0 + math.sin(math.pi / (max(size) + 1)))  # half the best over-relaxation of a square grid
    for turn in range(ROUNDS):  # most grids are done soon, a few take long
        ends = [arc.ends(excess) for arc in arcs]
        for _ in range(max(1, max(size) * min(4, 2**turn) // 2)):
            for arc, (low, high) in zip(arcs, ends, strict=True):
                arc.level(low, high, pace)
        drained = _drained(excess < -slack, arcs)
        inside[..., samples] = ~drained
        left = ((excess > slack) & drained).flatten(0, -2).any(dim=0).nonzero()[:, 0]
        if not len(left):
            break
        samples, excess, slack = samples[left], excess[..., left], slack[left]
        arcs = [arc.of(left) for arc in arcs]
    return inside.movedim(-1, 0)


def _drained(sink: Tensor, arcs: Sequence[_Arcs]) -> Tensor:
    """Cells from which flow can still reach a sink."""
    free = [(*arc.ends(sink), arc.flow < arc.most, arc.flow > arc.least) for arc in arcs]
    while True:
        before = sink.clone()
        for near, far, onward, back in free:
            near |= far & onward
            far |= near & back
        if torch.equal(before, sink):
            return sink


@in_inference_mode
def convex_labels(unary: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(N, *size) labels k in 0..L-1 that minimise sum_i unary[k_i] + sum_edges weight (k_i - k_j)^2 / (L - 1)^2.

    unary: (N, L, *size), convex in the label (any, for L = 2). weights: as for `min_cut`. Exact: from all zero, L - 1
    best steps, each a minimum cut, lead to a global minimum, since the energy is L-natural convex.
    """
    top, label = unary.shape[1] - 1, torch.zeros_like(unary[:, 0], dtype=torch.long)
    weights = [weight / top**2 for weight in weights]
    axes = tuple(range(1, label.ndim))
    barred = unary.abs().amax(dim=1).amax(dim=axes, keepdim=True)
    for weight in weights:
        if weight.numel():
            barred = barred + 2 * weight.amax(dim=axes, keepdim=True)
    for _ in range(top):
        now, then = (unary.gather(1, k.unsqueeze(1))[:, 0] for k in (label, (label + 1).clamp(max=top)))
        cost = then - now
        for axis, weight in enumerate(weights, start=1):
            steps = 2 * weight * label.diff(dim=axis)
            cost.narrow(axis, 0, steps.shape[axis]).sub_(steps)
            cost.narrow(axis, 1, steps.shape[axis]).add_(steps)
        label += min_cut(cost.where(label < top, barred), weights)
    return label
