"""A small vision transformer: patches, a class token, blocks of attention and an MLP behind their norms, a linear head.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929. About 200,000 weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import at_least


class Tokens(nn.Module):
    """(B, C, H, W) to (B, 1 + patches, width): the class token and linear maps of the patches, with their places."""

    def __init__(self, channels: int, size: Sequence[int], patch: int, width: int) -> None:
        super().__init__()
        self.size = tuple(size)
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + math.prod(size) // patch**2, width))

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"this vit takes images of {self.size} places, got x {tuple(x.shape)}")
        patches = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(len(x), -1, -1), patches), dim=1) + self.places


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        wide = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), *wide)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.mlp(x)
        return out


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ViT(nn.Sequential):
    """tokens, block1, block2, ..., norm (which gives the class token) and head.

    input_shape: (C, H, W). patch: the side of a patch, which divides H and W; None takes the divisor > 1, where there
    is one, nearest to an eighth of the shorter side. width: a multiple of heads. taps: block1 and block2.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        patch: int | None = None,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"vit needs images (C, H, W), got input_shape {input_shape}")
        size = input_shape[1:]
        patch = _patch(size) if patch is None else at_least("patch", patch, 1)
        if any(side % patch for side in size):
            raise ValueError(f"patch must divide the sides of the images {size}, got {patch}")
        if at_least("width", width, 1) % at_least("heads", heads, 1):
            raise ValueError(f"width must be a multiple of heads = {heads}, got {width}")
        layers = OrderedDict[str, nn.Module](tokens=Tokens(input_shape[0], size, patch, width))
        layers |= {f"block{i}": Block(width, heads) for i in range(1, at_least("depth", depth, 1) + 1)}
        self.taps = tuple(layers)[1:3]
        layers["norm"] = nn.Sequential(nn.LayerNorm(width), First())
        super().__init__(layers | {"head": nn.Linear(width, outputs)})


def _patch(size: Sequence[int]) -> int:
    common = math.gcd(*size)
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    return min(divisors[1:] or divisors, key=lambda d: abs(math.log(8 * d / min(size))))
