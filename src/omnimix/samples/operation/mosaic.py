"""Mosaic: four images meet at a random point, each in one quarter, and share the label by area.

    the images meet at (h, w), h and w ~ U(0, 1) in sides; shares h w, h (1 - w), (1 - h) w, (1 - h) (1 - w);
    each image lies with a corner at the meeting point, and what hangs over the border is cut

Source: Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020, arXiv 2004.10934; with
labels by area as in Takahashi, Matsubara, Uehara, "Data Augmentation using Random Image Cropping and Patching" (RICAP),
2018, arXiv 1811.09030. Cost: 1. The crop of the canvas of twice the side to its middle, without the random affine map
and the boxes of detection.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...core.method import Mix
from ...core.operation import Context, Operation, require_float
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers, uniform
from ...core.ratio import Ratio
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Choice
from ...core.tree import Tree


class Quarters(Ratio):
    """(h w, h (1 - w), (1 - h) w, (1 - h) (1 - w)), h and w uniform in [margin, 1 - margin], for the batch or a sample.

    margin: in [0, .5]. per_sample: one draw a sample. For K = 4 only; ValueError otherwise.
    """

    def __init__(self, margin: float = 0.0, *, per_sample: bool = False) -> None:
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin must be a number in [0, 0.5], got {margin!r}")
        self.margin, self.per_sample = margin, per_sample

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        if k != 4:
            raise ValueError(f"a mosaic is made of 4 samples, not of k = {k}: use RandomPairing(4)")
        draws = uniform(rows if self.per_sample else 1, 2, generator=generator)
        h, w = (self.margin + (1 - 2 * self.margin) * draws).unbind(dim=1)
        share = torch.stack((h * w, h * (1 - w), (1 - h) * w, (1 - h) * (1 - w)), dim=1)
        return share.float().expand(rows, 4)


class FourTiles(Operation):
    """Lay four samples around a point that gives the first of them about its share, in a random corner.

    The point lies so that the first and the second sample have their shares of the height, the first and the third of
    the width, and shares follow whole cells. per_sample: a point for each sample, else that of the first sample for the
    batch. x: (R, C, H, W) and recipes of four samples; ValueError otherwise.
    """

    def __init__(self, *, per_sample: bool = False) -> None:
        self.per_sample = per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        if not isinstance(x, Tensor) or x.ndim != 4 or recipe.share.shape[1] != 4:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"a mosaic needs images (B, C, H, W) and 4 samples in one, got {got} and k = {recipe.share.shape[1]}; "
                "use RandomPairing(4)"
            )
        require_float(x)
        height, width = x.shape[2:]
        partner, share = recipe.partner.to(x.device), recipe.share.to(x.device)
        share = share if self.per_sample else share[:1]
        tall, row = _split(share[:, 0] + share[:, 1], height, context.generator)
        wide, column = _split(share[:, 0] + share[:, 2], width, context.generator)
        tile = 2 * (~tall).long().unsqueeze(2) + (~wide).long().unsqueeze(1)
        tile = tile.expand(len(partner), height, width)
        image = partner.gather(1, tile.flatten(1)).view_as(tile)
        moved = partial(tiled, image=image, row=row.unsqueeze(2), column=column.unsqueeze(1))
        h, w = tall.float().mean(dim=1), wide.float().mean(dim=1)
        applied = torch.stack((h * w, h * (1 - w), (1 - h) * w, (1 - h) * (1 - w)), dim=1).expand(len(partner), 4)
        mask = (tall.unsqueeze(2) & wide.unsqueeze(1)).float().unsqueeze(1)
        return moved(x)[0].contiguous(memory_format=_format(x)), recipe.with_share(applied, mask, moved)


def tiled(x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor]:
    """Of x (R, C, H, W), in every place of (B, H, W) the cell `row`, `column` of `image`, as (B, C, H, W)."""
    return (x[image, :, row, column].movedim(-1, 1),)


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
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


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

    x: float tensor (B, C, H, W). y: see `cutmix`. margin: in [0, .5], how far from the border the images meet at least,
    in sides. per_sample: a meeting point for each sample instead of one for the batch. partner: (B, 3) rows in place of
    three random permutations. ValueError for other inputs or arguments out of range.
    """
    tiles = FourTiles(per_sample=per_sample)
    return mix_once(x, y, RandomPairing(4), Quarters(margin, per_sample=per_sample), tiles, None, partner, generator)


@register(
    "mosaic",
    paper="YOLOv4: Optimal Speed and Accuracy of Object Detection, 2020, arXiv 2004.10934",
    inputs=("image",),
    search={"margin": Choice(0.0, 0.25), "probability": Choice(0.5, 1.0)},
)
class Mosaic(Mix):
    """Put four images into the quarters around a random point and mix the labels by area.

    margin, per_sample: see `mosaic`. probability: the share of steps that mix.
    """

    def __init__(self, margin: float = 0.0, *, per_sample: bool = False, probability: float = 1.0) -> None:
        ratio, tiles = Quarters(margin, per_sample=per_sample), FourTiles(per_sample=per_sample)
        super().__init__(RandomPairing(4), ratio, tiles, probability=probability)
