"""BSS with SwAV and MSN: what the features of a view say of prototypes must follow from another view, of another style.

    s_i^v = cos(z_i^v, c_k) over prototypes c_1..c_K;   a Sinkhorn problem and a mean are of one view, so of one style
    SwAV: l = mean over v != w of CE(q_i^v, softmax(s_i^w / t)),   q^v: the codes of view v, all prototypes used alike
    MSN:  l = mean over v != w of CE(softmax(s~_i^w / t+), softmax(s_i^v / t)) - m mean_v H(mean_i softmax(s_i^v / t))

In MSN s is of images with patches hidden and s~ of whole ones in a network that follows the trained one. Sources:
Scalbert et al., ICLR 2024, arXiv 2303.06088, for the views; Caron et al., "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, arXiv 2006.09882 (t = 0.1, Sinkhorn with epsilon = 0.05 and 3
iterations, K = 3,000); Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022, arXiv
2204.07141 (t = 0.1, t+ = 0.025, m = 1, K = 1,024, momentum from 0.996 to 1 linearly, 15 % of the patches hidden, a
fourteenth of the side each, for ViT-S; m, K and the 15 % we could not look up). Cost: 2, MSN 2.7 (its passes without
gradients). Ours: features are the head's inputs, without a projector; prototypes learn from the first step; hidden
patches are 0 rather than left out, so that any network takes them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, non_negative, positive
from ...core.companion import fitting, frozen
from ...core.method import Setup
from ...core.random import uniform
from ...core.registry import register
from ...core.search import Choice, Log, Range
from ...core.side import linear
from ...core.sided import Sided
from ...core.split import Split
from .bss import BatchStyles


def sinkhorn_codes(score: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """(..., N, K) shares of K prototypes for each of N samples, all prototypes used about alike; no gradients.

    score: (..., N, K). Each iteration gives all prototypes the same sum, then each sample the sum 1.
    """
    log = score.detach() / epsilon
    for _ in range(iterations):
        log = log - log.logsumexp(dim=-2, keepdim=True)
        log = log - log.logsumexp(dim=-1, keepdim=True)
    found: Tensor = log.exp()
    return found


def across_views(target: Tensor, log_share: Tensor) -> Tensor:
    """The mean cross-entropy of log_share (V, N, K) of each view under the targets (V, N, K) of each other view."""
    views = len(target)
    every: Tensor = -torch.einsum("vnk,wnk->vw", target, log_share) / target.shape[1]
    loss: Tensor = (every.sum() - every.diagonal().sum()) / (views * (views - 1))
    return loss


def swapped_prediction(score: Tensor, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The loss of SwAV for scores (V, N, K)."""
    return across_views(sinkhorn_codes(score, epsilon, iterations), (score / temperature).log_softmax(dim=2))


def masked_match(
    score: Tensor, target: Tensor, temperature: float = 0.1, sharp: float = 0.025, entropy: float = 1.0
) -> Tensor:
    """The loss of MSN for scores of anchors and of targets, both (V, N, K)."""
    log_share = (score / temperature).log_softmax(dim=2)
    mean = log_share.exp().mean(dim=1)
    spread: Tensor = torch.special.entr(mean).sum(dim=1).mean()
    return across_views((target.detach() / sharp).softmax(dim=2), log_share) - entropy * spread


def hide_patches(x: Tensor, share: float, patch: int | None, generator: torch.Generator) -> Tensor:
    """Images x (N, C, *spatial) with a share of their patches of side `patch` set to 0, other ones in each image.

    patch: None for a fourteenth of the shorter side, as 16 of 224. ValueError for patches so large that none would be
    hidden.
    """
    side = max(1, round(min(x.shape[2:]) / 14)) if patch is None else patch
    counts = [ceil(n / side) for n in x.shape[2:]]
    if share and not round(share * prod(counts)):
        raise ValueError(
            f"hide={share:g} of the {prod(counts)} patches of side {side} in images of {tuple(x.shape[2:])} hides "
            "nothing: use a smaller patch"
        )
    cell = torch.zeros((), dtype=torch.long)
    for n, count in zip(x.shape[2:], counts, strict=True):
        cell = cell.unsqueeze(-1) * count + torch.arange(n) // side
    rank = uniform(len(x), prod(counts), generator=generator).argsort(dim=1).argsort(dim=1)
    hidden = (rank < round(share * prod(counts)))[:, cell].unsqueeze(1)
    return x.masked_fill(hidden.to(x.device), 0.0)


class PrototypeObjective:
    """What `PrototypeBSS` asks of the scores of prototypes. count >= 2: how many there are."""

    hide = 0.0
    """The share of patches hidden from the trained network."""
    patch: int | None = None
    momentum: float | None = None
    """Of the network that gives the targets, at first; None: there is none."""

    def __init__(self, count: int) -> None:
        self.count = at_least("prototypes", count, 2)

    @abstractmethod
    def __call__(self, score: Tensor, target: Tensor | None) -> Tensor:
        """The loss of the scores (V, N, K), and those of the network that gives the targets."""


class SwAV(PrototypeObjective):
    """Predict the codes of one view from another one.

    temperature, epsilon > 0, iterations >= 1: of `swapped_prediction`.
    """

    def __init__(self, count: int = 3000, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__(count)
        self.temperature, self.epsilon = positive("temperature", temperature), positive("epsilon", epsilon)
        self.iterations = at_least("iterations", iterations, 1)

    def __call__(self, score: Tensor, target: Tensor | None) -> Tensor:
        return swapped_prediction(score, self.temperature, self.epsilon, self.iterations)


class MSN(PrototypeObjective):
    """Match hidden views to whole ones. temperature, sharp > 0 and entropy >= 0: t, t+ and m of `masked_match`.

    hide in [0, 1), patch >= 1 or None: see `hide_patches`. momentum in [0, 1]: it rises to 1 linearly over the planned
    steps.
    """

    def __init__(
        self,
        count: int = 1024,
        temperature: float = 0.1,
        sharp: float = 0.025,
        entropy: float = 1.0,
        *,
        hide: float = 0.15,
        patch: int | None = None,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(count)
        self.temperature, self.sharp = positive("temperature", temperature), positive("sharp", sharp)
        self.entropy, self.patch = (
            non_negative("entropy", entropy),
            None if patch is None else at_least("patch", patch, 1),
        )
        self.hide, self.momentum = in_unit("hide", hide), in_unit("momentum", momentum)
        if hide == 1:
            raise ValueError("hide must be a number in [0, 1), got 1: nothing would be left")

    def __call__(self, score: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return masked_match(score, target, self.temperature, self.sharp, self.entropy)


class PrototypeBSS(Sided, BatchStyles):
    """Views of one style each, whose features must say the same of prototypes, which are trained beside the network.

    objective: `SwAV(...)` or `MSN(...)`. style: see `BatchStyles`.
    """

    def __init__(self, objective: PrototypeObjective, **style: Any) -> None:
        super().__init__(**style)
        self.objective = objective

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.teacher: nn.Module | None = None
        if self.objective.momentum is not None:
            if given.steps is None:
                raise ValueError("the momentum of MSN rises over the planned steps: pass setup(..., steps=...)")
            self.teacher = frozen(given.model)

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        inputs = sizes["head input"]
        return {"prototypes": linear(inputs, self.objective.count, inputs**-0.5, self.generator, bias=False)}

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        loss = super().loss(model, batch, **streams)
        return self.side.watch(loss) if model.training and self.side is not None else loss

    def shown(self, x: Tensor) -> Tensor:
        if not self.objective.hide:
            return x
        return hide_patches(x, self.objective.hide, self.objective.patch, self.generator)

    def contrast(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        prototypes = self.beside(model, x).modules["prototypes"].get_parameter("weight")
        target = None if self.teacher is None else cosines(self._target(self.teacher, x, z), prototypes)
        return self.objective(cosines(z, prototypes), target)

    @torch.no_grad()
    def _target(self, teacher: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """Features (V, N, F) of the whole images in the network that follows."""
        teacher.to(z.device)
        return Split(teacher, self.split.head_name).features(fitting(teacher, x)).reshape(z.shape)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if self.teacher is None:
            return
        given, first = self._given(), self.objective.momentum
        assert given.steps is not None
        assert first is not None
        done = min(1.0, self.steps_done / given.steps)
        for name, now in given.model.state_dict().items():
            own = self.teacher.state_dict()[name]
            own.lerp_(now, (1 - first) * (1 - done)) if now.is_floating_point() else own.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        teacher = {} if self.teacher is None else {"teacher": dict(self.teacher.state_dict())}
        return {**super().state_dict(), **teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])


def cosines(z: Tensor, prototypes: Tensor) -> Tensor:
    """(V, N, K) of features z (V, N, F) and prototypes (K, F)."""
    wide = z if z.dtype == torch.float64 else z.float()
    return F.normalize(wide, dim=2) @ F.normalize(prototypes.to(wide.dtype), dim=1).T


PAPER = (
    "Towards Domain-invariant Self-Supervised Learning with Batch Styles Standardization, ICLR 2024, arXiv 2303.06088"
)
SEARCH: dict[str, Range] = {
    "weight": Log(1e-2, 1),
    "ratio": Choice((0.02, 1.0), (0.0, 0.1)),
    "jitter": Choice(0.0, 0.4),
}


@register("bss-swav", paper=PAPER, cost=2.0, level="domains", inputs=("image",), search=SEARCH)
def bss_swav(
    ratio: Sequence[float] = (0.02, 1.0),
    weight: float = 0.1,
    *,
    prototypes: int = 3000,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    views: int = 2,
    labels: bool = True,
    jitter: float = 0.0,
    hue: float = 0.0,
    black: float | Sequence[float] | None = None,
    fourier: bool = False,
) -> PrototypeBSS:
    """Give all images of a view the style of one of them, and predict the codes of one view from another one.

    prototypes, temperature, epsilon, iterations: see `SwAV`; everything else: see `BatchStyles`.
    """
    objective = SwAV(prototypes, temperature, epsilon, iterations)
    return PrototypeBSS(
        objective, ratio=ratio, weight=weight, views=views, labels=labels, jitter=jitter, hue=hue, black=black,
        fourier=fourier,
    )  # fmt: skip


@register("bss-msn", paper=PAPER, cost=2.7, level="domains", inputs=("image",), search=SEARCH)
def bss_msn(
    ratio: Sequence[float] = (0.02, 1.0),
    weight: float = 0.1,
    *,
    prototypes: int = 1024,
    temperature: float = 0.1,
    sharp: float = 0.025,
    entropy: float = 1.0,
    hide: float = 0.15,
    patch: int | None = None,
    momentum: float = 0.996,
    views: int = 2,
    labels: bool = True,
    jitter: float = 0.0,
    hue: float = 0.0,
    black: float | Sequence[float] | None = None,
    fourier: bool = False,
) -> PrototypeBSS:
    """Give all images of a view the style of one of them, and match views with hidden patches to whole other ones.

    prototypes, temperature, sharp, entropy, hide, patch, momentum: see `MSN`; everything else: see `BatchStyles`.
    """
    objective = MSN(prototypes, temperature, sharp, entropy, hide=hide, patch=patch, momentum=momentum)
    return PrototypeBSS(
        objective, ratio=ratio, weight=weight, views=views, labels=labels, jitter=jitter, hue=hue, black=black,
        fourier=fourier,
    )  # fmt: skip
