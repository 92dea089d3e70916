"""DEMix layers: every feed-forward network becomes one expert a domain; the known domain of a sequence chooses.

    x <- x + Attention(LN x),   x <- x + FFN_d(LN x),   d the domain of the sequence, in all layers

No router, and as many FLOPs a token as the dense model. Experts are added (a copy of the nearest one, it alone trained:
DEMix-DAPT, which leaves the other domains as they were) and removed. For text of unknown domain see `domain_mixture`.
Source: Gururangan et al., "DEMix Layers: Disentangling Domains for Modular Language Modeling", NAACL 2022,
arXiv:2108.05036. Cost: 1; memory of one feed-forward network a domain.

Gradients are those of the mean loss over all tokens of a step, with equal tokens a domain: shared weights get the mean
over domains, an expert its own domain's part of it, 1/n of the gradient of that domain's mean loss. A batch with the
same number of rows of each domain gives that; so do passes of one domain each whose losses / n are summed by
`backward`. Over several devices, one domain each: `DistributedDataParallel(demix, find_unused_parameters=True)`
averages over all ranks and counts a rank without a domain's rows as zero, which is the same gradient, also where
several ranks share a domain. All ranks then hold all experts and their gradients, so that `clip_grad_norm_` counts each
expert once. Experts without rows in a step have no gradient, and optimisers leave them and their moments alone.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.split import evaluating
from .base import Route, Routing, Slot, check_name, feed_forwards, logits_of, replace, slots, train_only


@dataclass(frozen=True)
class Removal:
    """What was removed, and what shows it.

    tensors, parameters: how many went. sha256: of their values. copies: names of tensors that are left and hold the
    same values as one that went (constant ones, such as zeros, aside). changed: domains whose logits on the probe are
    not the same bit for bit; None without a probe.
    """

    domain: str
    tensors: int
    parameters: int
    sha256: str
    copies: tuple[str, ...]
    changed: tuple[str, ...] | None

    @property
    def proved(self) -> bool:
        """Nothing of the expert is left in the model, and a probe gave the same for all other domains."""
        return not self.copies and self.changed == ()


class DEMix(nn.Module):
    """`model`, with an expert for each of `domains` in every feed-forward network, all copies of the one it has.

    The model is changed in place; `dense` changes it back. pattern: see `feed_forwards`. Call it as the model is
    called, and with `domain`: one name for the batch, or the domains of its rows, as names or as a tensor (B,) of
    indices into `domains` (one wait for the device). Weights are named `model.<path>.experts.<domain>.<name>`.
    ValueError for names that repeat or cannot be used.
    """

    def __init__(self, model: nn.Module, domains: Sequence[str], *, pattern: str | Sequence[str] | None = None) -> None:
        super().__init__()
        if isinstance(domains, str) or not domains or len({*domains}) < len(domains):
            raise ValueError(f"domains must be different names, at least one, got {domains!r}")
        self.route = Route()
        self.networks = feed_forwards(model, pattern)
        for network in self.networks:
            parts = network.modules(model)
            experts = {name: parts if name == domains[0] else copy.deepcopy(parts) for name in domains}
            replace(model, slots(experts, network, self.route))
        self.model = model

    @property
    def slots(self) -> list[Slot]:
        """The slots of all layers, first to last part of each network."""
        return [slot for network in self.networks for slot in network.modules(self.model) if isinstance(slot, Slot)]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the experts, in the order of their indices."""
        first = self.networks[0].modules(self.model)[0]
        assert isinstance(first, Slot)
        return tuple(first.experts)

    def forward(self, *args: Any, domain: str | Sequence[str] | Tensor, **kwargs: Any) -> Any:
        self.select(domain)
        return self.model(*args, **kwargs)

    def select(self, domain: str | Sequence[str] | Tensor) -> None:
        """Choose the experts of the calls of `self.model` that follow, such as `self.model.generate(...)`."""
        if isinstance(domain, str):
            self.route.routing = Routing(only=self._index(domain))
            return
        if not isinstance(domain, Tensor):
            domain = torch.tensor([self._index(name) for name in domain], device=next(self.model.parameters()).device)
        if domain.ndim != 1 or domain.is_floating_point():
            raise ValueError(
                f"domain must be a name, names, or a tensor (B,) of indices, got shape {tuple(domain.shape)}"
            )
        self.route.routing = Routing.of(domain[:, None], len(self.domains))

    def _index(self, domain: str) -> int:
        if domain not in self.domains:
            raise ValueError(f"domain {domain!r} has no expert; there are {', '.join(self.domains)}")
        return self.domains.index(domain)

    def expert(self, domain: str) -> list[nn.Module]:
        """The modules of one expert, in all layers: give their parameters to an optimiser, or freeze them."""
        self._index(domain)
        return [slot.experts[domain] for slot in self.slots]

    def add(self, domain: str, like: str) -> None:
        """A new expert, a copy of that of `like`, the last in the order. See `DomainMixture.estimate` for the nearest;
        `adapt` freezes all others."""
        if check_name(domain) in self.domains:
            raise ValueError(f"domain {domain!r} has an expert already; remove it first, or choose another name")
        self._index(like)
        for slot in self.slots:
            slot.experts[domain] = copy.deepcopy(slot.experts[like]).requires_grad_(True)

    def adapt(self, domain: str) -> dict[str, bool]:
        """Freeze everything but the expert of `domain`, for DEMix-DAPT; returns what `thaw` undoes it with. The paper
        trains without dropout then."""
        return train_only(self, self.expert(domain))

    def remove(
        self, domain: str, *, probe: Tensor | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> Removal:
        """Take the expert of a domain out of all layers and of `optimizer` (its weights and their moments).

        probe: inputs on which the other domains' logits are compared bit for bit before and after, in evaluation mode.
        Copies elsewhere (averages of weights, files, other optimisers) cannot be seen from here. ValueError for the
        last expert.
        """
        if self.domains == (domain,):
            raise ValueError(f"{domain!r} is the only expert; a model needs one")
        gone = [value for part in self.expert(domain) for value in (*part.parameters(), *part.buffers())]
        others = [name for name in self.domains if name != domain]
        before = [] if probe is None else self._probe(probe, others)
        for slot in self.slots:
            del slot.experts[domain]
        self.route.routing = None
        if optimizer is not None:
            ids = {id(value) for value in gone}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
            for value in gone:
                optimizer.state.pop(value, None)
        after = [] if probe is None else self._probe(probe, others)
        changed = tuple(name for name, a, b in zip(others, before, after, strict=False) if not torch.equal(a, b))
        left = [*self.named_parameters(), *self.named_buffers()]
        return Removal(
            domain=domain,
            tensors=len(gone),
            parameters=sum(value.numel() for value in gone),
            sha256=digest(gone),
            copies=tuple(name for name, value in left if any(same(value, old) for old in gone)),
            changed=None if probe is None else changed,
        )

    @torch.no_grad()
    def _probe(self, probe: Tensor, domains: Sequence[str]) -> list[Tensor]:
        with evaluating(self):
            return [logits_of(self(probe, domain=name)) for name in domains]

    def dense(self, domain: str) -> nn.Module:
        """The model with the feed-forward networks of one domain back in their places; this wrapper is done with."""
        self._index(domain)
        paths = [path for network in self.networks for path in network.parts]
        replace(self.model, dict(zip(paths, self.expert(domain), strict=True)))
        return self.model


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, which are not all one value."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) and bool((a != a.flatten()[0]).any())


def digest(tensors: Sequence[Tensor]) -> str:
    """SHA-256 of the bytes of the tensors, one after the other."""
    sha = hashlib.sha256()
    for value in tensors:
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
