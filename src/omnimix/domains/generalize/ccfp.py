"""CCFP: a twin network whose feature styles are pushed away from the plain network's, while both agree on the outputs.

    A_l(h) = (h - mu) / sd * (sd + g_l) + mu + b_l   after each tap l of the twin Q;  mu, sd: per sample and channel
    L_P = risk(P) + sem |P(x) - sg Q(x)|^2,   L_Q = risk(Q) + sem |Q(x) - sg P(x)|^2,   then, at the new weights,
    L_style = -dis sum_l || Gram(sg h_l of P) - Gram(A_l(h_l) of Q) ||   for g and b alone;   Gram: h h^T / (C places)

The norm is that of the whole batch, |.|^2 a mean over samples and outputs, sg a constant for gradients. Source: Li,
Zhang, Huang, Zhang, "Cross Contrasting Feature Perturbation for Domain Generalization", ICCV 2023, arXiv 2307.12502.
Cost: 3.2 (4 forward, 3 backward passes), and a second network. Predictions are Q's, as in the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import channel_stats
from ...core.checks import non_negative, one_of, positive
from ...core.companion import fitting
from ...core.method import Setup
from ...core.registry import register
from ...core.search import Log
from ...core.side import Beside, linear
from ...core.sided import Sided
from ...core.split import Split, norm_policy
from ...core.taps import Taps

STAGES = ("conv1", "maxpool", "layer1", "layer2", "layer3")
Predict = Literal["perturbed", "plain", "mean"]


class Perturbation(nn.Module):
    """Shifts each channel's deviation by g and mean by b, both (C,) and 0 at first.

    limit: the largest absolute value of both that is used; None: no limit.
    """

    def __init__(self, channels: int, limit: float | None = None) -> None:
        super().__init__()
        self.g, self.b = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        self.limit = limit

    def forward(self, h: Tensor) -> Tensor:
        """The maps h (B, C, *spatial), perturbed."""
        mean, deviation = channel_stats(h, correction=1, eps=1e-6)
        shape = (1, -1, *[1] * (h.ndim - 2))
        g, b = self.g.view(shape), self.b.view(shape)
        if self.limit is not None:
            g, b = g.clamp(-self.limit, self.limit), b.clamp(-self.limit, self.limit)
        return ((h - mean) / deviation * (deviation + g) + mean + b).to(h.dtype)


def gram(h: Tensor) -> Tensor:
    """(B, C, C) mean products of channels of the maps h (B, C, *spatial), divided by C."""
    flat = h.flatten(2).float()
    return flat @ flat.transpose(1, 2) / flat[0].numel()


@register(
    "ccfp",
    paper="Cross Contrasting Feature Perturbation for Domain Generalization, ICCV 2023, arXiv 2307.12502",
    cost=3.2,
    level="domains",
    inputs=("image",),
    search={"sem": Log(0.1, 10), "dis": Log(0.1, 10)},
)
class CCFP(Sided):
    """Push the feature styles of a twin network away from the plain network's, while both agree on the outputs.

    sem, dis >= 0: the weights of agreement and of style. taps: names of modules that give maps (B, C, *spatial); None:
    conv1, maxpool, layer1 to layer3, as in the paper, where the network has those, else its first two. predictions: of
    the "perturbed" twin, of the "plain" network, or the "mean" of their outputs. limit > 0: of the shifts; None as in
    the paper: styles may go apart without end. The twin steps as the user's optimiser, the style step is one of Adam at
    its rate.
    """

    def __init__(
        self,
        sem: float = 1.0,
        dis: float = 1.0,
        taps: Sequence[str] | None = None,
        *,
        predictions: Predict = "perturbed",
        limit: float | None = None,
    ) -> None:
        self.sem, self.dis, self.tap_names = non_negative("sem", sem), non_negative("dis", dis), taps
        self.predictions = one_of("predictions", predictions, ("perturbed", "plain", "mean"))
        self.limit = None if limit is None else positive("limit", limit)

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.taps = Taps(given.model, self.tap_names, given.split, published=STAGES)
        self._last: tuple[nn.Module, Any] | None = None

    def observed(self) -> tuple[str, ...]:
        return self.taps.names

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        twin = copy.deepcopy(self.split.model)
        head = twin.get_submodule(self.split.head_name)
        if isinstance(head, nn.Linear):  # other heads start as the network's own
            new = linear(head.in_features, head.out_features, (3 * head.in_features) ** -0.5, self.generator)
            head.load_state_dict(new.state_dict() if head.bias is not None else {"weight": new.weight})
        shifts = nn.ModuleList(Perturbation(sizes[name], self.limit) for name in self.taps.names)
        self.twin, self.twin_taps = twin, Taps(twin, self.taps.names, Split(twin, self.split.head_name))
        self.shifts, self.style = shifts, Beside({"shifts": shifts}, partial(torch.optim.Adam, lr=1e-3))
        return {"twin": twin, "shifts": shifts}

    def perturbed(self, x: Any, seen: list[Tensor] | None = None) -> Tensor:
        """Outputs of the twin; perturbed maps are appended to `seen`."""
        noted = list[Tensor]() if seen is None else seen
        functions = {name: _noting(shift, noted) for name, shift in zip(self.taps.names, self.shifts, strict=True)}
        with self.twin_taps.rewrite(functions):
            return cast(Tensor, self.twin(fitting(self.twin, x)))

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        side = self.beside(model, batch.x)
        for mine, theirs in zip(self.twin.modules(), self.split.model.modules(), strict=True):
            mine.training = theirs.training
        plain, other = cast(Tensor, model(batch.x)), self.perturbed(batch.x)
        risks = self.task.mean_loss(plain, batch.y) + self.task.mean_loss(other, batch.y)
        apart = F.mse_loss(plain, other.detach()) + F.mse_loss(plain.detach(), other)
        self._last = (model, batch.x)
        return side.watch(risks + self.sem * apart)

    def after_step(self) -> None:
        rate = None if self._lead is None else self._lead.param_groups[0]["lr"]
        last, trained = self._last, self.side is not None and any(p.grad is not None for p in self.twin.parameters())
        self._last = None
        super().after_step()
        if last is not None and trained:
            self.style.to(next(self.twin.parameters()).device)
            with norm_policy(self.twin, "separate"), norm_policy(self.split.model, "separate"):
                self.style.backward(-self.dis * self.style_distance(*last))
            self.style.step(rate)

    def style_distance(self, model: nn.Module, x: Any) -> Tensor:
        """The sum over taps of the distances of the styles of both networks; only the twin gets gradients."""
        plain, other = list[Tensor](), list[Tensor]()
        watch = {name: _noting(nn.Identity(), plain) for name in self.taps.names}
        with torch.no_grad(), self.taps.rewrite(watch, model):
            model(x)
        self.perturbed(x, other)
        distances = [torch.linalg.vector_norm(gram(p) - gram(q)) for p, q in zip(plain, other, strict=True)]
        return torch.stack(distances).sum()

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        if self.side is None or self.predictions == "plain":
            return super().predict(model, x)
        self.side.to(next(self.split.model.parameters()).device)
        self.twin.train(model.training)
        other = self.perturbed(x)
        return other if self.predictions == "perturbed" else (other + super().predict(model, x)) / 2

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if self.side is None else {**state, "style": self.style.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if "style" in state:
            self.style.load_state_dict(state["style"])


def _noting(function: Callable[[Tensor], Tensor], seen: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def rewrite(h: Tensor) -> Tensor:
        seen.append(function(h))
        return seen[-1]

    return rewrite
