"""TSS: at test time, give a sample whose style is far from every training domain the style of the nearest one.

    phi(h) = [means, deviations of the channels of h],   n = argmin_d |phi(h) - c_d|
    h <- h restyled to c_n   where |phi(h) - c_n| > alpha r_n

c_d: the mean style of training domain d in the trained network, r_d: the mean distance of its samples to c_d. Style
balancing in training gives samples of (class, domain) cells that are too full the styles of domains where the class is
rare. Source: Park, Han, Kim, Moon, "Test-Time Style Shifting: Handling Arbitrary Styles in Domain Generalization", ICML
2023, arXiv 2306.04911. Cost: 1, and a pass over the training set at the end. No code of the authors was found: the
threshold and the rule of balancing follow the abstract where it is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import nearest_style, restyle, style_centres, styles
from ...core.checks import in_unit, non_negative
from ...core.companion import fitting
from ...core.method import Setup
from ...core.random import dirichlet, repeated, uniform
from ...core.registry import register
from ...core.search import Choice
from ...core.split import evaluating
from ...core.taps import Taps
from .base import ByDomain

BETA = 0.1
"""New styles in balancing are mixes of two, with shares from Beta(0.1, 0.1)."""


def surplus_to_deficit(style: Tensor, label: Tensor, domain: Tensor, classes: int, domains: int) -> Tensor:
    """(B,) the domain that each sample should belong to for every class to be equally frequent in all domains.

    style (B, F) says which samples of a full cell leave it: those most like another one of the same cell. label, domain
    (B,): ids from 0. A class's samples over the number of domains, rounded down, is what a cell should hold.
    """
    cell = label * domains + domain
    counts = (cell == torch.arange(classes * domains, device=cell.device).unsqueeze(1)).sum(dim=1)
    counts = counts.view(classes, domains)
    excess = counts - counts.sum(dim=1, keepdim=True) // domains
    distance = torch.cdist(style, style).masked_fill(cell.unsqueeze(1) != cell, torch.inf)
    closest = distance.fill_diagonal_(torch.inf).min(dim=1).values
    before = (closest.unsqueeze(0) < closest.unsqueeze(1)) | (
        (closest.unsqueeze(0) == closest.unsqueeze(1)) & torch.ones_like(distance, dtype=torch.bool).tril(-1)
    )
    rank = (before & (cell.unsqueeze(1) == cell)).sum(dim=1)
    leaves = rank < excess[label, domain]
    turn = (before & leaves & (label.unsqueeze(1) == label)).sum(dim=1)
    seats = (-excess).clamp(min=0).cumsum(dim=1)[label]
    receiver = (seats <= turn.unsqueeze(1)).sum(dim=1)
    return torch.where(leaves & (receiver < domains), receiver, domain)


def balanced_styles(
    style: Tensor, label: Tensor, domain: Tensor, classes: int, domains: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(styles (B, F), moved (B,)): for samples that change domain, a mix of two styles of that domain in the batch.

    Of the same class where there is one; a sample whose new domain has none in the batch keeps its own style.
    Arguments as in `surplus_to_deficit`.
    """
    target = surplus_to_deficit(style, label, domain, classes, domains)
    there = target.unsqueeze(1) == domain
    same = there & (label.unsqueeze(1) == label)
    candidates = torch.where(same.any(dim=1, keepdim=True), same, there)
    keys = uniform(2, len(style), len(style), generator=generator).to(style.device)
    first, second = keys.masked_fill(~candidates, -1.0).argmax(dim=2)
    lam = dirichlet(BETA, len(style), 2, generator).to(style.device, style.dtype)[:, :1]
    moved = (target != domain) & candidates.any(dim=1)
    return torch.where(moved.unsqueeze(1), torch.lerp(style[second], style[first], lam), style), moved


@register(
    "tss",
    paper="Test-Time Style Shifting: Handling Arbitrary Styles in Domain Generalization, ICML 2023, arXiv 2306.04911",
    tasks=("classification",),
    level="domains",
    inputs=("image",),
    search={"alpha": Choice(0.0, 1.5, 3.0), "balance": Choice(0.0, 0.5)},
)
class TSS(ByDomain):
    """At test time, give samples whose style is far from all training domains the style of the nearest one.

    alpha >= 0: how far, in mean distances of that domain's own samples; 0 shifts all, infinity none. balance: the share
    of training steps with style balancing, at the first tap. taps: names of modules that give maps (B, C, *spatial);
    None: the network's first. Predictions are those of the network alone until `after_training`, and after `reset`.
    """

    def __init__(self, alpha: float = 3.0, balance: float = 0.5, taps: Sequence[str] | None = None) -> None:
        self.alpha, self.balance, self.tap_names = non_negative("alpha", alpha), in_unit("balance", balance), taps

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.taps = Taps(given.model, self.tap_names, given.split)
        if self.tap_names is None:
            self.taps = Taps(given.model, self.taps.names[:1], given.split)
        self.reset()

    def reset(self) -> None:
        """Forget the styles of the training domains."""
        self.bank: dict[str, tuple[Tensor, Tensor]] = {}

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if not self.balance or float(uniform(1, generator=self.generator)) >= self.balance:
            return self.plain_loss(model, batch)
        label = self.task.soft_target(batch.y).argmax(dim=1)
        balance = repeated(partial(self._balance, label, self.group(batch)), self.generator)
        with self.taps.rewrite({self.taps.names[0]: balance}):
            return self.plain_loss(model, batch)

    def _balance(self, label: Tensor, group: Tensor, h: Tensor) -> Tensor:
        style, moved = balanced_styles(
            styles(h.detach()), label, group, self.task.outputs, len(self.domains), self.generator
        )
        return torch.where(moved.view(-1, *[1] * (h.ndim - 1)), restyle(h, style), h)

    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Learn the styles of the training domains from batches that name their domains."""
        found, groups = self._styles(model, batches)
        self.bank = {name: style_centres(style, groups, len(self.domains)) for name, style in found.items()}

    @torch.no_grad()
    def calibrate(self, model: nn.Module, batches: Iterable[Batch], share: float = 0.05) -> float:
        """Set alpha so that at most this share of the given samples, held out from the training domains, moves."""
        in_unit("share", share)
        found, _ = self._styles(model, batches)
        ratios = [self._far(name, style)[1] for name, style in found.items()]
        worst = torch.stack(ratios).max(dim=0).values.sort().values
        self.alpha = float(worst[max(0, len(worst) - int(share * len(worst)) - 1)])
        return self.alpha

    @torch.no_grad()
    def _styles(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Styles (N, F) at each tap, nothing shifted, and the domains (N,)."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.taps.names}
        groups = []

        def note(name: str) -> Callable[[Tensor], Tensor]:
            return lambda h: (seen[name].append(styles(h)), h)[1]  # type: ignore[func-returns-value]

        with evaluating(model), self.taps.rewrite({name: note(name) for name in self.taps.names}, model):
            for batch in batches:
                groups.append(self.group(batch))
                model(fitting(model, batch.x))
        return {name: torch.cat(parts) for name, parts in seen.items()}, torch.cat(groups)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        with self.taps.rewrite({name: partial(self._shift, name) for name in self.bank}, model):
            return super().predict(model, x)

    def _far(self, name: str, style: Tensor) -> tuple[Tensor, Tensor]:
        """(style of the nearest domain (B, F), how far that is in its own samples' mean distances (B,)).

        Where those samples are all alike, any other style is as good as infinitely far.
        """
        centres, spreads = (value.to(style.device) for value in self.bank[name])
        which, distance = nearest_style(style, centres)
        return centres[which], distance / spreads[which].clamp(min=torch.finfo(distance.dtype).tiny)

    def _shift(self, name: str, h: Tensor) -> Tensor:
        new, distance = self._far(name, styles(h))
        return torch.where((distance > self.alpha).view(-1, *[1] * (h.ndim - 1)), restyle(h, new), h)

    def state_dict(self) -> dict[str, Any]:
        bank = {name: {"centres": c, "spreads": r} for name, (c, r) in self.bank.items()}
        return {**super().state_dict(), "alpha": self.alpha, "bank": bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.alpha = state["alpha"]
        self.bank = {name: (value["centres"], value["spreads"]) for name, value in state["bank"].items()}
