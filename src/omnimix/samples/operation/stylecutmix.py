"""StyleCutMix: paste a box of a partner, and give both sides of its edge some of the other image's style.

    x~ = m (s x1 + (1 - s) x12) + (1 - m) ((1 - s) x2 + s x21),   x12 = g x1 + (1 - g) decoder(h12)
    y~ = l y1 + (1 - l) y2,   l = r c + (1 - r) (g c + (1 - g) s),   c = mean(m),   s ~ Beta(alpha, alpha)

m: the mask of CutMix; h12: the map h1 with the channel means and deviations of h2 (AdaIN); g ~ Beta(.8, .8), or
tanh(d(y1, y2) / delta), d the distance of the styles of the two classes: alike styles are exchanged, unlike ones kept.
Source: Hong, Choi, Kim, "StyleMix: Separating Content and Style for Enhanced Data Augmentation", CVPR 2021. Cost: 1,
and the passes of encoder and decoder. Without those two, colours and contrast of pixels are the style.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.channels import adain
from ...core.checks import positive
from ...core.method import Mix
from ...core.operation import Context, spatial_size
from ...core.pairing import RandomPairing
from ...core.ratio import Beta, Ratio
from ...core.recipe import Recipe, one_hot, rowwise
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import evaluating
from ...core.tree import Tree
from .cutmix import CutBox
from .stylemix import ContentStyle


def style_distances(x: Tensor, y: Tensor, classes: int, encoder: nn.Module | None = None) -> Tensor:
    """(classes, classes) mean squared differences of the classes' mean style: channel means and deviations.

    x: (N, C, *spatial) or what `encoder` takes. y: class ids (N,). A class is at 2 from itself, as in the reference
    code, so that its images keep their style; classes without samples are at 2 from all.
    """
    with ExitStack() as stack:
        if encoder is not None:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(encoder))
            x = encoder(x)
    var, mean = torch.var_mean(x.float(), dim=tuple(range(2, x.ndim)))
    member = one_hot(y, classes)
    style = member.T @ torch.cat((mean, var.sqrt()), dim=1) / member.sum(dim=0).clamp(min=1).unsqueeze(1)
    found = torch.cdist(style, style, compute_mode="donot_use_mm_for_euclid_dist").square() / style.shape[1]
    empty = member.sum(dim=0) == 0
    found.fill_diagonal_(2.0)
    return found.masked_fill(empty.unsqueeze(0) | empty.unsqueeze(1), 2.0)


class StyleBox(ContentStyle):
    """Show the partner in a box, and mix the styles of both; labels follow the box and the styles.

    style: draws s. blend: draws g; or distances: (classes, classes) of class styles, of which g follows for targets of
    class ids, and delta > 0. per_sample: a box for each sample. The others: see `ContentStyle`.
    """

    def __init__(
        self,
        style: Ratio,
        blend: Ratio,
        distances: Tensor | None = None,
        delta: float = 3.0,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        content_weight: float = 0.7,
        side: int | None = None,
        per_sample: bool = False,
    ) -> None:
        super().__init__(style, encoder, decoder, content_weight, side)
        if distances is not None and (distances.ndim != 2 or distances.shape[0] != distances.shape[1]):
            raise ValueError(f"distances must be (classes, classes), got {tuple(distances.shape)}")
        self.blend, self.distances, self.delta = blend, distances, positive("delta", delta)
        self.box = CutBox(per_sample=per_sample)

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, count = spatial_size(x, recipe), len(recipe.partner)
        partner = recipe.partner[:, 1].to(x.device)
        s = self.style(count, 2, context.generator)[:, 0].to(x.device)
        g = self._kept(recipe, context).to(x.device)
        with ExitStack() as stack:
            encode, decode = (self._frozen(part, x, stack) for part in (self.encoder, self.decoder))
            h = encode(self._resized(x.float(), [self.side] * len(size) if self.side else size))
            exchanged = torch.cat((adain(h[:count], h[partner]), adain(h[partner], h[:count])))
            restyled = self._resized(decode(exchanged), size).to(x.dtype)
        keep = torch.cat((s + (1.0 - s) * g, 1.0 - s + s * g)).to(x.dtype)  # what each image shows of its own style
        pair = torch.cat((x[:count], x[partner]))
        both = torch.lerp(restyled, pair, rowwise(keep, pair))
        rows = torch.arange(2 * count, device=x.device).view(2, count).T
        mixed, applied = self.box(both, replace(recipe, partner=rows), context)
        content = applied.share[:, 0].to(x.device)
        share = self.content_weight * content + (1.0 - self.content_weight) * (g * content + (1.0 - g) * s)
        applied = replace(applied, partner=recipe.partner, label_share=torch.stack((share, 1.0 - share), dim=1))
        return mixed, applied

    def _kept(self, recipe: Recipe, context: Context) -> Tensor:
        """(B,) g, how much of its own style an image keeps where it meets the other's."""
        if self.distances is None:
            return self.blend(len(recipe.partner), 2, context.generator)[:, 0]
        if context.y is None or context.y.ndim != 1 or context.y.is_floating_point():
            raise ValueError("distances of class styles need targets of class ids (B,); leave them out for others")
        own, guest = context.y.long()[recipe.partner[:, :2]].unbind(dim=1)
        return torch.tanh(self.distances.to(own.device)[own, guest] / self.delta)


@register(
    "stylecutmix",
    paper="StyleMix: Separating Content and Style for Enhanced Data Augmentation, CVPR 2021",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "content_weight": Uniform(0.3, 1.0), "probability": Uniform(0.1, 1.0)},
)
class StyleCutMix(Mix):
    """Paste a box of a partner, mix the styles on both sides, and the labels by box and style.

    alpha: Beta(alpha, alpha) of box and style. blend: Beta(blend, blend) of g; distances, delta: see `StyleBox` and
    `style_distances` (the paper: delta 3 on CIFAR-100, 1 on CIFAR-10). per_sample: a share, a style and a box for each
    sample. content_weight, encoder, decoder, side: see `ContentStyle`. probability: the share of steps that mix.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        blend: float = 0.8,
        content_weight: float = 0.7,
        probability: float = 0.5,
        *,
        distances: Tensor | None = None,
        delta: float = 3.0,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        side: int | None = None,
        per_sample: bool = False,
    ) -> None:
        ratio = Beta(alpha, per_sample=per_sample)
        operation = StyleBox(
            ratio,
            Beta(blend, per_sample=per_sample),
            distances,
            delta,
            encoder=encoder,
            decoder=decoder,
            content_weight=content_weight,
            side=side,
            per_sample=per_sample,
        )
        super().__init__(RandomPairing(), ratio, operation, probability=probability)
        self.operation: StyleBox

    def apply(self, x: Any, recipe: Recipe, y: Tensor | None = None) -> tuple[Any, Recipe]:
        self.operation.style = self.ratio  # box and style have one law
        return super().apply(x, recipe, y)
