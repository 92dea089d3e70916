"""Digits (or clothes) whose domains are made: turned, coloured, or of another contrast; one draw for all runs.

    rotated    the image turned by 0, 15, ..., 75 degrees; 1 channel
    coloured   y = [digit < 5], flipped with probability 1/4; the image lies in channel c, with c = y with probability
               0.9, 0.8 and 0.1 by domain; 2 channels
    styled     x g + b with (g, b) = (1, 0), (.7, .2), (.5, .1), (.15, .8), (3, 2); 14 x 14

Each image is in one domain, dealt by a generator of its own seed, so that images, colours and noise are the same for
every method, trial and draw; DomainBed makes them anew from the seed of each run. Sources: Ghifary et al., "Domain
Generalization for Object Recognition with Multi-task Autoencoders", ICCV 2015, arXiv 1508.07680; Arjovsky et al.,
"Invariant Risk Minimization", arXiv 1907.02893; both with the domains of DomainBed (Gulrajani, Lopez-Paz, ICLR 2021,
arXiv 2007.01434). The styles are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.random import permutation
from ..core.task import Classification
from .idx import load_idx
from .noise import colour_digits
from .source import DataError, Source

ANGLES = (0, 15, 30, 45, 60, 75)
AGREEMENT = {"+90%": 0.9, "+80%": 0.8, "-90%": 0.1}
"""How often colour and label agree, by domain."""
FLIPPED = 0.25
STYLES = {
    "1x": (1.0, 0.0),
    "0.7x+0.2": (0.7, 0.2),
    "0.5x+0.1": (0.5, 0.1),
    "0.15x+0.8": (0.15, 0.8),
    "3x+2": (3.0, 2.0),
}
"""Gain and offset by domain. The fourth is crushed: its contrast is 0.15."""
CHUNK = 8192


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Images x (N, C, H, W) in [0, 1], turned counter-clockwise about their centres; bilinear, 0 outside."""
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    height, width = x.shape[-2:]
    where = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], dtype=x.dtype)
    grid = F.affine_grid(where.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotated(root: Path, data_seed: int = 0) -> Source:
    """The images of the IDX files in `root`, a domain an angle; uint8 (N, 1, H, W)."""
    source, order, domain = _dealt(root, data_seed, len(ANGLES))
    x = torch.empty(len(order), *source.input_shape, dtype=torch.uint8)
    for angle_id, angle in enumerate(ANGLES):
        for rows in torch.split(torch.nonzero(domain == angle_id).flatten(), CHUNK):
            pixels = source.take(order[rows])
            x[rows] = (rotate(pixels, angle) if angle else pixels).mul(255).round().to(torch.uint8)
    return _made("rotated", source, x, source.y[order], domain, [str(angle) for angle in ANGLES], source.class_names)


def coloured(root: Path, data_seed: int = 0) -> Source:
    """The images of the IDX files in `root` in one of two colours, two classes; uint8 (N, 2, H, W)."""
    source, order, domain = _dealt(root, data_seed, len(AGREEMENT))
    if len(source.class_names) != 10:
        raise DataError(f"{root}: colours are tied to labels 0 to 9 in two halves; there are {len(source.class_names)}")
    generator = torch.Generator().manual_seed(data_seed + 1)
    agreement = torch.tensor(list(AGREEMENT.values()))[domain]
    images = source.take(order)[:, 0].mul(255).round().to(torch.uint8)
    made = colour_digits(images, source.y[order], FLIPPED, agreement, generator)
    return _made("coloured", source, made.x, made.y, domain, list(AGREEMENT), ("5-9", "0-4"))


def styled(root: Path, data_seed: int = 0) -> Source:
    """The images of the IDX files in `root`, averaged to 14 x 14, a domain a contrast; float32, > 1 for 3x+2."""
    source, order, domain = _dealt(root, data_seed, len(STYLES))
    small = torch.cat([F.adaptive_avg_pool2d(source.take(rows), 14) for rows in torch.split(order, CHUNK)])
    gain, offset = torch.tensor(list(STYLES.values()))[domain].view(-1, 2, 1, 1, 1).unbind(1)
    x = gain * small + offset
    return _made("styled", source, x, source.y[order], domain, list(STYLES), source.class_names)


def _dealt(root: Path, data_seed: int, domains: int) -> tuple[Source, Tensor, Tensor]:
    """(the images, an order of all of them, the domain (N,) of each in that order)."""
    source = load_idx(root)
    order = permutation(len(source), torch.Generator().manual_seed(data_seed))
    return source, order, torch.arange(len(source)) % domains


def _made(
    what: str, source: Source, x: Tensor, y: Tensor, domain: Tensor, domains: Sequence[str], classes: Sequence[str]
) -> Source:
    name = f"{what}-{source.name}"
    return Source(
        name, x, y, Classification(len(classes)), "image", domain, tuple(domains), tuple(classes),
        target_names=("class",),
    )  # fmt: skip
