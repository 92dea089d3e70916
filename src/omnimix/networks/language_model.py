"""A small decoder-only transformer: pre-norm blocks, rotary positions, tied embeddings; what proxy runs train.

    h <- h + Attention(LN(h)),   h <- h + W2 GELU(W1 LN(h)),   logits = LN(h) E^T,   E the table of embeddings

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (pre-norm blocks, initial weights);
Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864. Cost: 6 N multiplications
and additions a token of training, N = `LanguageModel.size`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import at_least, in_unit

IGNORED = -100
"""The target of a position that is not to be predicted (padding)."""


class LanguageModel(nn.Module):
    """Token ids (B, T) to logits (B, T, vocabulary) of the next ones.

    head: the output projection, whose weight is that of the embedding where `tied`. dropout: of the residual branches.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        expand: int = 4,
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("layers", layers), ("heads", heads), ("expand", expand)):
            at_least(name, value, 1)
        at_least("vocabulary", vocabulary, 2)
        in_unit("dropout", dropout)
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * heads} (rotary positions), got {width}")
        self.head_size = width // heads
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, expand, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
        if tied:
            self.head.weight = self.embed.weight

    @property
    def size(self) -> int:
        """Weights that take part in a multiplication for every token: all but a table of embeddings of its own."""
        total = sum(p.numel() for p in self.parameters())
        return total if self.head.weight is self.embed.weight else total - self.embed.weight.numel()

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T, width): what `head` maps to logits."""
        h = self.embed(tokens)
        cosine, sine = rotation(tokens.shape[1], self.head_size, h)
        for block in self.blocks:
            h = block(h, cosine, sine)
        out: Tensor = self.norm(h)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(tokens))
        return out


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T) float32 cross-entropies in nats of the targets (B, T); 0 where the target is `IGNORED`."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)


class Block(nn.Module):
    """Attention and a two-layer network, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, expand * width), nn.Linear(expand * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        h = h + self.drop(self.attention(self.norm1(h), cosine, sine))
        inner = F.gelu(self.up(self.norm2(h)), approximate="tanh")
        out: Tensor = h + self.drop(self.down(inner))
        return out


class Attention(nn.Module):
    """Causal attention whose queries and keys are rotated by their positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, width = h.shape
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def rotation(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, size / 2) of the angles of every position, on the device and in the type of `like`."""
    rates = 10_000.0 ** (-torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size)
    angle = torch.outer(torch.arange(length, device=like.device, dtype=torch.float32), rates)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + size/2}) of x (..., T, size) by the angles (T, size / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1)
