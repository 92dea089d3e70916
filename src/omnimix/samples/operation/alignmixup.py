"""AlignMixup: match the cells of two feature maps by optimal transport before mixing them.

    M_jk = |a_j - a'_k|^2,   R = r Sinkhorn(M, eps);   by a fair coin
    A~ = lam A + (1 - lam) A' R^T   or   A~ = lam A R + (1 - lam) A',     y~ = lam y + (1 - lam) y'

A, A' (C, r): the maps of a sample and its partner, r cells; lam ~ Beta(alpha, alpha); no gradient flows through R. The
place is drawn each step: the input (plain mixup) or the last map before pooling.
Source: Venkataramanan, Kijak, Amsaleg, Avrithis, "AlignMixup: Improving Representations by Interpolating Aligned
Features", CVPR 2022, arXiv 2103.15375. Cost: 1, and the transport of r x r plans. Where average pooling and a linear
head follow, as in the paper, only sums of R count: the first branch is manifold mixup of the pooled embedding, the
second too once R has converged. Alignment matters at a tap that something non-linear follows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.checks import one_of, positive
from ...core.method import Mix, Setup
from ...core.operation import Context, Interpolate, Operation, spatial_size
from ...core.pairing import RandomPairing
from ...core.random import integers
from ...core.ratio import Beta
from ...core.recipe import Recipe, rowwise
from ...core.registry import register
from ...core.search import Log
from ...core.split import Split, evaluating, observe
from ...core.tree import Tree
from ..saliency import feature_map
from .solver import sinkhorn

ITERATIONS = 100

Marginals = Literal["balanced", "reference"]


def assignment(a: Tensor, b: Tensor, eps: float = 0.1, marginals: Marginals = "balanced") -> Tensor:
    """(N, r, r) float32 weights R, detached, own cells before the partner's; rows and columns sum to 1.

    a, b: maps (N, C, *spatial) of r cells each. "balanced" scales the costs of each pair to mean 1, so that Sinkhorn
    converges at any scale of the features. "reference" takes raw costs and stops by its rule: rows may be far off 1.
    """
    one_of("marginals", marginals, ("balanced", "reference"))
    own, guest = (h.detach().flatten(2).transpose(1, 2).float() for h in (a, b))
    cost = torch.cdist(own, guest, compute_mode="donot_use_mm_for_euclid_dist").square()
    if marginals == "reference":
        return cost.shape[1] * _stopped_plan(cost, eps)
    scale = cost.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(cost.dtype).tiny)
    return cost.shape[1] * sinkhorn(cost / scale, eps, ITERATIONS)


def _stopped_plan(cost: Tensor, eps: float) -> Tensor:
    """Sinkhorn until the potentials of rows move by less than .1 in all, on average over the batch."""
    log_mass = torch.log(cost.new_tensor(1.0 / cost.shape[1]) + 1e-8)
    u, v = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[:, 0])
    for _ in range(ITERATIONS):
        before = u
        u = eps * (log_mass - torch.logsumexp((v.unsqueeze(1) - cost) / eps, dim=2))
        v = eps * (log_mass - torch.logsumexp((u.unsqueeze(2) - cost) / eps, dim=1))
        if float((u - before).abs().sum(dim=1).mean()) < 0.1:
            break
    return torch.exp((u.unsqueeze(2) + v.unsqueeze(1) - cost) / eps)


class Aligned(Operation):
    """Interpolate maps whose cells are matched first; inputs, and embeddings (R, F) of a tap, as they are.

    eps > 0: the temperature of the transport. marginals: see `assignment`. onto: which map keeps its layout, "own" or
    "partner"; None draws one of them for the batch. ValueError for arguments out of range.
    """

    def __init__(
        self,
        eps: float = 0.1,
        marginals: Marginals = "balanced",
        onto: Literal["own", "partner"] | None = None,
    ) -> None:
        self.eps = positive("eps", eps)
        one_of("marginals", marginals, ("balanced", "reference"))
        self.marginals: Marginals = marginals
        self.onto = one_of("onto", onto, ("own", "partner", None))

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        if recipe.place == "input" or (isinstance(x, Tensor) and x.ndim == 2):
            return Interpolate()(x, recipe, context)
        spatial_size(x, recipe)
        own_layout = self.onto == "own" or (self.onto is None and int(integers(2, 1, generator=context.generator)) == 0)
        partner = recipe.partner[:, 1].to(x.device)
        own, guest = x[: len(partner)], x[partner]
        weights = assignment(own, guest, self.eps, self.marginals).to(x.dtype)
        if own_layout:
            guest = (guest.flatten(2) @ weights.transpose(1, 2)).view_as(guest)
        else:
            own = (own.flatten(2) @ weights).view_as(own)
        return torch.lerp(guest, own, rowwise(recipe.lam.to(x.device, x.dtype), x)), recipe


@register(
    "alignmixup",
    paper="AlignMixup: Improving Representations by Interpolating Aligned Features, CVPR 2022, arXiv 2103.15375",
    inputs=("image",),
    search={"alpha": Log(0.1, 32), "eps": Log(0.01, 1)},
)
class AlignMixup(Mix):
    """Mix inputs, or feature maps whose cells are matched first, and the labels with them.

    alpha: Beta(alpha, alpha). eps, marginals: see `Aligned`. places: "input" and names of modules, one drawn each step;
    at modules that give maps (B, C, *spatial) the cells are matched, embeddings (B, F) are interpolated. None: the
    input and the last map of the network, found at the first batch; ValueError where there is none. The first batch
    warns of places whose mean over cells is what the head takes: alignment changes nothing there, see above.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        eps: float = 0.1,
        places: Sequence[str] | None = None,
        *,
        marginals: Marginals = "balanced",
    ) -> None:
        wanted = ("input",) if places is None else places
        super().__init__(RandomPairing(), Beta(alpha), Aligned(eps, marginals), places=wanted)
        self._find = places is None

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        self.split, self._looked = given.split or Split(given.model), False
        if self._find:
            self.places = ("input",)
        return super().resolve_places(given)

    def recipe(self, batch: Batch) -> Recipe | None:
        if not self._looked:
            self._look(batch.x[:1])
            self._looked = True
        return super().recipe(batch)

    def _look(self, x: Tensor) -> None:
        """Find the last map, where no places are named, and see what follows those that are."""
        assert self.split is not None
        model = self._given().model
        if self._find:
            try:
                self.places = ("input", feature_map(model, x)[0])
            except ValueError:
                raise ValueError(
                    f"alignmixup finds no map (B, C, *spatial) before the head of {type(model).__name__} for inputs "
                    f"{tuple(x.shape)}; name modules that give one, as in places=('input', 'layer3')"
                ) from None
        hidden = [place for place in self.places if place != "input"]
        if not hidden:
            return
        with evaluating(model), torch.no_grad(), observe(model, *hidden) as seen:
            features = self.split.features(x).flatten(1)
        for name, h in seen.items():
            if not isinstance(h, Tensor) or h.ndim < 3:
                continue
            pooled = h.flatten(2).mean(dim=2)
            if pooled.shape == features.shape and torch.allclose(pooled, features, rtol=1e-3, atol=1e-5):
                warnings.warn(
                    f"alignmixup at {name!r} is manifold mixup of the embedding, since the head takes the mean of this "
                    "map over its cells; name an earlier module in places=(...) for the alignment to matter",
                    stacklevel=2,
                )
