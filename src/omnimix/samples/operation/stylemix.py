"""StyleMix: mix the content of two images in one ratio and their style, channel means and deviations, in another.

    x~ = decoder(t h1 + (1 - c - s + t) h2 + (c - t) h12 + (s - t) h21),   t ~ U(max(0, c + s - 1), min(c, s))
    y~ = l y1 + (1 - l) y2,   l = r c + (1 - r) s,   c, s ~ Beta(alpha, alpha)

h = encoder(x); h12: h1 with the channel means and deviations of h2 (AdaIN).
Source: Hong, Choi, Kim, "StyleMix: Separating Content and Style for Enhanced Data Augmentation", CVPR 2021; AdaIN:
Huang, Belongie, ICCV 2017, arXiv 1703.06868. Cost: 1, and the passes of encoder and decoder. The paper's are a VGG up
to relu4_1 and the decoder trained for it, at 224 x 224; without them colours and contrast of pixels are the style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.channels import adain
from ...core.checks import at_least, in_unit
from ...core.method import Mix
from ...core.operation import Context, Operation, spatial_size
from ...core.pairing import RandomPairing
from ...core.random import uniform
from ...core.ratio import Beta, Ratio
from ...core.recipe import Recipe, rowwise
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import evaluating
from ...core.tree import Tree


class ContentStyle(Operation):
    """Mix content by the recipe's share and style by a share of its own; labels follow both.

    style: draws the shares of style. encoder, decoder: frozen networks from images to maps (B, C, *spatial) and back;
    both None: the pixels themselves. content_weight in [0, 1]: r, of the content in the label. side: images are resized
    to side x side for the encoder, and back. x: (R, C, *spatial) with more than one cell; ValueError for other inputs.
    """

    labels_follow = False

    def __init__(
        self,
        style: Ratio,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        content_weight: float = 0.7,
        side: int | None = None,
    ) -> None:
        if (encoder is None) != (decoder is None):
            raise ValueError("encoder and decoder belong together: give both networks, or neither to mix pixels")
        self.style, self.encoder, self.decoder = style, encoder, decoder
        self.content_weight = in_unit("content_weight", content_weight)
        self.side = None if side is None else at_least("side", side, 1)

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, count = spatial_size(x, recipe), len(recipe.partner)
        c = recipe.lam.to(x.device)
        s = self.style(count, 2, context.generator)[:, 0].to(x.device)
        low, high = (c + s - 1.0).clamp(min=0), torch.minimum(c, s)
        t = low + (high - low) * uniform(1, generator=context.generator).to(x.device, c.dtype)
        with ExitStack() as stack:
            encode, decode = (self._frozen(part, x, stack) for part in (self.encoder, self.decoder))
            h = encode(self._resized(x.float(), [self.side] * len(size) if self.side else size))
            own, guest = h[:count], h[recipe.partner[:, 1].to(x.device)]
            parts = (own, guest, adain(own, guest), adain(guest, own))
            weights = (t, 1.0 - c - s + t, c - t, s - t)
            mixed = sum(rowwise(weight, h) * part for weight, part in zip(weights, parts, strict=True))
            mixed = self._resized(decode(mixed), size).to(x.dtype)
        share = self.content_weight * c + (1.0 - self.content_weight) * s
        return mixed, recipe.with_share(torch.stack((share, 1.0 - share), dim=1))

    @staticmethod
    def _frozen(part: nn.Module | None, x: Tensor, stack: ExitStack) -> Callable[[Any], Tensor]:
        if part is None:
            return lambda h: h
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(part))
        return part.to(x.device)

    @staticmethod
    def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
        if x.shape[2:] == tuple(size):
            return x
        mode = ("linear", "bilinear", "trilinear")[x.ndim - 3]
        return F.interpolate(x, list(size), mode=mode, align_corners=False)


@register(
    "stylemix",
    paper="StyleMix: Separating Content and Style for Enhanced Data Augmentation, CVPR 2021",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "content_weight": Uniform(0.3, 1.0), "probability": Uniform(0.1, 1.0)},
)
class StyleMix(Mix):
    """Mix content and style of image pairs in two ratios, and the labels by both.

    alpha: Beta(alpha, alpha) of both ratios. content_weight, encoder, decoder, side: see `ContentStyle`. probability:
    the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        content_weight: float = 0.7,
        probability: float = 0.2,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        side: int | None = None,
    ) -> None:
        operation = ContentStyle(Beta(alpha), encoder, decoder, content_weight, side)
        super().__init__(RandomPairing(), Beta(alpha), operation, probability=probability)
        self.operation: ContentStyle

    def apply(self, x: Any, recipe: Recipe, y: Tensor | None = None) -> tuple[Any, Recipe]:
        self.operation.style = self.ratio  # both ratios have one law
        return super().apply(x, recipe, y)
