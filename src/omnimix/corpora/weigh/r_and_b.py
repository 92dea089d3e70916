"""R&B's balancing: after every round the mixture follows how well the domains' gradients agree with the targets'.

    G_ij = <g_i, g_j> / (n_i n_j),    v = G q,    w <- softmax(lam v / |v|)

g_i: sum over the round's samples of domain i of the output layer's gradient, n_i: their number, q: the shares of the
domains in what the model is for. Source: Ge et al., "R&B: Domain Regrouping and Data Mixture Balancing for Efficient
Foundation Model Training", arXiv 2505.00358, 2025. Cost: one matrix product a step, on what the backward pass computes
anyway, and k gradients of the output layer in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import at_least, non_negative, one_of
from ..proxy import Rule, Setting, Step
from ..proxy.rule import Losses

ABSENT = ("last", "zero")


def gram(sums: Tensor, counts: Tensor) -> Tensor:
    """(k, k) float64 inner products of the domains' mean gradients; 0 for a domain without samples.

    sums: (k, ...), summed gradients; counts: (k,), samples in each.
    """
    flat = sums.flatten(1).double()
    counts = counts.double()
    return flat @ flat.T / torch.outer(counts, counts).clamp(min=1)


def balance(v: Tensor, lam: float = 3.0) -> Tensor:
    """(k,) float64 mixture of the agreements v = G q (k,); uniform where all are 0. max / min <= exp(2 lam)."""
    v = v.double()
    norm = v.norm()
    return torch.softmax(lam * v / torch.where(norm > 0, norm, torch.ones_like(norm)), dim=0)


@contextmanager
def output_gradients(head: nn.Linear, keep: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within it, each backward pass through `head` calls keep(a, delta): the inputs (B, T, D) and the gradients of the
    outputs (B, T, V), so that sum_t delta_t a_t^T is a sample's gradient of the weight. An embedding that shares the
    weight adds nothing.
    """
    taken: list[Tensor] = []

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            taken.append(inputs[0].detach())

    def backward(module: nn.Module, inner: Any, outer: tuple[Tensor, ...]) -> None:
        keep(taken.pop(), outer[0].detach())

    hooks = (head.register_forward_hook(forward), head.register_full_backward_hook(backward))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class RAndB(Rule):
    """target: the shares q of the domains in what the model is for; None: equal. every: steps of a round. absent: what
    v is for a domain that a round lacks: its "last", or "zero". Several ranks sum the k gradients at each step.
    """

    draws = "weights"

    def __init__(
        self, target: Mapping[str, float] | None = None, *, lam: float = 3.0, every: int = 10, absent: str = "last"
    ) -> None:
        self.target = None if target is None else dict(target)
        self.lam, self.every = non_negative("lam", lam), at_least("every", every, 1)
        self.absent = one_of("absent", absent, ABSENT)

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        given = self.target if self.target is not None else dict.fromkeys(setting.domains, 1.0)
        for name, share in given.items():
            one_of("target", name, setting.domains)
            non_negative(f"target[{name!r}]", share)
        if not sum(given.values()) > 0:
            raise ValueError(f"some share of target must be > 0, got {given}")
        q = torch.tensor([given.get(name, 0.0) for name in setting.domains], dtype=torch.float64, device=setting.device)
        self.q = q / q.sum()
        self.v = torch.zeros_like(q)
        self.sums: Tensor | None = None
        self.counts = torch.zeros_like(q)

    def backward(self, step: Step) -> Losses:
        tokens = step.tokens()
        every = tokens.sum()
        head = step.model.head
        own = torch.zeros(step.k, *head.weight.shape, device=step.inputs.device)

        def keep(a: Tensor, delta: Tensor) -> None:
            delta = delta * every.to(delta.dtype)  # the loss is a mean over all tokens: delta carries 1 / every
            for number in torch.unique(step.domain).tolist():
                rows = step.domain == number
                own[number].addmm_(delta[rows].flatten(0, 1).T.float(), a[rows].flatten(0, 1).float())

        with output_gradients(head, keep):
            losses = step.losses()
            step.backward(losses, (1 / every).expand(step.k))
        own = step.total(own)
        self.sums = own if self.sums is None else self.sums + own
        self.counts = self.counts + step.total(torch.bincount(step.domain, minlength=step.k).double())
        if (step.number + 1) % self.every == 0:
            self._end_round()
        return step.by_domain(losses), tokens

    def _end_round(self) -> None:
        assert self.sums is not None
        seen = self.counts > 0
        v = gram(self.sums, self.counts) @ self.q
        self.v = torch.where(seen, v, self.v if self.absent == "last" else torch.zeros_like(v))
        self.weights = balance(self.v, self.lam)
        self.sums, self.counts = None, torch.zeros_like(self.counts)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "v": self.v, "counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.setting.device
        self.v, self.counts = state["v"].to(device), state["counts"].to(device)
        self.sums = None if state["sums"] is None else state["sums"].to(device)
