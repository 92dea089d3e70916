"""Mix-LN: transformers that normalise after the sum in the first quarter of the layers and before the sublayers later.

    post: h <- N(h + f(h))      pre: h <- h + f(N h)      f: attention, then the feed-forward network
    layers 1 .. floor(alpha L) post, the others pre

Pre-LN starves the deep layers of gradient, Post-LN the early ones; see `depth` for the diagnostics. Source: Li, Yin,
Liu, "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN", ICLR 2025, arXiv:2412.13795. Cost:
1 and no weights more. Also here, for comparison: sandwich, h <- h + N'(f(N h)) (Ding et al., 2021, arXiv:2105.13290),
and DeepNorm, h <- N((2L)^(1/4) h + f(h)) with initial weights smaller by (8L)^(-1/4) (Wang et al., 2022,
arXiv:2203.00555); the code of Mix-LN has the scale of 32 layers at every depth and the inverse of that gain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...core.checks import at_least, in_unit, one_of
from ...networks.language_model import Attention, LanguageModel, rotation

Placement: TypeAlias = Literal["pre", "post", "sandwich", "deep"]
NORMS = {"pre": 2, "post": 2, "sandwich": 4, "deep": 2}
"""The placements, and how many norms a block has."""


def placements(
    layers: int, alpha: float = 0.25, *, early: Placement = "post", late: Placement = "pre"
) -> list[Placement]:
    """`early` for the first floor(alpha layers) layers, then `late`. Warns where a positive alpha reaches no layer."""
    at_least("layers", layers, 1)
    first = math.floor(in_unit("alpha", alpha) * layers + 1e-9)
    if alpha > 0 and first == 0:
        warnings.warn(f"alpha={alpha} of {layers} layers is less than one: all are {late!r}", stacklevel=2)
    for name, value in (("early", early), ("late", late)):
        one_of(name, value, tuple(NORMS))
    return [early] * first + [late] * (layers - first)


class NormBlock(nn.Module):
    """A transformer layer whose norms sit where `placement` says; parameters are named after it, so that weights of
    another placement do not load.

    attention: called with the stream and what else `forward` is given; feed: with the stream. Both return a tensor in
    its shape. norm: makes a norm. layers: of the whole network, for "deep". Where norms have weights in half precision,
    sublayers compute in it; sums and norms are made in float32, and the stream goes out in the type it came in: give
    it in float32 to keep it so from layer to layer.
    """

    def __init__(
        self, placement: Placement, attention: nn.Module, feed: nn.Module, norm: Callable[[], nn.Module], layers: int
    ) -> None:
        super().__init__()
        self.placement = one_of("placement", placement, tuple(NORMS))
        self.attention, self.feed = attention, feed
        self.norms = nn.ModuleDict({placement: nn.ModuleList(norm() for _ in range(NORMS[placement]))})
        self.scale = (2 * at_least("layers", layers, 1)) ** 0.25 if placement == "deep" else 1.0

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first, second, *outer = cast(nn.ModuleList, self.norms[self.placement])
        given = h.dtype
        inner = next((p.dtype for p in first.parameters()), given)  # of the sublayers
        h = h.to(full(given))
        if self.placement in ("pre", "sandwich"):
            after_attention, after_feed = outer or (nn.Identity(), nn.Identity())
            h = h + normed(after_attention, self.attention(normed(first, h).to(inner), *args, **kwargs))
            h = h + normed(after_feed, self.feed(normed(second, h).to(inner)))
            return h.to(given)
        h = normed(first, self.scale * h + self.attention(h.to(inner), *args, **kwargs))
        h = normed(second, self.scale * h + self.feed(h.to(inner)))
        return h.to(given)


def full(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, others as they are."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def normed(norm: nn.Module, h: Tensor) -> Tensor:
    """The norm of h, in float32 where either is in half precision."""
    weights = dict(norm.named_parameters())
    if all(weight.dtype == full(weight.dtype) for weight in weights.values()) and h.dtype == full(h.dtype):
        out: Tensor = norm(h)
        return out
    wide = {name: weight.to(full(weight.dtype)) for name, weight in weights.items()}
    out = functional_call(norm, wide, (h.to(full(h.dtype)),))
    return out


class SwiGLU(nn.Module):
    """W_down (silu(W_gate h) * W_up h), without biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class MixLanguageModel(LanguageModel):
    """A language model as in the paper: rotary attention, SwiGLU, RMS norms, no biases, untied head.

    placement: one a layer, such as `placements(layers)`. inner: width of the feed-forward network, default 8/3 of
    `width`, rounded. Linear weights start from N(0, 0.02^2) and embeddings with standard deviation (2/5)^(1/2): with
    0.02 the first Post-LN layers swamp them. "deep" layers start as DeepNorm says. ValueError for other placements.
    """

    def __init__(
        self,
        vocabulary: int,
        placement: Sequence[Placement],
        *,
        width: int = 64,
        heads: int = 4,
        inner: int | None = None,
    ) -> None:
        layers = at_least("number of placements", len(placement), 1)
        super().__init__(vocabulary, width=width, layers=layers, heads=heads, tied=False)
        inner = round(8 * width / 3) if inner is None else at_least("inner", inner, 1)
        self.norm = _norm(width)  # type: ignore[assignment]
        self.blocks = nn.ModuleList(_block(each, width, heads, inner, layers) for each in placement)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and not name.startswith("blocks."):
                nn.init.normal_(parameter, std=math.sqrt(2 / 5) if name == "embed.weight" else 0.02)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T, width): what `head` maps to logits. The stream between the layers is in float32 at least."""
        h = self.embed(tokens)
        inner, cosine, sine = h.dtype, *rotation(tokens.shape[1], self.head_size, h)
        h = h.to(full(inner))
        for block in self.blocks:
            h = block(h, cosine, sine)
        return normed(self.norm, h).to(inner)


def _norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


def _block(placement: Placement, width: int, heads: int, inner: int, layers: int) -> NormBlock:
    attention, feed = Attention(width, heads), SwiGLU(width, inner)
    attention.qkv, attention.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
    block = NormBlock(placement, attention, feed, lambda: _norm(width), layers)
    query, key, value = attention.qkv.weight.chunk(3)
    others = [value, attention.out.weight, feed.gate.weight, feed.up.weight, feed.down.weight]
    for i, weight in enumerate((query, key, *others)):
        if placement == "deep":
            nn.init.xavier_normal_(weight, gain=1.0 if i < 2 else (8 * layers) ** -0.25)
        else:
            nn.init.normal_(weight, std=0.02)
    return block
