"""DRM: a head for every domain beside the network's own, and for each test sample a mixture of those that fit it.

    loss = mean_d [ R_d(h_d) + R_d(h) ] / 2,   output = sum_i w_i softmax(h_i(z)),   w_i ~ H_i^-gamma

z: the head's inputs, h: the network's own head, i: all heads, H_i: entropy of the sample's softmax(h_i(z)). Other fits
than 1 / H: a classifier of domains trained beside the network, or 1 / distance to the mean features of a domain; they
weigh the domains' heads only. Source: Zhang, Wang, Liang, Zhang, Yu, Wang, Tao, Xie, "Domain-Specific Risk
Minimization for Out-of-Distribution Generalization", KDD 2023, arXiv 2208.08661. Cost: 1. `OnlineDRM` trains on along
the test stream. reference=True mixes as the authors' code does: a sum leaves out the network's own head after weighing
it, and "cosine" favours the least similar domain.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, non_negative, one_of, positive
from ...core.companion import fitting
from ...core.method import Setup
from ...core.registry import register
from ...core.search import Choice
from ...core.side import Beside, mlp
from ...core.sided import Sided
from .base import ByDomain, held, over_held
from .prototypes import Prototypes

By = Literal["entropy", "discriminator", "l1", "l2", "cosine"]
TINY = 1e-12


def head_shares(fit: Tensor, gamma: float) -> Tensor:
    """(B, H) in proportion to fit^gamma, from its logarithms (B, H); gamma = infinity takes the best head alone."""
    if not gamma:  # also where a fit is infinite
        return torch.full_like(fit, 1.0 / fit.shape[1])
    if math.isinf(gamma):
        return F.one_hot(fit.argmax(dim=1), fit.shape[1]).to(fit.dtype)
    return torch.softmax(gamma * fit, dim=1)


def entropy(output: Tensor) -> Tensor:
    """Entropies of softmax over the last dimension."""
    log = output.log_softmax(dim=-1)
    return -(log.exp() * log).sum(dim=-1)


@register(
    "drm",
    paper="Domain-Specific Risk Minimization for Out-of-Distribution Generalization, KDD 2023, arXiv 2208.08661",
    tasks=("classification",),
    level="domains",
    search={"gamma": Choice(0.0, 0.5, 1.0, 5.0)},
)
class DRM(Sided, ByDomain):
    """Train a head for every domain beside the network's own, and mix for each test sample those that fit it.

    gamma >= 0: how much fit decides; 0 is the plain mean, infinity takes one head. by: fit is low "entropy", the
    "discriminator" of domains, or a small "l1", "l2" or "cosine" distance to the mean features of a domain over its
    last `memory` batches. width: of the discriminator's two hidden layers, lr: of its Adam (moments of 0.5 and 0.9);
    the heads step as the user's optimiser. Outputs are logarithms of mixed probabilities; before the first batch, the
    network's own.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        by: By = "entropy",
        *,
        memory: int = 50,
        width: int = 256,
        lr: float = 1e-3,
        reference: bool = False,
    ) -> None:
        self.gamma, self.memory = non_negative("gamma", gamma), at_least("memory", memory, 1)
        self.by: By = one_of("by", by, ("entropy", "discriminator", "l1", "l2", "cosine"))
        self.width, self.reference = at_least("width", width, 1), reference
        self.adam = partial(torch.optim.Adam, lr=positive("lr", lr), betas=(0.5, 0.9))

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.prototypes: Prototypes | None = None
        self.discriminator: Beside | None = None

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        inputs, domains = sizes["head input"], len(self.domains)
        own = self.split.model.get_submodule(self.split.head_name)
        if self.by == "discriminator":
            judge = mlp(inputs, domains, [self.width, self.width], self.generator)
            self.discriminator = Beside({"domain": judge}, self.adam)
        elif self.by != "entropy":
            self.prototypes = Prototypes(self.memory, domains, inputs)
        return {"heads": nn.ModuleList(copy.deepcopy(own) for _ in range(domains))}

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        side, group = self.beside(model, batch.x), self.group(batch)
        z, shared = self.split.features_and_output(batch.x, model)
        own = self.each(z)[torch.arange(len(batch), device=z.device), group]
        losses = (self.task.losses(own, batch.y) + self.task.losses(shared, batch.y)) / 2
        share, flat = self.shares(batch), z.detach().flatten(1).float()
        loss = over_held(share.to(losses.dtype) @ losses, held(share))
        if self.prototypes is not None:
            self.prototypes.add(flat, group)
        elif self.discriminator is not None:
            loss = self.discriminator.watch(loss + F.cross_entropy(self._guess(flat), group))
        return side.watch(loss)

    def _guess(self, z: Tensor) -> Tensor:
        """(B, D) what the classifier of domains says of features (B, F)."""
        assert self.discriminator is not None
        self.discriminator.to(z.device)
        return cast(Tensor, self.discriminator.modules["domain"](z))

    def after_step(self) -> None:
        super().after_step()
        if self.discriminator is not None:
            self.discriminator.step()

    def each(self, z: Tensor) -> Tensor:
        """(B, D, C) outputs of the domains' heads."""
        assert self.side is not None
        heads = self.side.modules["heads"]
        assert isinstance(heads, nn.ModuleList)
        z = fitting(heads, z)
        return torch.stack([head(z) for head in heads], dim=1)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        if self.side is None:
            return super().predict(model, x)
        self.side.to(next(model.parameters()).device)
        z, shared = self.split.features_and_output(x, model)
        return self.mixture(z, torch.cat((self.each(z), shared.unsqueeze(1)), dim=1))

    def mixture(self, z: Tensor, output: Tensor) -> Tensor:
        """(B, C) logarithms of the mixed probabilities of outputs (B, D + 1, C), the network's own head last."""
        output = output.float()
        if self.by != "entropy":
            output = output[:, :-1]
        share = head_shares(self.fit(z.flatten(1).float(), output), self.gamma)
        if self.reference and self.by == "entropy" and math.isfinite(self.gamma):
            output, share = output[:, :-1], share[:, :-1]
        return torch.logsumexp(output.log_softmax(dim=2) + share.log().unsqueeze(2), dim=1)

    def fit(self, z: Tensor, output: Tensor) -> Tensor:
        """(B, H) logarithms of how well each head fits."""
        if self.by == "entropy":
            return -(entropy(output) + TINY).log()
        if self.by == "discriminator":
            return self._guess(z).log_softmax(dim=1)
        assert self.prototypes is not None
        fit = -self.prototypes.distances(z, self.by).clamp(min=TINY).log()
        return -fit if self.reference and self.by == "cosine" else fit

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        parts = {"prototypes": self.prototypes, "discriminator": self.discriminator}
        return {**state, **{name: part.state_dict() for name, part in parts.items() if part is not None}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prototypes, self.discriminator = None, None
        super().load_state_dict(state)
        for name, part in {"prototypes": self.prototypes, "discriminator": self.discriminator}.items():
            if part is not None:
                part.load_state_dict(state[name])
