"""NoisyMix: mix images and two AugMix versions of them alike at a random layer, add noise, and ask them to agree.

    h~ = m (lam h + (1 - lam) h_pi) + a,   a = i s_a B N(0, 1), m = 1 + s_m B' U(-1, 1), each 0 or 1 in a share `sparse`
    loss = mixed CE of the clean images + 12 JS(predictions of the three versions),   i = 1, 2, 3 for the versions

lam ~ Beta(alpha, alpha), B, B' ~ Beta(2, 5): one number for each version of the batch. Source: Erichson, Lim, Xu,
Utrera, Cao, Mahoney, "NoisyMix: Boosting Model Robustness to Common Corruptions", AISTATS 2024, arXiv 2202.01263;
without the versions: Noisy Feature Mixup, Lim, Erichson, Utrera, Xu, Mahoney, ICLR 2022, arXiv 2110.02180. Cost: 3, 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative
from ...core.method import Mix, Setup
from ...core.operation import Context, Operation, interpolate
from ...core.pairing import RandomPairing
from ...core.ratio import Beta
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import Split
from ...core.tree import Tree
from .augmix import AugMix, jensen_shannon


class NoisyInterpolate(Operation):
    """Interpolate, then multiply and add sparse noise.

    additive, multiplicative >= 0: levels s_a and s_m. sparse in [0, 1]: the share of values without noise. versions:
    the rows are so many equal parts; part i gets i times the additive noise. ValueError for arguments out of range.
    """

    def __init__(
        self, additive: float = 0.5, multiplicative: float = 0.5, sparse: float = 0.65, versions: int = 1
    ) -> None:
        self.additive = non_negative("additive", additive)
        self.multiplicative = non_negative("multiplicative", multiplicative)
        self.sparse, self.versions = in_unit("sparse", sparse), versions

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        mixed = interpolate(x, recipe)
        source = _beside(mixed, context.generator)
        where: dict[str, Any] = {"generator": source, "device": mixed.device, "dtype": mixed.dtype}

        def sparse(noise: Tensor) -> Tensor:
            return noise * (torch.rand(mixed.shape, **where) >= self.sparse)

        # Beta(2, 5) is the second smallest of six uniforms.
        level = torch.rand(2, self.versions, 6, generator=source, device=mixed.device).sort(dim=2).values[:, :, 1]
        part = torch.arange(len(mixed), device=mixed.device) * self.versions // len(mixed)
        level = level[:, part].to(mixed.dtype).view(2, -1, *[1] * (mixed.ndim - 1))
        times = (1 + part).to(mixed.dtype).view_as(level[0])
        add = sparse(self.additive * times * level[0] * torch.randn(mixed.shape, **where))
        factor = 1.0 + sparse(self.multiplicative * level[1] * (2.0 * torch.rand(mixed.shape, **where) - 1.0))
        return factor * mixed + add, recipe


def _beside(x: Tensor, source: torch.Generator) -> torch.Generator:
    """`source`, or one on x's device that it seeds: noise as large as x is not copied between devices."""
    if source.device == x.device:
        return source
    seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
    return torch.Generator(x.device).manual_seed(seed)


@register(
    "noisymix",
    paper="NoisyMix: Boosting Model Robustness to Common Corruptions, AISTATS 2024, arXiv 2202.01263",
    tasks=("classification",),
    cost=3.0,
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "additive": Uniform(0, 1), "multiplicative": Uniform(0, 1), "weight": Log(1, 30)},
)
class NoisyMix(Mix):
    """Mix inputs or hidden states with noise, and for the same prediction on images and two augmentations of each.

    alpha: Beta(alpha, alpha). additive, multiplicative, sparse: see `NoisyInterpolate`. weight: of the consistency; 0
    makes no augmentations: Noisy Feature Mixup. severity, width, mean, std: see `augmix`. taps: the places to draw
    from, "input" and names of modules; None: the input and the network's first two taps (see `Split`; the authors
    draw from the input and three layers).
    """

    def __init__(
        self,
        alpha: float = 1.0,
        additive: float = 0.5,
        multiplicative: float = 0.5,
        sparse: float = 0.65,
        weight: float = 12.0,
        taps: Sequence[str] | None = None,
        *,
        severity: float = 3.0,
        width: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.weight = non_negative("weight", weight)
        operation = NoisyInterpolate(additive, multiplicative, sparse, 3 if weight else 1)
        places = ("input",) if taps is None else taps
        super().__init__(RandomPairing(), Beta(alpha), operation, places=places)
        self.taps = taps
        self._augment = AugMix(severity, width, mean=mean, std=std)

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        if self.taps is None:
            self.places = ("input", *(given.split or Split(given.model)).taps[:2])
        return super().resolve_places(given)

    def loss(self, model: nn.Module, batch: Any, **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        recipe = self.recipe(batch)
        assert recipe is not None  # the probability is 1
        return self.mixed_loss(model, batch, recipe)

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        if not self.weight:
            return super().mixed_loss(model, batch, recipe)
        self._augment.generator = self.generator
        count = len(batch)
        partner = torch.cat([recipe.partner + part * count for part in range(3)])
        three = Recipe(partner, recipe.share.repeat(3, 1), place=recipe.place)
        versions = Batch(self._augment.versions(batch.x), torch.cat([batch.y] * 3))
        output, _ = self.forward(model, versions, three)
        clean = self.objective.mean(output[:count], batch.y, recipe, self.task)
        return clean + self.weight * jensen_shannon(output.view(3, count, -1)).mean()
