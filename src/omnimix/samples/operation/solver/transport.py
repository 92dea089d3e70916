"""Block transport of Puzzle Mix: which block of an image to move into each place of its mask.

    cost_ij = eps |pos_i - pos_j|^2 / (longest side - 1)^2 - saliency_i [mask_j > 0],    block i to place j

Every block claims its cheapest place; a place keeps the cheapest claimant; the refused claim their next best. Source:
Kim, Choo, Song, "Puzzle Mix", ICML 2020, arXiv 2009.06962, algorithm 2. Only claims of negative cost gain anything, and
only refused blocks look again, so that little is left to do after the first round.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .inference import in_inference_mode


@functools.lru_cache(maxsize=32)
def distances(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(T, T) squared distances between the T cells of a grid, over (longest side - 1)^2."""
    with torch.inference_mode(False):
        place = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, len(grid))
        squared = (place.unsqueeze(1) - place).square().sum(dim=-1)
        return (squared / max(1, max(grid) - 1) ** 2).float().to(device)


@functools.lru_cache(maxsize=32)
def _nearest(grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(T, T) the places by their distance from each block, of equals the first; int32 which of them each place is."""
    with torch.inference_mode(False):
        order = distances(grid, device).sort(dim=1, stable=True).indices
        return order, order.argsort(dim=1).int()


@in_inference_mode
def block_transport(mask: Tensor, saliency: Tensor, eps: float = 0.8, rounds: int | None = None) -> Tensor:
    """(N, *grid) for each place the block, counted row by row, to move there: its own where nobody else gains.

    mask: (N, *grid), > 0 at the places that show the image. saliency: (N, *grid) >= 0 of the blocks. eps: the price of
    moving. rounds: of claims; None is the longest side of the grid, as in the reference code.
    """
    grid = tuple(mask.shape[1:])
    price, (order, rank) = distances(grid, mask.device) * eps, _nearest(grid, mask.device)
    cells, blocks = len(price), mask.numel()
    hidden, gain = (mask <= 0).reshape(-1, cells), saliency.float().reshape(-1)
    block = torch.arange(blocks, device=mask.device)
    # A block whose own place shows claims that first; index `blocks` stands for nobody.
    at_home = torch.cat((~hidden.flatten() & (gain > 0), torch.zeros_like(hidden[0, :1])))
    holder = torch.where(at_home[:-1], block, blocks)
    held = torch.where(at_home, -torch.nn.functional.pad(gain, (0, 1)), torch.inf)
    cost_of, last = held.clone(), at_home[:-1].int() - 1
    least = price.flatten()[1:].min() if cells > 1 else price.new_tensor(torch.inf)
    claims = (hidden.flatten() & (gain > least)).nonzero()[:, 0]
    for _ in range(max(grid) if rounds is None else rounds):
        sample, own = claims // cells, claims % cells
        key = rank[own]
        key.masked_fill_(hidden[sample] | (key <= last[claims].unsqueeze(1)), cells)
        first = key.amin(dim=1)
        where = order[own, first.clamp(max=cells - 1).long()]
        best = price[own, where] - gain[claims]
        good = (best < 0) & (first < cells)
        claims, best, where, first = claims[good], best[good], where[good], first[good]
        if not len(claims):
            break
        cost_of[claims], last[claims] = best, first
        target = sample[good] * cells + where
        held.scatter_reduce_(0, target, best, "amin")
        rivals, places = torch.cat((claims, holder[target])), target.repeat(2)
        winning = cost_of[rivals] == held[places]
        holder[target] = blocks
        holder.scatter_reduce_(0, places[winning], rivals[winning], "amin")  # of equals the first
        claims = torch.unique(rivals[(holder[places] != rivals) & (rivals < blocks)])
    return torch.where(holder < blocks, holder, block).remainder(cells).view(mask.shape)
