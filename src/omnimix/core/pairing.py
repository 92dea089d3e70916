"""Who is mixed with whom."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .batch import Batch
from .checks import at_least
from .random import permutation
from .recipe import guest_layout
from .table import Table

NONE = -1
"""No candidate: the row stays unmixed."""


class Pairing(ABC):
    """Chooses K - 1 partners for every anchor of a batch."""

    k: int = 2
    """How many samples are mixed into one, the sample itself included."""
    selects: ClassVar[bool] = True
    """Whether it chooses partners by more than chance."""
    missing: int = 0
    """How many rows had no candidate so far; they stayed unmixed."""

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:  # noqa: B027
        """Called once, before training; pairings over the whole training set read the table here."""

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor | None:
        """(B, K - 1) training rows to load as guests of the anchors `index` (B,); None: partners are in the batch."""
        return None

    @abstractmethod
    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """(B, K) rows of the batch; column 0 is the sample itself. A row without candidates points at itself."""

    def fill(self, partners: Tensor, own: Tensor) -> Tensor:
        """`partners` (B, K - 1) with `own` (B, 1) where there is no candidate; such rows are counted on the CPU."""
        if partners.device.type == "cpu":
            if int(partners.min()) != NONE:
                return partners
            self.missing += int((partners == NONE).any(dim=1).sum())
        return torch.where(partners == NONE, own, partners)


class InBatch(Pairing):
    """Partners come from the batch itself."""

    @abstractmethod
    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """(B, K - 1) rows of the batch; NONE where there is no candidate."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        own = torch.arange(len(batch), device=batch.device).unsqueeze(1)
        partners = self.partners(batch, generator).to(batch.device)
        return torch.cat((own, self.fill(partners, own)), dim=1)


class InTable(Pairing):
    """Partners come from the whole training set; the sampler loads them behind the anchors as guests."""

    @abstractmethod
    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """(B, K - 1) training rows for the anchors `index` (B,); NONE where there is no candidate.

        Draws for different anchors are independent: `index` may hold the anchors of several batches.
        """

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor:
        guests = self.draw(index, generator)
        return self.fill(guests, index.to(guests.device).unsqueeze(1))

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.columns != self.k:
            raise ValueError(
                f"{type(self).__name__} draws partners from the whole training set, so the batch must bring "
                f"{self.k - 1} guest(s) per sample; load it with omnimix.partner_loader(dataset, method, batch_size)"
            )
        partner = guest_layout(self.k, len(batch), batch.device)
        if batch.index is None:
            return partner
        rows = batch.index.view(self.k, len(batch))
        if batch.device.type == "cpu":  # for a few numbers NumPy is several times as fast
            numbers = rows.numpy()
            if not (numbers[1:] == numbers[0]).any():
                return partner
        return torch.where((rows == rows[0]).T, partner[:, :1], partner)


class RandomPairing(InBatch):
    """Each partner column is a uniform permutation of the batch; a sample may meet itself (Zhang et al. 2018).

    k: how many samples are mixed into one, itself included.
    """

    selects = False

    def __init__(self, k: int = 2) -> None:
        self.k = at_least("k", k, 2)

    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.stack([permutation(len(batch), generator) for _ in range(self.k - 1)], dim=1)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if type(self).partners is not RandomPairing.partners:
            return super().__call__(batch, generator)
        count = len(batch)  # everybody has a partner: nothing to fill
        columns = [permutation(count, generator) for _ in range(self.k - 1)]
        return torch.stack((_own(count, generator.device), *columns), dim=1).to(batch.device)


@functools.lru_cache(maxsize=8)
def _own(count: int, device: torch.device) -> Tensor:
    """0..count-1, kept: making it anew takes as long as the permutation."""
    return torch.arange(count, device=device)
