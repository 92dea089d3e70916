"""AdAutoMix: learned masks of several images, made to be hard for the classifier but true to their sources.

    s_i = softmax(q_i (sum_{j != i} k_j)^T / sqrt(C / 2)) v_i,   m = softmax_i(up(s_i)),   x~ = sum_i m_i x_i
    S = sum_i lam_i cos(mix_k(k(x~)), mix_k(k(x_i)));   the block's loss: every other step L = sum_i lam_i CE_i of the
    teacher, else -beta L - (1 - beta) S

The network's loss: mixed CE(mix(q(x~_b))) + CE(one(q(x)), y); for more than two images the latter is (1 - r) of it + r
of the mixed CE of plain mixup. Source: Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", ICLR 2024, arXiv
2312.11954. Cost: 4, with two images 3. The released code adds (1 - beta) S, which drives a mix away from its sources:
reference=True does. The labels follow lam, whatever the masks' mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, positive
from ...core.operation import interpolate
from ...core.pairing import RandomPairing
from ...core.random import dirichlet, integers
from ...core.ratio import Ratio, complete
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.side import linear
from .learned import LearnedMix, attend, cells


class Normalised(Ratio):
    """One of k independent Beta(alpha, alpha) over their sum; with two lam and 1 - lam. A draw for the whole batch."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = positive("alpha", alpha)

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        draws = dirichlet(self.alpha, 1 if k == 2 else k, 2, generator)
        return complete(draws if k == 2 else (draws[:, 0] / draws[:, 0].sum()).unsqueeze(0)).expand(rows, k)


class AdaptiveBlock(nn.Module):
    """Where each of K images shows: maps z (R, channels, *grid) and a recipe to logits (B, K, n).

    ratio_channel: whether the shares join the maps as a channel. Initial weights are N(0, .01).
    """

    def __init__(self, channels: int, generator: torch.Generator, ratio_channel: bool = False) -> None:
        super().__init__()
        inputs, inner, self.ratio_channel = channels + ratio_channel, max(channels // 2, 1), ratio_channel
        self.query, self.key = (linear(inputs, inner, 0.01, generator) for _ in range(2))
        self.value = linear(inputs, 1, 0.01, generator)

    def forward(self, z: Tensor, recipe: Recipe) -> Tensor:
        images = cells(z, recipe, self.ratio_channel)
        query, key = self.query(images).relu(), self.key(images).relu()
        others = key.sum(dim=1, keepdim=True) - key
        return attend(query, others, self.value(images)).squeeze(3)


def similarity(mixed: Tensor, sources: Tensor, share: Tensor) -> Tensor:
    """Mean over the batch of sum_k share_k cos(mixed, source_k); (B, C), (B, K, C), (B, K)."""
    cosine = F.cosine_similarity(mixed.unsqueeze(1).float(), sources.float(), dim=2)
    return (share * cosine).sum(dim=1).mean()


@register(
    "adautomix",
    paper="Adversarial AutoMixup, ICLR 2024, arXiv 2312.11954",
    tasks=("classification",),
    cost=4.0,
    inputs=("image",),
    search={"alpha": Log(0.2, 8), "beta": Uniform(0, 1)},
)
class AdAutoMix(LearnedMix):
    """Learn masks of several images that are hard for the moving average of the network yet true to their sources.

    k >= 2: images in a mix (ImageNet: 2), or several numbers, one of which is drawn for each batch (CUB: 2, 3). alpha:
    Beta(alpha, alpha). beta in [0, 1]: weight of being hard against being true (Tiny-ImageNet .4, ImageNet .1). plain
    in [0, 1]: r. every: one step in so many, the first included, is adversarial. ratio_channel: see `AdaptiveBlock`
    (the paper: for large images). reference: see above. margin, momentum, hold, tap, lr, lr_end: see `LearnedMix`.
    ValueError for arguments out of range.
    """

    def __init__(
        self,
        k: int | Sequence[int] = 3,
        alpha: float = 1.0,
        beta: float = 0.3,
        tap: str | None = None,
        *,
        plain: float = 0.5,
        every: int = 2,
        ratio_channel: bool = False,
        reference: bool = False,
        margin: float = 0.03,
        momentum: float = 0.999999,
        hold: float = 0.1,
        lr: float = 0.1,
        lr_end: float = 0.5,
    ) -> None:
        self.counts = [at_least("k", n, 2) for n in ([k] if isinstance(k, int) else k)]
        if not self.counts:
            raise ValueError("k must be a number of images or several of them, got none")
        pairing = RandomPairing(max(self.counts))
        super().__init__(pairing, Normalised(alpha), margin, momentum, hold, tap, lr, lr_end)
        self.beta, self.plain, self.every = in_unit("beta", beta), in_unit("plain", plain), at_least("every", every, 1)
        self.ratio_channel, self.reference = ratio_channel, reference
        self.cost = sum(3.0 if n == 2 else 4.0 for n in self.counts) / len(self.counts)

    def make_block(self, channels: int) -> nn.Module:
        return AdaptiveBlock(channels, self.generator, self.ratio_channel)

    def draw(self, batch: Batch) -> tuple[Recipe, Recipe]:
        if len(self.counts) > 1:
            one = int(integers(len(self.counts), 1, generator=self.generator))
            self.pairing = RandomPairing(self.counts[one])
        judged, shown = super().draw(batch)
        return judged, shown if self.pairing.k == 2 else Recipe(shown.partner, judged.share)

    @property
    def adversarial(self) -> bool:
        """Whether the block works against the teacher in the current step."""
        return self.steps_done % self.every == 0

    def judge(self, output: Tensor, y: Tensor, recipe: Recipe, masks: Tensor, clean: Tensor) -> Tensor:
        loss = self.objective.mean(output, y, recipe, self.task)
        if not self.adversarial:
            return loss
        same = similarity(output, clean[recipe.partner], recipe.share)
        return -self.beta * loss + (1.0 if self.reference else -1.0) * (1.0 - self.beta) * same

    def student_loss(self, model: nn.Module, batch: Batch, own: Tensor, mixed: Tensor, recipe: Recipe) -> Tensor:
        if recipe.partner.shape[1] > 2:
            plainly = self._mixed_loss(model, batch, interpolate(batch.x, recipe), recipe)
            own = (1.0 - self.plain) * own + self.plain * plainly
        return super().student_loss(model, batch, own, mixed, recipe)
