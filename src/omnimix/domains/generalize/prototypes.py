"""The mean features of each domain over its last batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["l1", "l2", "cosine"]


class Prototypes:
    """Sums and counts of features of the last `slots` batches that had rows of a domain; slots not filled count not."""

    def __init__(self, slots: int, domains: int, inputs: int) -> None:
        self.sums, self.counts = torch.zeros(slots, domains, inputs), torch.zeros(slots, domains)
        self.written = torch.zeros(domains, dtype=torch.long)

    @torch.no_grad()
    def add(self, z: Tensor, group: Tensor) -> None:
        """Note the features z (B, J) of the domains (B,)."""
        self._to(z.device)
        member = F.one_hot(group, len(self.written)).T.to(z.dtype)
        count = member.sum(dim=1)
        slot, column = self.written % len(self.sums), torch.arange(len(count), device=z.device)
        self.sums[slot, column] = torch.where((count > 0).unsqueeze(1), member @ z, self.sums[slot, column])
        self.counts[slot, column] = torch.where(count > 0, count, self.counts[slot, column])
        self.written = self.written + (count > 0)

    def distances(self, z: Tensor, kind: Distance) -> Tensor:
        """(B, D) from features z (B, J) to the mean of each domain; infinity for domains not seen yet."""
        self._to(z.device)
        count = self.counts.sum(dim=0)
        mean = self.sums.sum(dim=0) / count.clamp(min=1).unsqueeze(1)
        if kind == "cosine":
            distance = 1 - F.cosine_similarity(z.unsqueeze(1), mean, dim=2)
        else:
            distance = torch.linalg.vector_norm(z.unsqueeze(1) - mean, ord=1 if kind == "l1" else 2, dim=2)
        return torch.where(count > 0, distance, torch.inf)

    def _to(self, device: torch.device) -> None:
        self.sums, self.counts, self.written = (t.to(device) for t in (self.sums, self.counts, self.written))

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "counts": self.counts, "written": self.written}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums, self.counts, self.written = (state[name].clone() for name in ("sums", "counts", "written"))
