"""GuidedMixup: blend two images pixel by pixel by the saliency of each, and pair those that are salient elsewhere.

    x~_i = m_i x_i + (1 - m_i) x_pi(i),   m_i = lam s_i / (lam s_i + (1 - lam) s_pi(i)),   lam = 1/2
    y~_i = mean(m_i) y_i + (1 - mean(m_i)) y_pi(i)
    pi: a cycle through the batch, from the pair with the greatest |s_i - s_j| on to the farthest image not yet visited

s: saliency, smoothed, of sum 1. Source: Kang, Kim, "GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps",
AAAI 2023, arXiv 2306.16612. Cost: 1 with spectral residuals (the default, "SR" there), 2 with input gradients ("AP").
openmixup computes the cycle and then mixes random pairs; this one mixes those of the cycle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import non_negative
from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Constant, complete
from ...core.recipe import Mixed, Recipe, rowwise
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.tree import Tree
from ..saliency import SpectralResidual, as_saliency, at_size, filtered, normalised
from .solver.inference import in_inference_mode


@in_inference_mode
def greedy_cycle(maps: Tensor) -> Tensor:
    """(B,) the next of each row in a cycle through all of maps (B, ...), each step to the farthest not yet visited.

    It starts at the row of the farthest pair; of equals the first.
    """
    flat = maps.flatten(1).double()  # products lose half the digits, of which this leaves those of float32
    far = torch.cdist(flat, flat, compute_mode="use_mm_for_euclid_dist").float().fill_diagonal_(-torch.inf)
    first = row = (far.argmax() // len(far)).view(1)
    following = torch.zeros_like(first).expand(len(far)).clone()
    for _ in range(len(far) - 1):  # each step needs the one before; nothing is read back from the device
        far.index_fill_(1, row, -torch.inf)
        after = far.index_select(0, row).max(dim=1).indices  # several times as fast as argmax
        following.index_copy_(0, row, after)
        row = after
    return following.index_copy_(0, row, first)


class GuidedBlend(Operation):
    """Weigh each pixel of a pair by its share of their saliency there, times the drawn shares; shares follow the mask.

    saliency: how to find it, or the maps of all rows; None is `SpectralResidual()`. smooth >= 0: the deviation of the
    Gaussian, in pixels, that smooths maps as far as it reaches. pair: take the partners from `greedy_cycle`, not from
    the recipe, unless the batch brings guests. x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError otherwise.
    """

    def __init__(self, saliency: Saliency | Tensor | None = None, smooth: float = 3.0, *, pair: bool = True) -> None:
        self.saliency = SpectralResidual() if saliency is None else as_saliency(saliency)
        self.smooth, self.pair, self.needs = non_negative("smooth", smooth), pair, self.saliency.needs

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, count = spatial_size(x, recipe), len(recipe.partner)
        maps = at_size(self.saliency(x, context), size).float()
        if self.smooth:
            reach = torch.arange(-round(self.smooth), round(self.smooth) + 1, device=x.device)
            bell = torch.exp(-0.5 * (reach / self.smooth) ** 2)
            maps = filtered(maps, bell / bell.sum())
        maps, partner = normalised(maps), recipe.partner[:, 1].to(x.device)
        if self.pair and count == len(x):
            partner = greedy_cycle(maps[:count])
        lam = rowwise(recipe.lam.to(x.device, maps.dtype), maps)
        own, guest = lam * maps[:count], (1.0 - lam) * maps[partner]
        mask = torch.where(own + guest > 0, own / (own + guest), lam)
        share = complete(mask.flatten(1).mean(dim=1, keepdim=True).expand(-1, 2))
        applied = Recipe(
            torch.stack((recipe.partner[:, 0].to(x.device), partner), dim=1),
            recipe.share,
            loss_weight=recipe.loss_weight,
            place=recipe.place,
        )
        return blend(x, partner, mask.to(x.dtype)), applied.with_share(share, mask)


def guidedmixup(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor | None = None,
    smooth: float = 3.0,
    *,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = guidedmixup(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. saliency: an omnimix Saliency that needs no network, or
    maps (B, 1, *grid), such as `input_gradient(model, x, y)`; None is spectral residual. smooth: see `GuidedBlend`. y:
    see `cutmix`. partner: (B,) rows in place of the cycle. ValueError for tables, integer x or arguments out of range.
    """
    operation = GuidedBlend(saliency, smooth, pair=partner is None)
    return mix_once(x, y, RandomPairing(), Constant(0.5), operation, None, partner, generator)


@register(
    "guidedmixup",
    paper="GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps, AAAI 2023, arXiv 2306.16612",
    inputs=("image",),
    search={"smooth": Log(0.5, 8), "probability": Choice(0.5, 1.0)},
)
class GuidedMixup(Mix):
    """Blend each pixel of two images by how salient it is in each, with partners that are salient elsewhere.

    saliency, smooth: see `guidedmixup`; here the saliency may need the network. probability: the share of steps that
    mix.
    """

    def __init__(self, saliency: Saliency | None = None, smooth: float = 3.0, *, probability: float = 1.0) -> None:
        operation = GuidedBlend(saliency, smooth)
        super().__init__(RandomPairing(), Constant(0.5), operation, probability=probability)
