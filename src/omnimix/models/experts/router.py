"""Learned routers of mixtures of experts: a linear score of every token, the best k experts, and a loss for balance.

    y = sum over the k best i of softmax(R h restricted to them)_i FFN_i(h)        balance = L sum_i u_i p_i

L: experts; u_i: share of the choices that fall on expert i; p_i: mean probability of i under softmax over all of them.
The balance is 1 where both are uniform, and L where one expert has everything. Sources: Shazeer et al., "Outrageously
Large Neural Networks", ICLR 2017, arXiv:1701.06538 (top-k); Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022,
arXiv:2101.03961, equation 4 (balance). Cost: k feed-forward networks a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...core.checks import at_least
from ...core.random import resolve
from .base import FeedForward, Route, Routing, Slot


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids (..., k) of the k largest of scores (..., L), and softmax over these k; equal scores go by id."""
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must lie between 1 and the number of experts, {scores.shape[-1]}, got {k}")
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    return ids[..., :k], ordered[..., :k].softmax(-1)


def load_balance(scores: Tensor, chosen: Tensor, valid: Tensor | None = None) -> Tensor:
    """L sum_i u_i p_i of scores (..., L) and the experts that were chosen, (..., k). valid (...): True where a token is
    no padding, which does not count; default all. ValueError for another number of tokens."""
    experts = scores.shape[-1]
    if valid is not None:
        if valid.numel() * experts != scores.numel():
            raise ValueError(f"valid must say of {scores.numel() // experts} tokens, got shape {tuple(valid.shape)}")
        kept = valid.bool().flatten()
        scores, chosen = scores.reshape(-1, experts)[kept], chosen.reshape(-1, chosen.shape[-1])[kept]
    if not chosen.numel():  # an empty batch
        return scores.sum()
    share = torch.bincount(chosen.flatten(), minlength=experts).to(scores.dtype) / chosen.numel()
    return experts * (share * scores.softmax(-1).reshape(-1, experts).mean(0)).sum()


def linear(width: int, out: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A layer without bias whose weights are drawn from N(0, 0.02^2)."""
    generator = resolve(generator)
    layer: nn.Linear = torch.nn.utils.skip_init(nn.Linear, width, out, bias=False)  # type: ignore[no-untyped-call]
    drawn = torch.randn(out, width, generator=generator, device=generator.device)
    layer.weight = nn.Parameter(0.02 * drawn)
    return layer


class Routed(Slot):
    """The first part of a feed-forward network whose experts are chosen here, token by token.

    width: of the tokens. k: experts of a token.
    """

    choice: tuple[Tensor, Tensor] | None = None
    """Scores, with their gradient, and choices of the last pass; see `load_balance`."""

    def __init__(
        self,
        experts: Mapping[str, nn.Module],
        width: int,
        k: int = 2,
        *,
        last: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(experts, Route(), last=last)
        self.k = at_least("k", k, 1)
        if k > len(experts):
            raise ValueError(f"k must be at most the number of experts, {len(experts)}, got {k}")
        like = next(iter(next(iter(experts.values())).parameters()))
        self.router = linear(width, len(experts), generator).to(like)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        scores = self.router(x).float()
        chosen, weight = top_k(scores, self.k)
        self.route.routing = Routing.of(chosen, len(self.experts), weight)
        self.choice = scores, chosen
        return super().forward(x, *args, **kwargs)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "choice": None}  # of a pass, whose graph cannot be copied


def routed(
    experts: Mapping[str, Sequence[nn.Module]],
    network: FeedForward,
    width: int,
    k: int = 2,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Slot]:
    """path -> slot for the parts of one feed-forward network with a router of its own; see `base.slots`."""
    last = len(network.parts) - 1
    first = Routed({n: parts[0] for n, parts in experts.items()}, width, k, last=last == 0, generator=generator)
    rest = {
        path: Slot({n: parts[i] for n, parts in experts.items()}, first.route, first=False, last=i == last)
        for i, path in enumerate(network.parts)
        if i
    }
    return {network.parts[0]: first, **rest}


def balance(model: nn.Module, valid: Tensor | None = None) -> Tensor:
    """The mean over a model's routers of the balance of the last pass. ValueError for a model without or not called.

    valid (B, T): True where a token is no padding, such as its attention mask; default all.
    """
    found = [part.choice for part in model.modules() if isinstance(part, Routed) and part.choice is not None]
    if not found:
        raise ValueError("the model has no routers, or was not called yet")
    return torch.stack([load_balance(*one, valid) for one in found]).mean()
