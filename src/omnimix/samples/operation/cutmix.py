"""CutMix: paste a box of a partner into each image and mix the labels by area.

    x~_i = m x_i + (1 - m) x_pi(i), m = 0 in a box of sides int(side (1 - lam)^(1/d)) about a uniform centre, clipped;
    y~_i = s y_i + (1 - s) y_pi(i), s = mean(m), lam ~ Beta(alpha, alpha)

Source: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019, arXiv 1905.04899. Cost: 1 (one copy of the batch, and the boxes). As in the reference, sides are
2 * (int(...) // 2), and one box serves the whole batch unless per_sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers
from ...core.ratio import Beta, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.tree import Tree


def cut_box(lam: Tensor, size: Sequence[int], centre: Tensor) -> tuple[Tensor, Tensor]:
    """First cells in the boxes and first cells behind them, (G, d) each.

    lam: (G,) shares to keep. size: d sides. centre: (G, d) cells. Volume before clipping: 1 - lam of the whole.
    """
    side = torch.tensor(size, device=lam.device)
    # The small number keeps a side of 10 * sqrt(.64) at 8, although lam is a float32.
    cut = (side * (1.0 - lam.double()).pow(1.0 / len(size)).unsqueeze(1) + 1e-5).long()
    return (centre - cut // 2).clamp(min=0), torch.minimum(centre + cut // 2, side)


def outside(low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
    """(G, 1, *size) float masks: 0 in the boxes, 1 elsewhere."""
    along = []
    for axis, side in enumerate(size):
        cell = torch.arange(side, device=low.device)
        out = (cell < low[:, axis, None]) | (cell >= high[:, axis, None])
        along.append(out.float().view(-1, 1, *(side if a == axis else 1 for a in range(len(size)))))
    return functools.reduce(torch.maximum, along)


class CutBox(Operation):
    """Show the partner in a box that covers about the partner's share; shares follow the clipped box.

    per_sample: a box for each sample, else one for the batch, for the first sample's share. x: (R, C, *spatial) with 1
    to 3 spatial axes, images or hidden maps; ValueError otherwise.
    """

    def __init__(self, *, per_sample: bool = False) -> None:
        self.per_sample = per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, source = spatial_size(x, recipe), context.generator
        partner, lam = recipe.partner[:, 1], recipe.lam if self.per_sample else recipe.lam[:1]
        centre = torch.stack([integers(side, len(lam), generator=source) for side in size], dim=1)
        low, high = cut_box(lam, size, centre.to(lam.device))
        mask = outside(low, high, size)
        cut = ((high - low) / torch.tensor(size, device=low.device)).prod(dim=1)
        share = complete(torch.stack((1.0 - cut, cut), dim=1)).expand(len(partner), 2)
        needs_grad = torch.is_grad_enabled() and x.requires_grad
        # Copying only the boxes pays where images are large; elsewhere its calls cost more than they save.
        if x.device.type == "cpu" and not needs_grad and x[0].numel() >= 2**16:
            mixed = _paste(x, partner, low.expand(len(partner), -1), high.expand(len(partner), -1))
        else:
            mixed = blend(x, partner, mask.to(x.dtype))
        return mixed, recipe.with_share(share, mask)


def _paste(x: Tensor, partner: Tensor, low: Tensor, high: Tensor) -> Tensor:
    out = x[: len(partner)].clone()
    for own, guest, start, stop in zip(out.unbind(), partner.tolist(), low.tolist(), high.tolist(), strict=True):
        box = (slice(None), *map(slice, start, stop))
        own[box] = x[guest][box]
    return out


def cutmix(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = cutmix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y: class ids (B,), soft or multi-label (B, C), real (B,)
    or (B, D). alpha >= 0 of Beta(alpha, alpha); 0: no mixing. per_sample: a share and a box for each sample instead of
    one for the batch. lam: a number or (B,) values in [0, 1] in place of the draw; the share really kept after clipping
    is `mixed.recipe.lam`, the mask `mixed.recipe.mask`. partner: (B,) rows in place of a random permutation.
    ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    return mix_once(
        x,
        y,
        RandomPairing(),
        Beta(alpha, per_sample=per_sample),
        CutBox(per_sample=per_sample),
        lam,
        partner,
        generator,
    )


@register(
    "cutmix",
    paper="CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, "
    "ICCV 2019, arXiv 1905.04899",
    inputs=("image",),
)
class CutMix(Mix):
    """Paste a box of a partner into each image and mix the labels by area.

    alpha, per_sample: see `cutmix`. probability: the share of steps that mix (the paper: 1 on ImageNet, .5 on CIFAR).
    """

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False, probability: float = 1.0) -> None:
        ratio, operation = Beta(alpha, per_sample=per_sample), CutBox(per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
