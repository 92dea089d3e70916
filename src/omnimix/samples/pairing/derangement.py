"""Derangement: a uniform cycle through the batch, so that nobody is mixed with itself.

    partner(order[i]) = order[i - 1 mod B],   order: a uniform permutation of the B rows

Source: the derangements of Li, Liu, Wang, Wu, Liu, Li, "Boosting Discriminative Visual Representation Learning with
Scenario-Agnostic Mixup", 2021, arXiv 2111.15454; of these, the cycles, which need one draw. Cost: 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.checks import at_least
from ...core.pairing import InBatch
from ...core.random import permutation


class Derangement(InBatch):
    """Partner columns without fixed points; those of a row differ, too, in batches of at least k rows.

    k: how many samples are mixed into one, itself included. A row alone in its batch is its own partner.
    """

    selects = False

    def __init__(self, k: int = 2) -> None:
        self.k = at_least("k", k, 2)

    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        order = permutation(len(batch), generator)
        found = torch.empty(len(order), self.k - 1, dtype=torch.long, device=order.device)
        found[order] = torch.stack([order.roll(step) for step in range(1, self.k)], dim=1)
        return found
