"""Manifold mixup: mix the hidden states of a randomly chosen layer, and the labels with them.

    k ~ uniform(S),   h~_i = lam g_k(x_i) + (1 - lam) g_k(x_pi(i)),   y~_i = lam y_i + (1 - lam) y_pi(i),
    lam ~ Beta(alpha, alpha); the network above layer k goes on with h~, and gradients reach both partners

Source: Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better Representations by
Interpolating Hidden States", ICML 2019, arXiv 1806.05236. Cost: 1 (one forward pass; partners are in the batch). The
reference code optimises the binary cross-entropy of the softmax, about 1/C as steep, for which its learning rates were
tuned: loss="bce_on_softmax".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import one_of
from ...core.method import Mix, Setup
from ...core.objective import MixedLoss, Objective
from ...core.operation import Interpolate, interpolate
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers, resolve
from ...core.ratio import Beta
from ...core.recipe import Mixed, Recipe, mix_labels
from ...core.registry import register
from ...core.search import Log
from ...core.split import Split
from ...core.task import Classification, Task
from ...core.tree import rows


def manifold_mixup(
    model: nn.Module | Split,
    x: Any,
    y: Tensor,
    alpha: float = 2.0,
    taps: Sequence[str] | None = None,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Mixed]:
    """One forward pass: `output, mixed = manifold_mixup(model, x, y); loss = mixed.loss(F.cross_entropy, output)`.

    `mixed.x` is what the mixed place held, `mixed.recipe.place` its name. taps: the places to choose from, "input" and
    names of modules; None: the input and the network's first two taps (see `Split`). The rest: see `mixup`. A model in
    evaluation mode is left unmixed. ValueError for names that are no modules or arguments out of range.
    """
    split = model if isinstance(model, Split) else Split(model)
    source, pairing, ratio = resolve(generator), RandomPairing(), Beta(alpha, per_sample=per_sample)
    places = _places(split, taps)
    if not split.model.training:
        own = torch.arange(rows(x), device=y.device).unsqueeze(1).expand(-1, 2)
        share = torch.tensor([[1.0, 0.0]], device=y.device).expand(len(own), 2)
        return split.model(x), Mixed(x, y, Recipe(own, share))
    place = places[int(integers(len(places), 1, generator=source))] if len(places) > 1 else places[0]
    made: list[Mixed] = []

    def mix(h: Any) -> Any:
        if made:  # activation checkpointing recomputes the tap
            return interpolate(h, made[0].recipe)
        made.append(mix_once(h, y, pairing, ratio, Interpolate(), lam, partner, source))
        return made[0].x

    if place == "input":
        output = split.model(mix(x))
    else:
        with split.rewrite(place, mix):
            output = split.model(x)
    return output, replace(made[0], recipe=replace(made[0].recipe, place=place))


def _places(split: Split, taps: Sequence[str] | None) -> tuple[str, ...]:
    return ("input", *split.taps[:2]) if taps is None else tuple(taps)


class SoftmaxBCE(Objective):
    """Binary cross-entropy of softmax probabilities against the mixed one-hot target, averaged over classes."""

    by_row = True

    def __call__(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        if not isinstance(task, Classification):
            raise ValueError(f"loss='bce_on_softmax' is for one class out of several, the task is {task!r}; use 'ce'")
        target = mix_labels(task.soft_target(y), recipe)
        with torch.autocast(output.device.type, enabled=False):  # autocast forbids it; logarithms stop at -100
            losses = F.binary_cross_entropy(output.float().softmax(dim=1), target.float(), reduction="none")
        return losses.flatten(1).mean(dim=1)


@register(
    "manifold-mixup",
    paper="Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019, arXiv 1806.05236",
    search={"alpha": Log(0.1, 32)},
)
class ManifoldMixup(Mix):
    """Mix hidden states at a randomly chosen layer, and the labels with them.

    alpha, taps, per_sample: see `manifold_mixup`. loss: "ce", the task's own loss, or "bce_on_softmax", that of the
    reference code (class labels only).
    """

    def __init__(
        self,
        alpha: float = 2.0,
        taps: Sequence[str] | None = None,
        *,
        per_sample: bool = False,
        loss: Literal["ce", "bce_on_softmax"] = "ce",
    ) -> None:
        objective = MixedLoss() if one_of("loss", loss, ("ce", "bce_on_softmax")) == "ce" else SoftmaxBCE()
        places = ("input",) if taps is None else taps
        super().__init__(RandomPairing(), Beta(alpha, per_sample=per_sample), Interpolate(), objective, places=places)
        self.taps = taps

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        if self.taps is None:
            self.split = given.split or Split(given.model)
            return _places(self.split, None)
        return super().resolve_places(given)
