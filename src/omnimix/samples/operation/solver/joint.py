"""Co-Mixup's problem: which input shows where in which output, so that outputs are salient, smooth and diverse.

    min over M   sum <cost + bias, M> + beta'/2 sum_edges |M_u - M_v|^2 + gamma' sum_o <n_o, [v_o > tau blocks] v_o>,
    n_o = sum over blocks of M_o,   v_o = A sum_{o' != o} n_o',   beta' = beta / blocks,   gamma' = gamma / blocks

M holds one input, or two halves, for each block of each output. Iterated: the diversity term is made linear about the
other outputs, one output is solved for after the other. Source: Kim, Choo, Jeong, Song, "Co-Mixup", ICLR 2021, arXiv
2102.03065, algorithm 1. A single output is solved for by mean-field annealing in place of alpha-beta swaps: a dozen
operations for all groups at once, and lower energies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .inference import in_inference_mode

COOLING = (1.0, 0.5, 0.25, 0.12)
"""Temperatures, over beta'."""
SOFT_GAIN = 5e-4
"""What a block gains by showing two halves, beside the smoothness; of the reference code."""


Threshold = Literal["hard", "soft"]


def above(use: Tensor, limit: float, threshold: Threshold) -> Tensor:
    """What counts of `use`, where it is above `limit`: "hard" all of it, "soft" the excess; 0 elsewhere."""
    return torch.threshold(use, limit, 0.0) if threshold == "hard" else (use - limit).clamp(min=0)


def joint_objective(
    mask: Tensor,
    cost: Tensor,
    compat: Tensor,
    *,
    beta: float = 0.32,
    gamma: float = 1.0,
    tau: float = 0.83,
    threshold: Threshold = "hard",
) -> Tensor:
    """(G,) the energy of masks (G, outputs, inputs, *grid), without the bias; see `joint_masks` for the arguments."""
    blocks = cost[0, 0].numel()
    counts = mask.flatten(3).sum(dim=3)
    energy = (mask * cost.unsqueeze(1)).flatten(1).sum(dim=1)
    for axis in range(3, mask.ndim):
        energy = energy + beta / blocks / 2 * mask.diff(dim=axis).square().flatten(1).sum(dim=1)
    used = (counts.sum(dim=1, keepdim=True) - counts) @ compat.mT
    return energy + gamma / blocks * (above(used, tau * blocks, threshold) * counts).flatten(1).sum(dim=1)


@in_inference_mode
def joint_masks(
    cost: Tensor,
    compat: Tensor,
    bias: Tensor | None = None,
    *,
    beta: float = 0.32,
    gamma: float = 1.0,
    tau: float = 0.83,
    threshold: Threshold = "hard",
    sweeps: int = 4,
    soft: bool = True,
    resolve: bool = True,
    start: Tensor,
) -> Tensor:
    """(G, outputs, inputs, *grid) masks that sum to 1 over the inputs, for each of G groups.

    cost: (G, inputs, *grid) of showing an input in a block, minus its saliency. compat: (G, inputs, inputs) A. bias:
    (G, outputs, inputs) further costs of each of their blocks. tau: an input is over-used by the others of an
    output when they show it in more than tau * blocks; threshold: see `above`. soft: from the second sweep on,
    blocks may show halves of two of the inputs that an output used, of its three most used ones at most. resolve:
    before the last sweep, outputs of equal inputs are pushed apart, in groups that have not settled. start: (G,
    outputs, blocks) the inputs shown at first.
    """
    groups, inputs, *grid = cost.shape
    outputs, blocks = start.shape[1], start.shape[2]
    smooth = beta / blocks
    links = _neighbours(grid, cost)
    edges = smooth / 2 * links.sum(dim=0)  # half of those of a block
    links = -smooth * links
    sharp = [-1.0 / (max(smooth, 1e-6) * t) for t in COOLING]
    pull = 2 * gamma / blocks * compat
    flat, over = cost.flatten(2), 2 * gamma * tau
    biases = cost.new_zeros(groups, outputs, inputs) if bias is None else bias
    eye = torch.eye(inputs, device=cost.device)
    shown = list(eye[start].unbind(1))  # (G, blocks, inputs) of each output
    counts = [mask.sum(dim=1) for mask in shown]
    total = torch.stack(counts).sum(dim=0)
    before = shown
    for sweep in range(sweeps):
        used = torch.stack(counts)
        if resolve and sweep == sweeps - 1 and sweep > 0:
            moved = (torch.stack(before) != torch.stack(shown)).flatten(2).any(dim=2).any(dim=0)
            push = gamma / blocks * push_apart(used.transpose(0, 1) > 0)
            biases = biases + push * moved.view(-1, 1, 1)  # the authors' loop ends before this where nothing changes
        before = list(shown)
        labels, offset = _labels(used, edges, halves=sweep > 0 and soft)
        parts = labels, labels.flatten(1, 2), labels @ labels.mT, offset, biases.unsqueeze(3).transpose(0, 1)
        first = labels.shape[2] * torch.arange(groups, device=cost.device).unsqueeze(1)
        for o, (label, listed, alike, own, further) in enumerate(zip(*parts, strict=True)):
            others = total - counts[o]
            overused = above(torch.bmm(pull, others.unsqueeze(2)), over, threshold)
            linear = torch.baddbmm(own, label, flat + (overused + further))
            best = _best(linear, alike, links, sharp)
            shown[o] = listed.index_select(0, (best + first).flatten()).view(groups, blocks, inputs)
            counts[o] = shown[o].sum(dim=1)
            total = others + counts[o]
    return torch.stack(shown, dim=1).mT.reshape(groups, outputs, inputs, *grid)


def _neighbours(grid: list[int], like: Tensor) -> Tensor:
    """(blocks, blocks) 1 where two blocks share a face, else 0."""
    place = torch.cartesian_prod(*(torch.arange(side, device=like.device) for side in grid)).view(-1, len(grid))
    apart = (place.unsqueeze(1) - place).abs().sum(dim=2)
    return (apart == 1).to(like.dtype)


def _labels(used: Tensor, edges: Tensor, *, halves: bool) -> tuple[Tensor, Tensor]:
    """What each output may show in a block, (outputs, G, labels, inputs), and its cost (outputs, G, labels, blocks).

    used: (outputs, G, inputs) in how many blocks. edges: (blocks,) half of those of a block; they are multiplied by the
    squared length of a label: 1, or 1/2 for two halves. halves: of the three most used inputs, as far as they are used.
    """
    inputs = used.shape[2]
    eye, top = torch.eye(inputs, device=used.device), min(3, inputs)
    labels, offset = eye.expand(*used.shape[:2], -1, -1), edges.expand(*used.shape, -1)
    if not halves or top == 1:
        return labels, offset
    pairs = torch.combinations(torch.arange(top, device=used.device), 2)
    most, which = used.topk(top, dim=2)
    absent = most[:, :, pairs[:, 1]] <= 0
    half = F.one_hot(pairs, top).sum(dim=1) / 2 @ eye[which]
    gain = torch.add(edges / 2 - SOFT_GAIN, absent.unsqueeze(3), alpha=1e4)
    return torch.cat((labels, half), dim=2), torch.cat((offset, gain), dim=2)


def _best(linear: Tensor, alike: Tensor, links: Tensor, sharp: Sequence[float]) -> Tensor:
    """(G, blocks) the labels of a state of low energy.

    linear: (G, labels, blocks) costs. alike: (G, labels, labels) products of labels. links: (blocks, blocks) of an
    edge. sharp: what energies are multiplied by, minus one over the temperatures.
    """
    chance = torch.softmax(linear * sharp[0], dim=1)
    for scale in sharp[1:]:
        field = torch.matmul(chance, links)
        chance = torch.softmax(torch.baddbmm(linear, alike, field, beta=scale, alpha=scale), dim=1)
    energy = torch.baddbmm(linear, alike, torch.matmul(chance, links))
    return energy.min(dim=1).indices  # several times as fast as argmin


def push_apart(used: Tensor) -> Tensor:
    """(G, outputs, inputs) 1 on the first input of outputs that a later output equals, on the second where an earlier.

    used: (G, outputs, inputs) booleans; outputs of a single input are left alone.
    """
    equal = (used.unsqueeze(2) == used.unsqueeze(1)).all(dim=3) & (used.sum(dim=2) > 1).unsqueeze(2)
    rank = used.cumsum(dim=2) * used
    later, earlier = equal.triu(1).any(dim=2), equal.tril(-1).any(dim=2)
    pushed = (later.unsqueeze(2) & (rank == 1)) | (earlier.unsqueeze(2) & (rank == 2))
    return pushed.float()
