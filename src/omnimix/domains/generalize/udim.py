"""UDIM: SAM, and a loss surface that stays the same when inputs are moved to where loss and sharpness rise.

    x~ = x + s G / |G|,   G = d/dx (L(theta; x) + rho |g|),   g = grad L(theta; x),   e = rho g / |g|
    loss = L(theta + e; x) + lam sum_d I_d,   I_d = 1/4 mean((V - V~)^2) + sum_p 1/|p| mean_i |g~_i(p)|^2

g_i(p), g~_i(p): the gradient of sample i and of its moved twin by p, the weight or the bias of the head; m: the mean of
the g_i of domain d; V, V~: the means of (g_i - m)^2 and (g~_i - m)^2, weight and bias together. Source: Shin et al.,
"Unknown Domain Inconsistency Minimization for Domain Generalization", ICLR 2024, arXiv 2403.07329. Cost: 6.5. It begins
after a warm-up of plain SAM, with the weights as they are; the authors go back to the best validated ones. Their code
normalises G over the batch, for each pixel: `norm="batch"`, with s = 10.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import channel_stats
from ...core.checks import in_unit, non_negative, one_of, positive
from ...core.inside import Inside
from ...core.method import Setup
from ...core.operation import require_float
from ...core.registry import register
from ...core.replay import Replay
from ...core.search import Choice, Log
from ...core.split import Split, norm_policy, observe
from ...core.weights import replaced
from .base import ByDomain
from .sam import climb

Norm = Literal["sample", "batch"]
Centre = Literal["source", "own"]


def inconsistency(
    delta: Tensor,
    z: Tensor,
    moved_delta: Tensor,
    moved_z: Tensor,
    share: Tensor,
    *,
    bias: bool = True,
    centre: Centre = "source",
) -> Tensor:
    """(D,) I_d of each domain, 0 for one without samples; differentiable.

    delta (B, C): the derivatives of each sample's loss by the head's output, z (B, F): the head's inputs, so that the
    gradients by its weight are their outer products; moved_*: the same of the moved twins. share (D, B): 1 / count for
    the samples of a domain, else 0. centre: around which mean V~ is taken, m or the twins' "own".
    """
    one, two = (F.pad(t, (0, 1), value=1.0) if bias else t for t in (z, moved_z))
    mean, moved_mean = (torch.einsum("pb,bc,bf->pcf", share, d, t) for d, t in ((delta, one), (moved_delta, two)))
    square, moved_square = (
        torch.einsum("pb,bc,bf->pcf", share, d.square(), t.square()) for d, t in ((delta, one), (moved_delta, two))
    )
    v = square - mean.square()
    around = mean if centre == "source" else moved_mean
    moved_v = moved_square - 2 * around * moved_mean + around.square()
    size = moved_delta.square().sum(dim=1)
    norm = share @ (size * moved_z.square().sum(dim=1)) / (delta.shape[1] * z.shape[1])
    if bias:
        norm = norm + share @ size / delta.shape[1]
    return (v - moved_v).square().mean(dim=(1, 2)) / 4 + norm


def moved(x: Tensor, gradient: Tensor, step: float, norm: Norm = "sample") -> Tensor:
    """x + step G / |G|, each sample by the length `step`, or "batch": each entry normalised over the samples."""
    axes = tuple(range(1, x.ndim)) if norm == "sample" else (0,)
    length = gradient.square().sum(dim=axes, keepdim=True).sqrt()
    return x + step * gradient / length.clamp(min=torch.finfo(x.dtype).tiny)


@register(
    "udim",
    paper="Unknown Domain Inconsistency Minimization for Domain Generalization, ICLR 2024, arXiv 2403.07329",
    cost=6.5,
    level="domains",
    search={"rho": Choice(0.01, 0.05, 0.1), "lam": Log(1e-2, 1), "step": Log(0.1, 10)},
)
class UDIM(ByDomain):
    """Flatten the loss around the weights, and keep its surface the same for inputs moved to where it is worst.

    rho > 0: the radius of SAM, and the weight of the gradient's norm where inputs climb. lam >= 0: the weight of the
    inconsistency. step >= 0: s, a Euclidean distance for each sample under norm "sample". warmup in [0, 1]: the share
    of the planned steps of plain SAM. style: move means and deviations of the channels of images (B, C, *spatial)
    instead, by a step of `step` times their gradient. centre: see `inconsistency`. The network needs a linear head.
    """

    def __init__(
        self,
        rho: float = 0.05,
        lam: float = 1.0,
        step: float = 1.0,
        warmup: float = 0.2,
        *,
        norm: Norm = "sample",
        style: bool = False,
        centre: Centre = "source",
    ) -> None:
        self.rho, self.lam = positive("rho", rho), non_negative("lam", lam)
        self.length, self.warmup, self.style = non_negative("step", step), in_unit("warmup", warmup), style
        self.norm: Norm = one_of("norm", norm, ("sample", "batch"))
        self.centre: Centre = one_of("centre", centre, ("source", "own"))

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        if self.warmup and given.steps is None:
            raise ValueError("udim warms up for a share of the planned steps: pass setup(..., steps=...), or warmup=0")
        self.first = round(self.warmup * (given.steps or 0))
        self.split = given.split or Split(given.model)
        head = given.model.get_submodule(self.split.head_name)
        if not isinstance(head, nn.Linear):
            raise ValueError(f"udim needs a linear head, {self.split.head_name!r} is a {type(head).__name__}")
        self.bias = head.bias is not None

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        share, inside = self.shares(batch), Inside(model, self._given().model)
        warm = self.steps_done < self.first or not self.lam
        weights = [p for p in self._given().model.parameters() if p.requires_grad]
        given, styled = (batch.x, None) if warm else self._variables(batch.x)
        replay = Replay(model, lambda: self.plain_loss(inside, Batch(given, batch.y)), self.generator)
        loss = replay()
        grads = torch.autograd.grad(loss, weights, create_graph=not warm, materialize_grads=True)
        x = None if warm else self._worse(loss, grads, given, styled)
        up = [(p, p + move) for p, move in zip(weights, climb([g.detach() for g in grads], self.rho), strict=True)]
        given = batch.x
        with replaced(self._given().model, up):
            sharp = replay()
        if x is None:
            return sharp
        with norm_policy(model, "separate"), observe(self._given().model, self.split.head_name) as seen:
            z, output = self.split.features_and_output(torch.cat((batch.x, x)), inside)
        losses = self.task.losses(output, torch.cat((batch.y, batch.y)))
        (delta,) = torch.autograd.grad(losses.sum(), seen[self.split.head_name], create_graph=True)
        if z.ndim != 2:
            raise ValueError(f"udim needs a head on features (B, F), its input is {tuple(z.shape)}")
        wide = z.dtype if z.dtype == torch.float64 else torch.float32
        (ds, dt), (zs, zt) = (t.to(wide).chunk(2) for t in (delta, z))
        return (
            sharp + self.lam * inconsistency(ds, zs, dt, zt, share.to(wide), bias=self.bias, centre=self.centre).sum()
        )

    def _variables(self, x: Any) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """(inputs that depend on what may move, that: None if it is they themselves)."""
        require_float(x)
        if not self.style:
            return x.detach().requires_grad_(), None
        mean, deviation = (s.requires_grad_() for s in channel_stats(x.detach(), eps=1e-5))
        content = ((x - mean) / deviation).detach()
        return (content * deviation + mean).to(x.dtype), (content, mean, deviation)

    def _worse(
        self, loss: Tensor, grads: tuple[Tensor, ...], given: Tensor, styled: tuple[Tensor, ...] | None
    ) -> Tensor:
        """The inputs after a step up on the loss and the norm of its gradient."""
        score = loss + self.rho * torch.stack([g.norm() for g in grads]).norm()
        if styled is None:
            (gradient,) = torch.autograd.grad(score, given)
            return moved(given.detach(), gradient, self.length, self.norm)
        content, *variables = styled
        changes = torch.autograd.grad(score, variables)
        mean, deviation = (v.detach() + self.length * g for v, g in zip(variables, changes, strict=True))
        return (content * deviation + mean).to(given.dtype)
