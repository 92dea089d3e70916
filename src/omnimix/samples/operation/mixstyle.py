"""MixStyle: give feature maps the mean and spread of a mix of their own style and that of another sample.

    h~_i = (lam_i s_i + (1 - lam_i) s_pi(i)) (h_i - m_i) / s_i + lam_i m_i + (1 - lam_i) m_pi(i),   y~_i = y_i

m, s: mean and standard deviation over places of each channel, detached; lam_i ~ Beta(alpha, alpha).
Source: Zhou, Yang, Qiao, Xiang, "Domain Generalization with MixStyle", ICLR 2021, arXiv 2104.02008. Cost: 1. The
variance is the unbiased one plus 1e-6, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import channel_stats
from ...core.checks import one_of
from ...core.method import Mix, Setup
from ...core.operation import Context, Operation, spatial_size
from ...core.pairing import NONE, InBatch, RandomPairing
from ...core.random import uniform
from ...core.ratio import Beta
from ...core.recipe import Recipe, rowwise
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import Split
from ...core.taps import Taps
from ...core.tree import Tree


class OtherDomain(InBatch):
    """Partners are uniform among the rows of the batch that are of another domain; needs `batch.domain`."""

    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.domain is None:
            raise ValueError("pairing='crossdomain' needs the domain of every sample: train on (x, y, domain) batches")
        domain = batch.domain[: len(batch)]
        draws = uniform(len(batch), len(batch), generator=generator).to(batch.device)
        best = draws.masked_fill(domain.unsqueeze(1) == domain, -1.0).max(dim=1)
        return torch.where(best.values < 0, NONE, best.indices).unsqueeze(1)


class Statistics(Operation):
    """Give maps the mixed channel means and deviations of a sample (its share) and its partner; labels stay.

    x: (R, C, *spatial) with 1 to 3 spatial axes and more than one cell; ValueError for other inputs.
    """

    labels_follow = False

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        spatial_size(x, recipe)
        h, partner = x.float(), recipe.partner[:, 1].to(x.device)
        mean, deviation = channel_stats(h.detach())
        count, lam = len(partner), rowwise(recipe.lam.to(x.device), x)
        new_mean = torch.lerp(mean[partner], mean[:count], lam)
        new_deviation = torch.lerp(deviation[partner], deviation[:count], lam)
        mixed = (h[:count] - mean[:count]) / deviation[:count] * new_deviation + new_mean
        own = torch.zeros_like(recipe.share)
        own[:, 0] = 1.0
        return mixed.to(x.dtype), recipe.with_share(own)


@register(
    "mixstyle",
    paper="Domain Generalization with MixStyle, ICLR 2021, arXiv 2104.02008",
    inputs=("image",),
    search={"alpha": Log(0.03, 3), "probability": Uniform(0.2, 0.8)},
)
class MixStyle(Mix):
    """Mix the style of hidden maps, their channel means and deviations, with that of other samples; labels stay.

    alpha: a Beta(alpha, alpha) share for each sample. probability: each tap mixes in this share of the steps. taps:
    names of modules that give maps (B, C, *spatial); None: the network's first two (see `Split`). pairing: "random", or
    "crossdomain", with samples of the batch that are of another domain.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        probability: float = 0.5,
        taps: Sequence[str] | None = None,
        *,
        pairing: Literal["random", "crossdomain"] = "random",
    ) -> None:
        one_of("pairing", pairing, ("random", "crossdomain"))
        partners = RandomPairing() if pairing == "random" else OtherDomain()
        places = ("input",) if taps is None else taps
        super().__init__(partners, Beta(alpha, per_sample=True), Statistics(), places=places, probability=probability)
        self.taps = taps

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        self.split = given.split or Split(given.model)
        self._taps = Taps(given.model, self.taps, self.split)
        return self._taps.names

    def loss(self, model: nn.Module, batch: Any, **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        recipes = {place: self.recipe(batch) for place in self.places} if model.training else {}
        with self._taps.rewrite({p: partial(self._restyle, r) for p, r in recipes.items() if r is not None}):
            output = model(batch.x)
        return self.task.mean_loss(output, batch.y)

    def _restyle(self, recipe: Recipe, h: Tensor) -> Tensor:
        return cast(Tensor, self.operation(h, recipe, Context(self.generator))[0])
