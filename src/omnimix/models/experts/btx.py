"""Branch-train-mix (BTX): branches of one model, trained apart, become the experts of one sparse model.

    y = sum over the k best i of softmax(R h restricted to them)_i FFN_i(h),   all other weights: the branches' mean
    loss = next-token loss + alpha * balance,   balance = mean over layers of n sum_i u_i p_i   (see `router`)

The router R of each layer starts at random and has to be trained, on data of all domains; the balance keeps experts
from dying. Source: Sukhbaatar et al., "Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM", COLM 2024,
arXiv:2403.07816. Cost: k feed-forward networks a token in place of one, and a wait for the device in each layer.

Relatives: branches that are all one model give sparse upcycling; `DomainMixture(branches)`, the ensemble of whole
branches, is branch-train-merge; `mergeme` merges the other weights with less interference and routes without training.
The mean of norms and attention of branches that went far apart can be poor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import non_negative
from ..merge.linear import Linear
from .mergeme import mixture
from .router import Routed, balance


class BTX(nn.Module):
    """One model of several branches: their feed-forward networks are its experts, the rest is averaged.

    branches: name -> model, all of one architecture and trained from one seed model; they stay as they are. top:
    experts a token; with 1 the gate is 1 and the router learns from the balance alone. alpha: weight of the balance,
    0.01 in the paper. pattern: see `feed_forwards`. generator: of the routers' initial weights. Call it as a branch is
    called; train it on the loss plus `balance_loss()`. `train_only(btx, btx.routers)` freezes all but the routers.
    Weights are named `model.<path>.experts.<branch>.<name>` and `model.<path>.router.weight`. Under
    `DistributedDataParallel` pass `find_unused_parameters=True`: an expert may get no token. ValueError for branches
    that do not fit together.
    """

    def __init__(
        self,
        branches: Mapping[str, nn.Module],
        *,
        top: int = 2,
        alpha: float = 0.01,
        pattern: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not branches:
            raise ValueError("branches must hold at least one model")
        self.alpha = non_negative("alpha", alpha)
        like = next(iter(branches.values()))
        self.model = mixture(like, branches, Linear(), feed=pattern, router=True, k=top, generator=generator).model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @property
    def routers(self) -> list[nn.Module]:
        """The routers, first layer first."""
        return [slot.router for slot in self.model.modules() if isinstance(slot, Routed)]

    def balance_loss(self, valid: Tensor | None = None) -> Tensor:
        """alpha times the balance of the last call. valid (B, T): True where a token is no padding; default all.
        ValueError before any call."""
        return self.alpha * balance(self.model, valid)
