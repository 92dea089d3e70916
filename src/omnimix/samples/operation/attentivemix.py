"""Attentive CutMix: paste the cells of a grid to which a trained network attends most.

    m = 0 in the k cells of highest a(x_pi(i)), a: mean activation of a frozen teacher, (7, 7) for 224 x 224, k = 6;
    x~_i = m x_i + (1 - m) x_pi(i),   y~_i = mean(m) y_i + (1 - mean(m)) y_pi(i)

Source: Walawalkar, Shen, Liu, Savvides, "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning
Based Image Classification", ICASSP 2020, arXiv 2003.13048. Cost: 1 and the teacher's forward pass. The public
re-implementation takes the last channel for attention; openmixup swaps the roles of the two images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Constant, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Uniform
from ...core.tree import Tree
from ..saliency import MeanActivation, as_saliency
from .solver.blocks import enlarged


def top_cells(maps: Tensor, count: Tensor) -> Tensor:
    """(R, 1, *grid) float masks: 0 in the count (R,) highest cells of each map (R, 1, *grid), 1 elsewhere."""
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank >= count.unsqueeze(1)).float().view_as(maps)


class AttentiveCells(Operation):
    """Show the partner in its most salient cells that make up about its share, at least one; shares follow the mask.

    saliency: how to find them, whose grid is the grid of cells, or the maps of all rows. x: (R, C, *spatial) with 1 to
    3 spatial axes; ValueError for other inputs.
    """

    def __init__(self, saliency: Saliency | Tensor) -> None:
        self.saliency = as_saliency(saliency)
        self.needs = self.saliency.needs

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        maps = self.saliency(x, context)[partner]
        count = ((1.0 - lam.double()) * maps[0].numel()).round().clamp(min=1)
        mask, kept = enlarged(top_cells(maps, count * (lam < 1)), size)
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(complete(kept.expand(-1, 2)), mask)


def attentivemix(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    share: float = 6 / 49,
    *,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = attentivemix(x, y, MeanActivation(teacher, side=224))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. saliency: an omnimix Saliency, or maps (B, 1, *grid).
    share: of the cells, in [0, 1], that are pasted; rounded to whole cells, at least one. lam: 1 - share, a number or
    (B,) values. y, partner: see `cutmix`. ValueError for tables, integer x or arguments out of range.
    """
    return mix_once(x, y, RandomPairing(), Constant(1.0 - share), AttentiveCells(saliency), lam, partner, generator)


@register(
    "attentivemix",
    paper="Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image Classification, "
    "ICASSP 2020, arXiv 2003.13048",
    cost=1.33,
    inputs=("image",),
    search={"share": Uniform(0.05, 0.5)},
)
class AttentiveMix(Mix):
    """Paste the cells to which a trained network attends most into each image and mix the labels by area.

    teacher: a trained convolutional network; None: the network in training. tap, side: see `MeanActivation`. share: of
    the cells that are pasted (the paper: 6 of 49). probability: the share of steps that mix.
    """

    def __init__(
        self,
        teacher: nn.Module | None = None,
        *,
        tap: str | None = None,
        side: int | None = None,
        share: float = 6 / 49,
        probability: float = 1.0,
    ) -> None:
        operation = AttentiveCells(MeanActivation(teacher, tap, side))
        super().__init__(RandomPairing(), Constant(1.0 - share), operation, probability=probability)
