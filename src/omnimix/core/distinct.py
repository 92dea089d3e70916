"""The distinct ids of a batch in tensors of a known size, so that nobody waits for a device to count them."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(ids: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(the distinct ids (S,) ascending, the place of each row among them (B,), how often each occurs (S,)).

    S is B, or `most` if the caller knows that no more can occur and that is less. Places that are left over come last:
    they repeat the smallest id and count 0.
    """
    size = len(ids) if most is None else min(len(ids), most)
    order = ids.argsort(stable=True)
    ascending = ids[order]
    rank = torch.zeros_like(order)
    rank[1:] = (ascending[1:] != ascending[:-1]).cumsum(dim=0)
    place = torch.empty_like(order).scatter_(0, order, rank)
    found = ascending[:1].expand(size).clone().scatter_(0, rank, ascending)
    count = torch.zeros(size, dtype=torch.long, device=ids.device).scatter_add_(0, place, torch.ones_like(place))
    return found, place, count
