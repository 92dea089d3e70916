"""DANN: features from which a classifier that is trained beside the network cannot tell the domain.

    loss = risk + CE(D(r(z)), domain),   r: the identity whose gradient is multiplied by -lam,   z: the head's inputs

D is trained at full rate, the network against it. CDANN: D sees z + e_y with a learned vector e_y for each class, and
all classes of the batch weigh the same. Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR
2016, arXiv 1505.07818; Li et al., "Deep Domain Generalization via Conditional Invariant Adversarial Networks", ECCV
2018, with e_y and the optional penalty on D's gradient as in DomainBed. Cost: 1. DomainBed's schedule is d_steps = 1:
it trains the network in every second step only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, non_negative, positive
from ...core.method import Setup
from ...core.registry import register
from ...core.reversal import reverse
from ...core.search import Choice, Log
from ...core.side import linear, mlp
from ...core.sided import Sided
from .base import ByDomain


def balanced_weights(target: Tensor) -> Tensor:
    """(B,) weights that sum to 1, as much for each class of the batch; target: (B, C) soft or one-hot."""
    count = target.sum(dim=0)
    present = (count > 0).sum()
    return (target / count.clamp(min=torch.finfo(count.dtype).tiny)).sum(dim=1) / present


@register(
    "dann",
    paper="Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818",
    level="domains",
    search={"lam": Log(1e-2, 1e2), "penalty": Choice(0.0, 0.1, 1.0), "lr": Log(3e-5, 3e-3)},
)
class DANN(Sided, ByDomain):
    """Make features from which a classifier that is trained beside the network cannot tell the domain.

    lam >= 0: how much the network is trained against that classifier. ramp: lam grows from 0 over the planned steps, by
    2 / (1 + exp(-10 t / T)) - 1, as in the paper; otherwise it is constant, as in DomainBed. penalty >= 0: the weight
    of its squared input gradients. d_steps: of every 1 + d_steps steps the first ones train the classifier alone, the
    last one the network alone; 0: each step trains both. lr: of its Adam. width, depth: of its hidden layers.
    """

    conditional = False

    def __init__(
        self,
        lam: float = 1.0,
        *,
        ramp: bool = False,
        penalty: float = 0.0,
        d_steps: int = 0,
        lr: float = 1e-3,
        width: int = 256,
        depth: int = 2,
    ) -> None:
        self.lam, self.ramp, self.penalty = non_negative("lam", lam), ramp, non_negative("penalty", penalty)
        self.d_steps = at_least("d_steps", d_steps, 0)
        self.width, self.depth = at_least("width", width, 1), at_least("depth", depth, 0)
        self.optimizer = partial(torch.optim.Adam, lr=positive("lr", lr), betas=(0.5, 0.9))

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        if self.ramp and not given.steps:
            raise ValueError("ramp=True needs the number of training steps: setup(..., steps=...)")

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        inputs = sizes["head input"]
        domain: nn.Module = mlp(inputs, len(self.domains), [self.width] * self.depth, self.generator)
        if not self.conditional:
            return {"domain": domain}
        return {"domain": domain, "class": linear(self.task.outputs, inputs, 1.0, self.generator, bias=False)}

    def strength(self) -> float:
        """lam at the present step."""
        steps = self._given().steps
        if not self.ramp or not steps:
            return self.lam
        return self.lam * (2.0 / (1.0 + math.exp(-10.0 * min(self.steps_done / steps, 1.0))) - 1.0)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        side = self.beside(model, batch.x)
        z, output = self.split.features_and_output(batch.x, model)
        z, risk = z.flatten(1).float(), self.task.mean_loss(output, batch.y)
        if not self.d_steps:
            return side.watch(risk + self.adversary(reverse(z, self.strength()), batch))
        if (self.steps_done + 1) % (1 + self.d_steps) < self.d_steps:
            return side.watch(self.adversary(z.detach(), batch))
        side.modules.requires_grad_(False)
        loss = risk + self.adversary(reverse(z, self.strength()), batch)
        side.modules.requires_grad_(True)
        return loss

    def adversary(self, z: Tensor, batch: Batch) -> Tensor:
        """The loss of the domain classifier on features z (B, F)."""
        assert self.side is not None
        modules, group, weight = self.side.modules, self.group(batch), None
        if self.conditional:
            target = self.task.soft_target(batch.y).float()
            z, weight = z + modules["class"](target), balanced_weights(target)
        if self.penalty and not z.requires_grad:
            z = z.requires_grad_()
        losses = F.cross_entropy(modules["domain"](z), group, reduction="none")
        loss = losses.mean() if weight is None else (weight * losses).sum()
        if self.penalty:
            (slope,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
            loss = loss + self.penalty * slope.square().sum(dim=1).mean()
        return loss


@register(
    "cdann",
    paper="Deep Domain Generalization via Conditional Invariant Adversarial Networks, ECCV 2018",
    tasks=("classification",),
    level="domains",
    search={"lam": Log(1e-2, 1e2), "penalty": Choice(0.0, 0.1, 1.0), "lr": Log(3e-5, 3e-3)},
)
class CDANN(DANN):
    """Make features from which a classifier that knows the class cannot tell the domain. Parameters as of `DANN`."""

    conditional = True
