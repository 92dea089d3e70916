"""MixPro: mix images by random cells of whole patches, and trust attention for the labels as far as predictions hold.

    x~_i = m_i x_i + (1 - m_i) x_pi(i), m_i = 1 in ceil(lam n) of n cells, others for every sample;   lam ~ Beta(a, a)
    y~_i = r_i y_i + (1 - r_i) y_pi(i),   r_i = c_i own_i + (1 - c_i) mean(m_i),   c_i = cos(softmax f(x~_i), t_i)

own_i: what of the attention to x~_i is on x_i's cells; t_i: the target mixed by area. Source: Zhao, Huang, Hu,
Zhang, Liu, "MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer", ICLR
2023, arXiv 2304.12043. Cost: 1. The reference lets the gradient through c: `reference=True`. It smooths t and the
labels by .1, which is left to the loss, and mixes every other batch by mixup or CutMix: `Choose([MixupOrCutMix(),
MixPro()])`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least
from ...core.method import Mix, Setup
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import uniform
from ...core.ratio import Beta, complete
from ...core.recipe import Mixed, Recipe, mix_labels
from ...core.registry import register
from ...core.search import Log
from ...core.tree import Tree
from ..label.attention import AttentionLabels
from ..saliency import attention


class MaskCells(Operation):
    """Keep the sample in ceil(lam n) random cells of a grid of n, drawn for every row; shares follow the mask.

    cell: the side of the cells in pixels, those at the far border cut off; None takes a quarter of the shorter side. x:
    (R, C, *spatial) with 1 to 3 spatial axes; ValueError for other inputs.
    """

    def __init__(self, cell: int | None = None) -> None:
        self.cell = cell if cell is None else at_least("cell", cell, 1)

    def side(self, size: Sequence[int]) -> int:
        return self.cell or max(1, min(size) // 4)

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam, cell = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device), self.side(size)
        grid = [math.ceil(side / cell) for side in size]
        draws = uniform(len(partner), math.prod(grid), generator=context.generator).to(x.device)
        # The small number keeps .75 of 16 at 12, although lam is a float32.
        count = (lam.double() * math.prod(grid) - 1e-5).ceil()
        mask = (draws.argsort(dim=1).argsort(dim=1) < count.unsqueeze(1)).float().view(-1, 1, *grid)
        for axis, side in enumerate(size, 2):
            mask = mask.index_select(axis, torch.arange(side, device=x.device) // cell)
        share = complete(mask.flatten(1).mean(dim=1, keepdim=True).expand(-1, 2))
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(share, mask)


class ProgressiveAttention(AttentionLabels):
    """Set label shares by attention as far as the prediction agrees with the mixed target, else by area.

    block: see `AttentionLabels`. reference: let the gradient through the agreement.
    """

    def __init__(self, block: str | None = None, *, reference: bool = False) -> None:
        super().__init__(1.0, block)
        self.reference = reference

    def weights(self, recipe: Recipe, context: Context, share: Tensor) -> Tensor:
        assert context.output is not None
        assert context.task is not None
        assert context.y is not None
        output = context.output if self.reference else context.output.detach()
        target = mix_labels(context.task.soft_target(context.y), recipe)
        return agreement(context.task.predict(output.float()), target.float()).to(share.dtype)


def agreement(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) the cosine in [0, 1] between probabilities (B, C) and targets (B, C) >= 0."""
    return F.cosine_similarity(prediction, target, dim=1).clamp(0, 1)


def mixpro(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    cell: int | None = None,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch by MaskMix, labels by area: `mixed = mixpro(x, y, cell=56)` for images of 224 x 224.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. cell: the side of the cells in pixels, best a multiple of
    the network's patches; None takes a quarter of the shorter side. per_sample: a share for each sample; the cells are
    drawn for each in any case. y, alpha, lam, partner: see `cutmix`. For labels by attention see `transmix`, with
    `weight=agreement(...)`. ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    ratio = Beta(alpha, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), ratio, MaskCells(cell), lam, partner, generator)


@register(
    "mixpro",
    paper="MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer, "
    "ICLR 2023, arXiv 2304.12043",
    tasks=("classification", "multilabel"),
    inputs=("image",),
    network="attention",
    search={"alpha": Log(0.1, 8)},
)
class MixPro(Mix):
    """Mix images by random cells of whole patches, and labels by attention as far as the predictions hold.

    alpha, per_sample: see `mixpro`. cell: the side of the cells in pixels, a multiple of the side of the network's
    patches (the paper: 56 of 224); None takes the multiple nearest to a quarter of the shorter side. block, reference:
    see `ProgressiveAttention`. probability: the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        cell: int | None = None,
        *,
        block: str | None = None,
        reference: bool = False,
        per_sample: bool = False,
        probability: float = 1.0,
    ) -> None:
        ratio, self.cells = Beta(alpha, per_sample=per_sample), MaskCells(cell)
        labels = ProgressiveAttention(block, reference=reference)
        super().__init__(RandomPairing(), ratio, self.cells, labels=labels, probability=probability)
        self.cell, self.block, self._fits = cell, block, False

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.cells.cell, self._fits = self.cell, False

    def forward(self, model: nn.Module, batch: Batch, recipe: Recipe) -> tuple[Tensor, Recipe]:
        if not self._fits:
            spatial_size(batch.x, recipe)
            self.cells.cell, self._fits = self._whole_patches(model, batch.x), True
        return super().forward(model, batch, recipe)

    def _whole_patches(self, model: nn.Module, x: Tensor) -> int:
        """The side of the cells; ValueError where patches would show both images."""
        patch = x.shape[2] // attention(model, x[:1], self.block).shape[2]
        if self.cell is None:
            return patch * max(1, round(self.cells.side(x.shape[2:]) / patch))
        if self.cell % patch:
            raise ValueError(f"cell must be a multiple of the side of the network's patches, {patch}, got {self.cell}")
        return self.cell
