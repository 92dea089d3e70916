"""Random crops and horizontal flips, the usual augmentation of small images, for a whole batch at once.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385 (CIFAR experiments).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..core.checks import at_least, one_of
from ..core.random import integers


def crop_and_flip(
    x: Tensor,
    generator: torch.Generator,
    padding: int = 4,
    fill: Literal["reflect", "zero"] = "reflect",
    flip: bool = True,
) -> Tensor:
    """Each image padded by `padding` pixels, cropped to its size at a random place and flipped with probability 1/2.

    x: (B, C, H, W), any type. fill: what lies beyond the border. flip: False leaves out the flips (digits, letters).
    ValueError if x has another shape or a reflection would need padding < min(H, W).
    """
    one_of("fill", fill, ("reflect", "zero"))
    if x.ndim != 4:
        raise ValueError(f"x must be images (B, C, H, W), got shape {tuple(x.shape)}")
    count, channels, height, width = x.shape
    if at_least("padding", padding, 0) >= min(height, width) and fill == "reflect":
        raise ValueError(f"padding must be < {min(height, width)} to reflect images of {height} x {width}")
    shift = integers(2 * padding + 1, 2, count, 1, generator=generator).to(x.device) - padding
    flipped = integers(2, count, 1, generator=generator).to(x.device)
    row = torch.arange(height, device=x.device) + shift[0]
    column = torch.arange(width, device=x.device).expand(count, width)
    if flip:
        column = torch.where(flipped == 1, width - 1 - column, column)
    column = column + shift[1]
    if fill == "reflect":
        row = (height - 1) - ((height - 1) - row.abs()).abs()
        column = (width - 1) - ((width - 1) - column.abs()).abs()
    inside = ((row >= 0) & (row < height)).unsqueeze(2) & ((column >= 0) & (column < width)).unsqueeze(1)
    place = row.clamp(0, height - 1).unsqueeze(2) * width + column.clamp(0, width - 1).unsqueeze(1)
    moved = x.flatten(2).gather(2, place.flatten(1).unsqueeze(1).expand(-1, channels, -1)).view(x.shape)
    return moved if fill == "reflect" else moved.masked_fill(~inside.unsqueeze(1), 0)
