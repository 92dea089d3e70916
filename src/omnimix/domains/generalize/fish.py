"""Fish: step through the domains one after the other, then go part of the way to where that led.

    theta~ <- theta;  for each domain d in random order: theta~ <- optimiser step on R_d(theta~);
    theta <- theta + eps (theta~ - theta)

To first order this descends IDGM: mean_d R_d - gamma mean_{d < e} <grad R_d, grad R_e>, which `idgm` does exactly.
Source: Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, arXiv 2104.09937, Algorithm 2. Cost: 1 (as
many small gradients as domains, of the samples of one step of plain training). The inner optimiser is the user's own;
its moments stay from step to step, as in DomainBed. eps is DomainBed's meta_lr, not divided by the number of domains as
in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, non_negative
from ...core.inside import Inside
from ...core.random import permutation
from ...core.registry import register
from ...core.sampler import by_group
from ...core.search import Choice, Log
from ...core.tree import tree_map
from .base import ByDomain, over_held


@torch.no_grad()
def interpolate_state(model: nn.Module, start: dict[str, Tensor], eps: float) -> None:
    """Set `model` to start + eps (now - start), parameters and buffers, in place; counters stay as they are now."""
    for name, now in model.state_dict().items():
        if now.is_floating_point():
            now.copy_(torch.lerp(start[name], now, eps))


def gradient_products(risks: Tensor, parameters: Iterable[Tensor], count: Tensor | None = None) -> Tensor:
    """The mean inner product of the gradients of two of the risks (D,), differentiable; 0 for one risk.

    count: how many of them are risks of samples, where the others are constants; None: all.
    """
    wanted = [p for p in parameters if p.requires_grad]
    rows = [torch.autograd.grad(risk, wanted, create_graph=True, materialize_grads=True) for risk in risks]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    both = flat.sum(dim=0).square().sum() - flat.square().sum()
    count = torch.tensor(len(flat), device=flat.device) if count is None else count
    return both / (count * (count - 1)).clamp(min=1)


@register(
    "fish",
    paper="Gradient Matching for Domain Generalization, ICLR 2022, arXiv 2104.09937",
    level="domains",
    search={"eps": Choice(0.05, 0.1, 0.5)},
)
class Fish(ByDomain):
    """Step through the domains one after the other, then go part of the way to where that led.

    eps in [0, 1]: that part. shuffle: visit the domains in random order; DomainBed keeps one order. domains: how many
    a step visits, which are then those in its batch; None: all.
    """

    own_step = True

    def __init__(self, eps: float = 0.5, *, shuffle: bool = True, domains: int | None = None) -> None:
        self.eps, self.shuffle = in_unit("eps", eps), shuffle
        self.visited = None if domains is None else at_least("domains", domains, 1)

    def batches(self, size: int, steps: int, generator: torch.Generator) -> list[Tensor] | None:
        if self.visited is None:
            return None
        assert self.given is not None
        assert self.given.table is not None
        return by_group(self.given.table["domain"], size, steps, generator, self.visited)

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        self._given()
        batch, group = batch.alone, self.group(batch.alone)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        place = group.cpu()  # the one wait of a step: the sizes of the domains' batches are known on the host
        present = torch.unique(place)
        if self.shuffle:
            present = present[permutation(len(present), self.generator)]
        losses = []
        for domain in present[: self.visited]:
            rows = torch.nonzero(place == domain).flatten().to(group.device)
            part = Batch(tree_map(partial(torch.index_select, dim=0, index=rows), batch.x), batch.y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss = self.plain_loss(model, part)
            backward(loss)
            if clip is not None:
                clip()
            optimizer.step()
            losses.append(loss.detach())
        interpolate_state(model, start, self.eps)
        return torch.stack(losses).mean()

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean risk, for loops that do not call `step`: plain training on the domains."""
        return over_held(*self.risks(model, batch))


@register(
    "idgm",
    paper="Gradient Matching for Domain Generalization, ICLR 2022, arXiv 2104.09937",
    cost=3.0,
    level="domains",
    search={"gamma": Log(1e-3, 1)},
)
class IDGM(ByDomain):
    """Make the gradients of the domains point the same way, by second derivatives.

    gamma >= 0: the weight of the mean inner product of the gradients of two domains.
    """

    def __init__(self, gamma: float = 0.1) -> None:
        self.gamma = non_negative("gamma", gamma)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        risks, there = self.risks(Inside(model, self._given().model), batch)
        products = gradient_products(risks, model.parameters(), there.sum())
        return over_held(risks, there) - self.gamma * products
