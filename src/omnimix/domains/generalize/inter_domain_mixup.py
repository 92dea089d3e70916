"""Inter-domain mixup: every domain of the batch is mixed with another one, all in a ring.

    x = lam x_d + (1 - lam) x_e,   loss = lam l(f(x), y_d) + (1 - lam) l(f(x), y_e),   lam ~ Beta(alpha, alpha)

The domains come in random order; e follows d, and lam is drawn for each d. The baseline "Mixup" of Gulrajani and
Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, arXiv 2007.01434, after Yan et al., "Improve
Unsupervised Domain Adaptation with Mixup Training", 2020, arXiv 2001.00677, and Xu et al., "Adversarial Domain
Adaptation with Domain Mixup", AAAI 2020, arXiv 1912.01805. Cost: 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.checks import positive
from ...core.distinct import distinct
from ...core.method import Mix
from ...core.pairing import InBatch
from ...core.random import permutation
from ...core.ratio import Beta
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Log
from ...core.table import Table
from . import base


class NextDomain(InBatch):
    """The r-th sample of a domain meets the r-th of the next domain of the batch; smaller domains start again.

    The order of the domains is drawn; a batch of one domain stays unmixed.
    """

    most: int | None = None
    """How many domains the training set has, where it is known."""

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        self.most = len(torch.unique(table["domain"])) if table is not None and "domain" in table else None

    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        domain = _domain(batch)
        if (
            self.most is not None
            and domain.device.type in base.AT_ONCE
            and len(found := torch.unique(domain)) > self.most
        ):
            raise ValueError(f"the batch holds domains {found.tolist()}, the training table only {self.most} of them")
        _, place, count = distinct(domain, self.most)
        drawn, there = permutation(len(count), generator).to(place.device), count > 0
        order = drawn[torch.argsort((~there)[drawn].long(), stable=True)]  # the domains of the batch first
        after = order[(torch.argsort(order) + 1) % there.sum()][place]
        by_domain, start = torch.argsort(place, stable=True), count.cumsum(0) - count
        rank = torch.argsort(by_domain) - start[place]
        return by_domain[start[after] + rank % count[after]].unsqueeze(1)


def _domain(batch: Batch) -> Tensor:
    if batch.domain is None:
        raise ValueError("inter-domain mixup needs the domain of every sample: give Batch(x, y, domain=...)")
    return batch.domain[: len(batch)]


@register(
    "inter-domain-mixup",
    paper="In Search of Lost Domain Generalization, ICLR 2021, arXiv 2007.01434",
    level="domains",
    search={"alpha": Log(0.1, 10)},
)
class InterDomainMixup(Mix):
    """Mix every domain of the batch with another one. alpha > 0: of Beta(alpha, alpha)."""

    needs = ("domain",)

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__(NextDomain(), Beta(positive("alpha", alpha), per_sample=True))

    @property
    def by_row(self) -> bool:
        return False  # who trains several runs as one leaves domains out

    def recipe(self, batch: Batch) -> Recipe:
        partner = self.pairing(batch, self.generator)
        place = distinct(_domain(batch))[1]
        share = self.draw_share(len(batch), 2).to(batch.device)
        return Recipe(partner, share[place])  # as many draws as samples, so that nobody waits for a count
