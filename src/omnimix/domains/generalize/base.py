"""What methods of domain generalisation share: the domains of the training set, and statistics of a batch by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.method import Method, Setup

AT_ONCE = ("cpu",)
"""Types of devices on which looking at a tensor waits for nothing."""


class ByDomain(Method):
    """Base of methods whose loss looks at the domain of each sample.

    `domains` holds the ids in the training set, ascending, after setup. Subclasses define `domain_loss`; in evaluation
    mode the loss is the plain one. A batch of another domain is a ValueError, on the CPU at once, on other devices with
    the 1st, 2nd, 4th, 8th... step or the epoch, so that steps do not wait for the device.
    """

    needs: tuple[str, ...] = ("domain",)
    domains: Tensor

    def on_setup(self, given: Setup) -> None:
        assert given.table is not None
        self.domains = torch.unique(given.table["domain"])
        self._strange: Tensor | None = None

    def group(self, batch: Batch) -> Tensor:
        """(B,) the place in `domains` of each sample; ValueError where the batch names none, or one not trained on."""
        if batch.domain is None:
            raise ValueError(f"{type(self).__name__} needs the domain of every sample: give Batch(x, y, domain=...)")
        known = self.domains.to(batch.domain.device)
        place = torch.searchsorted(known, batch.domain).clamp_(max=len(known) - 1)
        wrong = known[place] != batch.domain
        if batch.domain.device.type in AT_ONCE:
            if bool(wrong.any()):
                raise self._stranger(batch.domain[wrong][0])
        elif len(place):
            first, none = wrong.int().argmax(), known[0]
            found, before = torch.where(wrong[first], batch.domain[first], none), self._strange
            self._strange = found if before is None else torch.where(before == none, found, before)
        return place

    def _stranger(self, domain: Tensor) -> ValueError:
        return ValueError(f"the batch holds domain {int(domain)}, the training table {self.domains.tolist()}")

    def _check(self) -> None:
        """ValueError if a batch since the last call held a domain that is not in the training table."""
        strange, self._strange = self._strange, None
        if strange is not None and int(strange) != int(self.domains[0]):
            raise self._stranger(strange)

    def after_step(self) -> None:
        super().after_step()
        if self.steps_done & (self.steps_done - 1) == 0:
            self._check()

    def after_epoch(self) -> None:
        super().after_epoch()
        self._check()

    def shares(self, batch: Batch) -> Tensor:
        """(D, B) for each of `domains`: 1 / count for its samples, 0 elsewhere; all 0 for a domain the batch lacks.

        `shares @ values` are means by domain; `over_held` takes means over those that are there. A device's counts stay
        there, so that nobody waits for them.
        """
        group = self.group(batch)
        member = (group == torch.arange(len(self.domains), device=group.device).unsqueeze(1)).float()
        return member / member.sum(dim=1, keepdim=True).clamp(min=1)

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        return self.domain_loss(model, batch) if model.training else self.plain_loss(model, batch)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar loss of a training step."""
        raise NotImplementedError

    def risks(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the mean loss of each domain (D,), 0 for those that the batch lacks; which it has (D,))."""
        losses, share = self.task.losses(model(batch.x), batch.y), self.shares(batch)
        return share.to(losses.dtype) @ losses, held(share)


def held(share: Tensor) -> Tensor:
    """(D,) whether the batch has samples of each domain; share: (D, B) as in `ByDomain.shares`."""
    return (share > 0).any(dim=1)


def over_held(values: Tensor, there: Tensor) -> Tensor:
    """The mean of the values (D,) where `there` (D,) is True; 0 where nothing is."""
    return torch.where(there, values, 0.0).sum() / there.sum().clamp(min=1)
