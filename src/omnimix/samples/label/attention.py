"""Label shares by attention: what of a vision transformer's attention to the mixed image falls on each of the two.

    own_i = sum_p A_ip m_ip / sum_p A_ip,   label share of x_i: (1 - weight) * area share + weight * own_i

A: the attention of the forward pass on the mixed image to its patches, m: the mask, of which each patch takes its first
cell (nearest). Source: Chen, Sun, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers", CVPR 2022,
arXiv 2111.09833. Cost: none beside the forward pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import in_unit
from ...core.objective import LabelPolicy
from ...core.operation import Context
from ...core.recipe import Recipe
from ..saliency import Watched, watch_attention


def attention_share(attention: Tensor, mask: Tensor) -> Tensor:
    """(B,) what of attention (B, 1, *grid) >= 0 falls on the patches where masks (B or 1, 1, *spatial) show the sample.

    Where a row attends to nothing, each patch counts the same.
    """
    shown = F.interpolate(mask.float(), attention.shape[2:], mode="nearest").flatten(1)
    weights = attention.float().flatten(1)
    whole = weights.sum(dim=1, keepdim=True)
    weights = torch.where(whole > 0, weights, torch.ones_like(weights))
    return (weights * shown).sum(dim=1) / weights.sum(dim=1)


class AttentionLabels(LabelPolicy):
    """Set label shares between those of the area and those of the attention, for pairs mixed by a mask.

    weight in [0, 1]: of the attention; 0 keeps the shares of the area. block: the name of a module, whose last
    attention is taken; None takes the network's last. Rows without a mask keep their shares. ValueError for networks
    without attention, and for label maps, which follow the mask cell by cell.
    """

    after = True

    def __init__(self, weight: float = 0.5, block: str | None = None) -> None:
        self.weight, self.block = in_unit("weight", weight), block

    def watch(self, model: nn.Module) -> AbstractContextManager[Watched]:
        return watch_attention(model, self.block)

    def __call__(self, recipe: Recipe, context: Context) -> Recipe:
        if recipe.mask is None:
            return recipe
        whole_images(recipe, context, "attention")
        maps: Tensor = context.seen.maps(len(recipe.partner), recipe.mask.shape[2:])
        share = recipe.label_share.to(maps.device)
        weight = self.weights(recipe, context, share)
        own = torch.lerp(share[:, 0], attention_share(maps, recipe.mask.to(maps.device)).to(share.dtype), weight)
        return replace(recipe, label_share=torch.stack((own, 1.0 - own), dim=1))

    def weights(self, recipe: Recipe, context: Context, share: Tensor) -> Tensor:
        """(B,) the weight of the attention in each row; share: (B, 2) of the labels so far."""
        return torch.full_like(share[:, 0], self.weight)


def whole_images(recipe: Recipe, context: Context, who: str) -> None:
    """ValueError unless two samples are mixed whose labels are of whole images."""
    if recipe.partner.shape[1] != 2:
        raise ValueError(f"{who} sets the label shares of pairs, this recipe mixes {recipe.partner.shape[1]} samples")
    if context.y is not None and context.y.ndim > 2:
        raise ValueError(
            f"{who} sets the label shares of whole images; y {tuple(context.y.shape)} are label maps, which follow the "
            "mask cell by cell: use cutmix"
        )
