"""DoGE: domains whose gradients point where the targets' gradients point get more weight; the mean over steps is kept.

    W_j = <g_j, sum over targets i of g_i>,   score_j = lr W_j / (mean_j |g_j| + 1e-6), cut to [0, 5 lr]
    alpha <- alpha exp(score / mu) / sum,     gradient of the step = sum_j alpha_j g_j,   result: mean of alpha

Source: Fan, Pagliardini, Jaggi, "DoGE: Domain Reweighting with Generalization Estimation", ICML 2024, arXiv 2310.15393.
Cost: one backward pass a domain, on its part of the batch. The paper's formula has score = lr W: `normalize=False,
cap=None, max_norm=None`; its numbers come from the released form above, with each g_j cut to norm 5 first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.checks import one_of, positive
from ..proxy import Rule, Setting, Step
from ..proxy.rule import Losses

ABSENT = ("refuse", "last", "zero")


def scores(
    gradients: Tensor,
    targets: Tensor,
    lr: float,
    *,
    normalize: bool = True,
    cap: float | None = 5.0,
    itself: Tensor | None = None,
) -> Tensor:
    """(k,) float64 generalisation gains of the domains, times lr.

    gradients: (k, P), of the domains; targets: (m, P), of what is to become better. normalize: divide by the mean norm
    of the domains' gradients. cap: cut to [0, cap * lr], so that a domain that harms the targets counts as one without
    effect; None: do not. itself: (k, m) True where a target is the domain itself and is to be left out of its gain.
    """
    pairs = gradients.double() @ targets.double().T
    if itself is not None:
        pairs = pairs.masked_fill(itself, 0.0)
    gain = lr * pairs.sum(1)
    if normalize:
        gain = gain / (gradients.double().norm(dim=1).mean() + 1e-6)
    return gain if cap is None else gain.clamp(0.0, cap * lr)


def update(weights: Tensor, score: Tensor, mu: float) -> Tensor:
    """(k,) float64 weights after a step of mirror descent on the scores (k,)."""
    moved: Tensor = torch.softmax(weights.double().log() + score.double() / mu, dim=0)
    return moved


def cut(gradients: Tensor, max_norm: float) -> Tensor:
    """Rows of norm max_norm at most."""
    factor: Tensor = (max_norm / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
    return gradients * factor


def cancellation(gradients: Tensor) -> Tensor:
    """How much of the domains' gradients (k, P) is lost in their sum: 1 - |sum_j g_j| / sum_j |g_j|; 0: they agree."""
    total: Tensor = gradients.norm(dim=1).sum().clamp(min=torch.finfo(gradients.dtype).tiny)
    lost: Tensor = 1 - gradients.sum(0).norm() / total
    return lost


class DoGE(Rule):
    """targets: the domains that are to become better; None: all. held_out: they are not trained on, only their
    gradients are asked for (out-of-domain). mu: the strength of staying; default .01, or .05 with held_out. max_norm:
    cut each domain's gradient to this norm first; default 5, or 1 with held_out; None: do not. include_self: a domain's
    own gradient counts among the targets'. absent: what a domain's gradient is in a batch that lacks it: an error
    ("refuse"), its "last", or "zero". modules: which weights count in the products: those whose names begin with one
    of these, or "least-cancelling:N", the N matrices where domains' gradients cancel least.
    """

    average = True

    def __init__(
        self,
        targets: Collection[str] | None = None,
        *,
        held_out: bool = False,
        mu: float | None = None,
        max_norm: float | str | None = "default",
        normalize: bool = True,
        cap: float | None = 5.0,
        include_self: bool = True,
        absent: str = "refuse",
        modules: Sequence[str] | str | None = None,
    ) -> None:
        if held_out and not targets:
            raise ValueError("held_out needs targets: the domains that are not trained on")
        self.targets, self.held_out = None if targets is None else tuple(targets), held_out
        self.mu = positive("mu", (0.05 if held_out else 0.01) if mu is None else mu)
        self.max_norm = (1.0 if held_out else 5.0) if max_norm == "default" else max_norm
        if self.max_norm is not None:
            positive("max_norm", self.max_norm)  # type: ignore[arg-type]
        self.normalize, self.cap, self.include_self = normalize, cap, include_self
        if cap is not None:
            positive("cap", cap)
        self.absent, self.modules = one_of("absent", absent, ABSENT), modules

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        if self.absent == "refuse" and setting.batch % setting.k:
            raise ValueError(
                f"every batch must hold every domain: use a batch that is a multiple of {setting.k}, not "
                f"{setting.batch}, or absent='last' or 'zero'"
            )
        names = self.targets if self.targets is not None else setting.domains
        for name in names:
            one_of("targets", name, setting.domains)
        aims = torch.tensor([name in names for name in setting.domains], device=setting.device)
        self.aims = aims.nonzero().squeeze(1)
        trained = ~aims if self.held_out else torch.ones_like(aims)
        if not trained.any():
            raise ValueError("held_out leaves no domain to train on")
        self.trained = trained.nonzero().squeeze(1)
        self.weights = trained.double() / trained.sum()
        self.last: Tensor | None = None

    def backward(self, step: Step) -> Losses:
        parameters = {name: p for name, p in step.model.named_parameters() if p.requires_grad}
        gradients, sums, tokens = self._gradients(step, list(parameters.values()))
        if self.max_norm is not None:
            gradients = cut(gradients, float(self.max_norm))
        columns = self._columns(parameters, gradients)
        seen = gradients if columns is None else gradients[:, columns]
        own = None if self.include_self else self.trained.unsqueeze(1) == self.aims
        score = scores(seen[self.trained], seen[self.aims], step.lr, normalize=self.normalize, cap=self.cap, itself=own)
        weights = torch.zeros_like(self.weights)
        weights[self.trained] = update(self.weights[self.trained], score, self.mu)
        self.weights = weights
        mixed = weights.to(gradients.dtype) @ gradients
        pieces = torch.split(mixed, [p.numel() for p in parameters.values()])
        for p, found in zip(parameters.values(), pieces, strict=True):
            p.grad = found.view_as(p).to(p.dtype)
        return sums, tokens

    def _gradients(self, step: Step, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(k, P) gradients of the domains' mean token losses in the global batch, and the losses by domain."""
        tokens, k = step.tokens(), step.k
        missing = (tokens == 0).nonzero().squeeze(1)
        if self.absent == "refuse" and len(missing):
            names = [self.setting.domains[i] for i in missing.tolist()]
            raise ValueError(f"a batch lacks {', '.join(names)}: set absent to 'last' or 'zero'")
        kind = torch.promote_types(parameters[0].dtype, torch.float32)
        gradients = torch.zeros(k, sum(p.numel() for p in parameters), device=step.inputs.device, dtype=kind)
        sums = torch.zeros_like(tokens)
        for number in torch.unique(step.domain).tolist():
            rows = (step.domain == number).nonzero().squeeze(1)
            losses = step.losses(rows=rows)
            found = torch.autograd.grad(losses.sum(), parameters)
            gradients[number] = torch.cat([part.flatten() for part in found])
            sums[number] = losses.detach().double().sum()
        gradients, sums = step.total(gradients), step.total(sums)
        gradients /= tokens.clamp(min=1).to(gradients.dtype).unsqueeze(1)
        if self.absent == "last":
            if self.last is not None:
                gradients[missing] = self.last[missing]
            self.last = gradients.clone()
        return gradients, sums, tokens

    def _columns(self, parameters: Mapping[str, Tensor], gradients: Tensor) -> Tensor | None:
        """The columns of the gradients that count in the products; None: all."""
        if self.modules is None:
            return None
        sizes = [p.numel() for p in parameters.values()]
        if isinstance(self.modules, str) and self.modules.startswith("least-cancelling:"):
            wanted = int(self.modules.partition(":")[2])
            pieces = torch.split(gradients[self.trained], sizes, dim=1)
            matrices = [i for i, p in enumerate(parameters.values()) if p.ndim >= 2]
            lost = torch.stack([cancellation(pieces[i]) for i in matrices])
            chosen = {matrices[i] for i in lost.argsort()[:wanted].tolist()}
        else:
            heads = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
            chosen = {i for i, name in enumerate(parameters) if name.startswith(heads)}
        if not chosen:
            raise ValueError(f"modules = {self.modules!r} chooses none of {', '.join(parameters)}")
        kept = torch.tensor([i in chosen for i in range(len(sizes))], device=gradients.device)
        return kept.repeat_interleave(torch.tensor(sizes, device=gradients.device)).nonzero().squeeze(1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.last = None if state["last"] is None else state["last"].to(self.setting.device)
