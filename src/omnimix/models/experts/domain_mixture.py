"""Text of unknown domain: experts are weighted by how well they predicted the text so far, and mix probabilities.

    p(x_t | x_<t) = sum_j w_j(t) p(x_t | x_<t, j),     w(t) = softmax_j(log pi_j + sum_{s in H(t)} log p(x_s | x_<s, j))

pi: the prior over domains. H(t): all s < t ("full", Bayes' rule), only t - 1 ("last_token", as in the authors' code),
the last k, or nothing ("none": w = pi, with a uniform prior the plain average of probabilities). The prior is uniform;
or updating: the moving average, from batch to batch, of the weights that sequences end with; or cached: that average
over a sample of the text, frozen (`estimate`). Source: Gururangan et al., "DEMix Layers", NAACL 2022, arXiv:2108.05036;
over whole models, Li et al., "Branch-Train-Merge", 2022, arXiv:2208.03306. Cost: one forward pass for each expert whose
prior is not 0. The authors' code begins with equal weights at t = 0 even where a prior is given; here w(0) = pi unless
reference=True.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ...core.checks import at_least, in_unit
from ...core.split import evaluating
from ...networks.language_model import IGNORED
from .base import logits_of
from .demix import DEMix

History: TypeAlias = Literal["full", "last_token", "none"] | int
FLOOR = 1e-6
"""Least prior that averaging leaves an expert: one of prior 0 could never come back."""


def domain_posterior(
    log_likelihood: Tensor, log_prior: Tensor, history: History = "full", *, reference: bool = False
) -> Tensor:
    """log w(t), shape (n, B, T) as the log-likelihoods log p(x_t | x_<t, j); those at t follow from tokens before t.

    log_prior (n,): -inf rules an expert out. history: "full", "last_token", "none", or how many tokens back. reference:
    equal weights at t = 0, whatever the prior, of the experts that it does not rule out. Positions that tell nothing
    have 0 for all experts.
    """
    k = window(history)
    before = nn.functional.pad(log_likelihood.double(), (1, 0))[..., :-1]
    if k == 0:
        so_far = torch.zeros_like(before)
    elif k is None or k >= before.shape[-1]:
        so_far = before.cumsum(-1)
    else:  # no difference of sums: a probability of 0 leaves the window again
        so_far = nn.functional.pad(before, (k - 1, 0)).unfold(-1, k, 1).sum(-1)
    prior = log_prior.double()[:, None, None]
    weights = (prior + so_far).log_softmax(0)
    if reference:
        equal = prior.where(prior == -math.inf, 0).log_softmax(0)
        weights = torch.cat((equal.expand_as(weights[..., :1]), weights[..., 1:]), -1)
    return weights.to(log_likelihood.dtype)


def window(history: History) -> int | None:
    """How many tokens back, None for all; ValueError for another history."""
    named = {"full": None, "last_token": 1, "none": 0}
    if isinstance(history, str):
        if history not in named:
            raise ValueError(f"history must be 'full', 'last_token', 'none' or a number of tokens, got {history!r}")
        return named[history]
    return at_least("history", history, 1)


class DomainMixture(nn.Module):
    """A language model that mixes the experts of a `DEMix`, or whole models by name (branch-train-merge).

    prior: name -> weight, default uniform. history, reference: see `domain_posterior`. updating: `score` moves the
    prior by `decay` toward what each batch ended with (the first batch sets it). top: keep the k experts of the highest
    prior, which makes inference cheaper. The prior is part of the state dict. ValueError for names and values that do
    not fit.
    """

    def __init__(
        self,
        experts: DEMix | Mapping[str, nn.Module],
        *,
        prior: Mapping[str, float] | None = None,
        history: History = "full",
        updating: bool = False,
        decay: float = 0.3,
        top: int | None = None,
        reference: bool = False,
    ) -> None:
        super().__init__()
        self.experts = experts if isinstance(experts, DEMix) else nn.ModuleDict(dict(experts))
        window(history)
        self.history, self.updating, self.reference = history, updating, reference
        self.decay, self.top = in_unit("decay", decay), None if top is None else at_least("top", top, 1)
        self._prior: dict[str, float] = {}
        self._batches = 0
        if prior is not None:
            self.set_prior(prior)

    @property
    def domains(self) -> tuple[str, ...]:
        return self.experts.domains if isinstance(self.experts, DEMix) else tuple(self.experts)

    def set_prior(self, prior: Mapping[str, float]) -> None:
        """Give the prior; numbers >= 0, scaled to sum to 1. Experts that it does not name have 0."""
        total = math.fsum(prior.values())
        if unknown := prior.keys() - {*self.domains}:
            raise ValueError(
                f"prior names {sorted(unknown)}, which have no expert; there are {', '.join(self.domains)}"
            )
        if min(prior.values(), default=0) < 0 or not 0 < total < math.inf:
            raise ValueError(f"prior must hold numbers >= 0 with a positive sum, got {dict(prior)}")
        self._prior = {name: prior.get(name, 0.0) / total for name in self.domains}
        self._batches = 0

    @property
    def prior(self) -> dict[str, float]:
        """The prior over the experts there are now, without `top`. The shares of removed experts go to the others in
        proportion; experts added since it was set have 1/n."""
        names = self.domains
        kept = {name: self._prior[name] for name in names if name in self._prior}
        total, fresh = math.fsum(kept.values()), 1 / len(names)
        if total == 0:
            return dict.fromkeys(names, fresh)
        scale = len(kept) * fresh / total
        return {name: kept[name] * scale if name in kept else fresh for name in names}

    def chosen(self) -> dict[str, float]:
        """The experts that run, with the prior they have: the `top` ones, scaled to sum to 1."""
        ranked = sorted(self.prior.items(), key=lambda pair: -pair[1])[: self.top]
        total = math.fsum(value for _, value in ranked)
        return {name: value / total for name, value in ranked if value > 0}

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, vocabulary) log-probabilities of the next tokens, given token ids (B, T). Each sequence is a text of
        its own that begins with the prior; `attention_mask` says what is padding."""
        chosen = self.chosen()
        every = torch.stack([self._log_softmax(name, tokens, kwargs) for name in chosen])
        known = every[:, :, :-1].gather(-1, tokens[None, :, 1:, None].expand(len(every), -1, -1, 1)).squeeze(-1)
        if (mask := kwargs.get("attention_mask")) is not None:
            known = known.where((mask[:, 1:] * mask[:, :-1]).bool(), 0)  # none is predicted from padding
        weights = self._posterior(nn.functional.pad(known, (0, 1)), chosen)
        return (weights[..., None] + every).logsumexp(0)

    @torch.no_grad()
    def score(self, tokens: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        """(B, T) log-probabilities of the targets, 0 where they are `IGNORED`; moves the prior where `updating`.

        targets (B, T): the tokens that follow. Only log-probabilities of targets are kept, those of one expert's
        vocabulary at a time. In evaluation mode, whatever the mode of the experts.
        """
        chosen = self.chosen()
        at = targets.clamp(min=0)[..., None]
        with evaluating(self):
            found = [self._log_softmax(name, tokens, kwargs).gather(-1, at).squeeze(-1) for name in chosen]
        likelihood = torch.stack(found).where(targets != IGNORED, 0)
        weights = self._posterior(likelihood, chosen)
        if self.updating:
            self._update(chosen, weights, targets)
        return (weights + likelihood).logsumexp(0).where(targets != IGNORED, 0)

    def estimate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Cache a prior: from uniform, update it over `batches` of (tokens, targets) and stay there.

        A hundred sequences are what the paper takes. The expert of the highest prior is the nearest to the text, the
        one to copy for a new domain.
        """
        top, self.top = self.top, None
        self.set_prior(dict.fromkeys(self.domains, 1.0))
        self.updating = True
        for tokens, targets in batches:
            self.score(tokens, targets)
        self.updating, self.top = False, top
        if not self._batches:
            raise ValueError("batches held no tokens to predict; give (tokens, targets) of the text in question")
        return self.prior

    def _posterior(self, likelihood: Tensor, chosen: Mapping[str, float]) -> Tensor:
        return domain_posterior(likelihood, log(chosen, likelihood), self.history, reference=self.reference)

    def _update(self, chosen: dict[str, float], weights: Tensor, targets: Tensor) -> None:
        real = targets != IGNORED
        last = (real * torch.arange(real.shape[1], device=real.device)).amax(1)
        ends = weights.double().exp().gather(2, last[None, :, None].expand(len(weights), -1, 1)).squeeze(2)
        if not bool(real.any()):
            return
        prior = self.prior
        share = math.fsum(prior[name] for name in chosen)
        mean = dict(zip(chosen, (share * ends[:, real.any(1)].mean(1)).tolist(), strict=True))
        rate = self.decay if self._batches else 1.0
        moved = {name: max(FLOOR, old + rate * (mean.get(name, old) - old)) for name, old in prior.items()}
        total = math.fsum(moved.values())
        self._prior = {name: value / total for name, value in moved.items()}
        self._batches += 1

    def _log_softmax(self, name: str, tokens: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if isinstance(self.experts, DEMix):
            out = self.experts(tokens, domain=name, **kwargs)
        else:
            out = self.experts[name](tokens, **kwargs)
        return logits_of(out).float().log_softmax(-1)

    def get_extra_state(self) -> Tensor:
        """How many batches the prior has seen, and the prior in the order of `domains`; NaN where it was not set."""
        prior = [self._prior.get(name, math.nan) for name in self.domains]
        return torch.tensor([self._batches, *prior], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        batches, *prior = state.tolist()
        if len(prior) != len(self.domains):
            raise ValueError(f"the state has a prior over {len(prior)} experts, there are {len(self.domains)}")
        held = zip(self.domains, prior, strict=True)
        self._prior, self._batches = {name: value for name, value in held if not math.isnan(value)}, int(batches)


def log(prior: Mapping[str, float], like: Tensor) -> Tensor:
    """(n,) logarithms on the device of `like`."""
    return torch.tensor([*prior.values()], dtype=torch.float64, device=like.device).log()
