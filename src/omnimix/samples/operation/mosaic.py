"""Mosaic: four images meet at a random point, each in one quarter, and share the label by area.

    the images meet at (h, w), h and w ~ U(0, 1) in sides; shares h w, h (1 - w), (1 - h) w, (1 - h) (1 - w);
    each image lies with a corner at the meeting point, and what hangs over the border is cut

Source: Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020, arXiv 2004.10934; with
labels by area as in Takahashi, Matsubara, Uehara, "Data Augmentation using Random Image Cropping and Patching" (RICAP),
2018, arXiv 1811.09030. Cost: 1. The crop of the canvas of twice the side to its middle, without the random affine map
and the boxes of detection. Of signals two meet, of volumes eight.
"""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import Tensor

from ...core.checks import at_least
from ...core.method import Mix
from ...core.operation import Context, Operation, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers, uniform
from ...core.ratio import Ratio
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice
from ...core.tree import Tree


class Corners(Ratio):
    """(h w, h (1 - w), (1 - h) w, (1 - h) (1 - w)), h and w uniform in [margin, 1 - margin], for the batch or a sample.

    margin: in [0, .5]. per_sample: one draw a sample. K = 4, or 2^d for d axes; ValueError otherwise.
    """

    def __init__(self, margin: float = 0.0, *, per_sample: bool = False) -> None:
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin must be a number in [0, 0.5], got {margin!r}")
        self.margin, self.per_sample = margin, per_sample

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        axes = k.bit_length() - 1
        if k != 2**axes or k < 2:
            raise ValueError(f"a mosaic is made of 2, 4 or 8 samples, not of k = {k}: use RandomPairing(4) for images")
        draws = uniform(rows if self.per_sample else 1, axes, generator=generator)
        ends = (self.margin + (1 - 2 * self.margin) * draws).unbind(dim=1)
        return _product([torch.stack((end, 1 - end), dim=1) for end in ends]).float().expand(rows, k)


class Tiles(Operation):
    """Lay 2^d samples of d axes around a point that gives the first of them about its share, in a random corner.

    The point lies so that, of images, the first and the second sample have their shares of the height, the first and
    the third of the width, and shares follow whole cells. per_sample: a point for each sample, else that of the first
    sample for the batch. x: (R, C, *spatial) with 1 to 3 spatial axes and recipes of 2, 4 and 8 samples; ValueError
    otherwise.
    """

    def __init__(self, *, per_sample: bool = False) -> None:
        self.per_sample = per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, k = spatial_size(x, recipe, two=False), recipe.share.shape[1]
        axes = len(size)
        if k != 2**axes:
            raise ValueError(
                f"a mosaic of inputs with {axes} spatial axes joins {2**axes} samples, got k = {k}; use "
                f"RandomPairing({2**axes})"
            )
        partner, share = recipe.partner.to(x.device), recipe.share.to(x.device)
        share = (share if self.per_sample else share[:1]).view(-1, *[2] * axes)
        tile, mask, cells, parts = torch.zeros((), dtype=torch.long, device=x.device), None, list[Tensor](), []
        for axis, side in enumerate(size):
            first = share.select(axis + 1, 0).reshape(len(share), -1).sum(dim=1)
            shown, cell = _split(first, side, context.generator)
            along = [-1, *(side if a == axis else 1 for a in range(axes))]
            tile = 2 * tile + (~shown).long().view(along)
            mask = shown.view(along) if mask is None else mask & shown.view(along)
            cells.append(cell.view(along))
            kept = shown.float().mean(dim=1)
            parts.append(torch.stack((kept, 1.0 - kept), dim=1))
        assert mask is not None
        image = partner.gather(1, tile.expand(len(partner), *size).flatten(1)).view(-1, *size)
        moved = partial(tiled, image=image, cells=cells)
        applied = recipe.with_share(_product(parts).expand(len(partner), k), mask.float().unsqueeze(1), moved)
        return moved(x)[0].contiguous(memory_format=_format(x)), applied


def tiled(x: Tensor, image: Tensor, cells: list[Tensor]) -> tuple[Tensor]:
    """Of x (R, C, *spatial), in every place of (B, *spatial) the cell `cells` of `image`, as (B, C, *spatial)."""
    place = image
    for cell, side in zip(cells, x.shape[2:], strict=True):
        place = place * side + cell
    by_channel = x.transpose(0, 1).reshape(x.shape[1], -1)  # faster than one index for each axis
    return (by_channel.index_select(1, place.flatten()).view(-1, *image.shape).transpose(0, 1),)


def _product(ends: list[Tensor]) -> Tensor:
    """(G, 2^d) the products of one of each of d pairs (G, 2), those of the last pair beside each other."""
    return functools.reduce(lambda a, b: (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1), ends)


def _split(share: Tensor, side: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """For an axis that shows `share` (G,) of the first sample, at a random end of it.

    (G, side) where it shows, and which cell of its sample every place shows, so that corners lie where samples meet.
    """
    count = (share.double() * side).round().long().unsqueeze(1)
    first = integers(2, len(share), generator=source).bool().unsqueeze(1).to(share.device)
    meet = torch.where(first, count, side - count)
    place = torch.arange(side, device=share.device)
    return (place < meet) == first, (place - meet).remainder(side)


def _format(x: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format


def mosaic(
    x: Tensor,
    y: Tensor,
    margin: float = 0.0,
    *,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = mosaic(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y: see `cutmix`. margin: in [0, .5], how far from the
    border the images meet at least, in sides. per_sample: a meeting point for each sample instead of one for the batch.
    partner: of images (B, 3) rows in place of three random permutations, of signals (B, 1), of volumes (B, 7).
    ValueError for other inputs or arguments out of range.
    """
    pairing = RandomPairing(2 ** max(1, x.ndim - 2))
    tiles, corners = Tiles(per_sample=per_sample), Corners(margin, per_sample=per_sample)
    return mix_once(x, y, pairing, corners, tiles, None, partner, generator)


@register(
    "mosaic",
    paper="YOLOv4: Optimal Speed and Accuracy of Object Detection, 2020, arXiv 2004.10934",
    inputs=("image",),
    search={"margin": Choice(0.0, 0.25), "probability": Choice(0.5, 1.0)},
)
class Mosaic(Mix):
    """Put four images into the quarters around a random point and mix the labels by area.

    margin, per_sample: see `mosaic`. axes: of the inputs, 2 for images, 1 for signals, 3 for volumes. probability: the
    share of steps that mix.
    """

    def __init__(
        self, margin: float = 0.0, *, axes: int = 2, per_sample: bool = False, probability: float = 1.0
    ) -> None:
        pairing = RandomPairing(2 ** at_least("axes", axes, 1))
        ratio, tiles = Corners(margin, per_sample=per_sample), Tiles(per_sample=per_sample)
        super().__init__(pairing, ratio, tiles, probability=probability)
