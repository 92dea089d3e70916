"""TokenMix: cover an image by blocks of tokens of a partner, and mix the labels by the content that is seen of each.

    x~_i = m x_i + (1 - m) x_pi(i), m = 0 in blocks of a grid of n tokens, int((1 - lam) n) + n / 14 of them, lam = 1/2
    loss = (sum_p m_p s_ip) loss(y_i) + (sum_p (1 - m_p) s_pi(i)p) loss(y_pi(i)),   s_i: content of x_i, of sum 1

A block takes a uniform number of the tokens that are still to come, with a ratio of its sides log-uniform between .3
and 1 / .3. Source: Liu, Liu, Zhou, Li, Liu, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision
Transformers", ECCV 2022, arXiv 2207.08409. Cost: 1 and the pass that finds the content. There it is a trained teacher's
score of the label, here by default the attention of the network in training. The shares need not sum to 1. The
reference smooths labels by .1, which is left to the loss, and mixes every other batch by mixup: `Choose([Mixup(0.8),
TokenMix()])`. openmixup swaps the two shares.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...core.checks import at_least, in_unit
from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import uniform
from ...core.ratio import Constant, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Uniform
from ...core.tree import Tree
from ..saliency import Attention, as_saliency, at_size, normalised
from .solver.blocks import enlarged

ASPECT = 0.3
TRIES, ROUNDS = 10, 200
"""Blocks that may fail one after the other before a mask is left as it is, and the most blocks."""


def block_masks(count: Tensor, grid: Sequence[int], generator: torch.Generator) -> Tensor:
    """(G, 1, *grid) float masks: 0 in random blocks of about count (G,) tokens in all, never more; 1 elsewhere."""
    # Every block depends on those before: many small operations, which take a third of the time in numpy.
    axes, sides, left = len(grid), np.array(grid), count.numpy(force=True).astype(np.int64)
    draws = uniform(ROUNDS, 2 * axes, len(left), generator=generator).numpy(force=True)
    covered, failed = np.zeros((len(left), *grid), dtype=bool), np.zeros_like(left)
    bent = np.zeros((ROUNDS, axes, len(left)))
    bent[:, :-1] = (1.0 - 2.0 * draws[:, 1:axes]) * math.log(ASPECT)
    ratio = np.exp(bent - bent.mean(axis=1, keepdims=True))
    cells = [np.arange(side) for side in grid]
    for draw, shape in zip(draws, ratio, strict=True):
        active = (left > 0) & (failed < TRIES)
        if not active.any():
            break
        area = 1.0 + draw[0] * np.maximum(left - 1, 0)
        extent = np.rint(area ** (1.0 / axes) * shape).astype(np.int64).T
        low = (draw[axes:].T * (sides - extent + 1)).astype(np.int64)
        inside = [
            ((cell >= low[:, axis, None]) & (cell < (low + extent)[:, axis, None])).reshape(
                -1, *(len(cell) if a == axis else 1 for a in range(axes))
            )
            for axis, cell in enumerate(cells)
        ]
        block = functools.reduce(np.logical_and, inside)
        new = (block & ~covered).reshape(len(left), -1).sum(axis=1)
        fits = active & (extent < sides).all(axis=1) & (new > 0) & (new <= left)
        covered |= block & fits.reshape(-1, *[1] * axes)
        left, failed = left - new * fits, np.where(fits, 0, failed + 1)
    return torch.from_numpy(~covered).float().unsqueeze(1)


class TokenBlocks(Operation):
    """Show the partner in blocks of tokens; label shares are what of each one's content is seen.

    saliency: how to find the content, or the maps of all rows; None is `Attention()`. tokens: of the grid along each
    axis, a number or one for each; None takes the grid of the content. extra in [0, 1]: the share of the tokens that
    the partner gets beyond its own, unless that is 0. per_sample: blocks for each sample, else those of the first for
    the batch. x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError for other inputs.
    """

    labels_follow = False

    def __init__(
        self,
        saliency: Saliency | Tensor | None = None,
        *,
        tokens: int | Sequence[int] | None = None,
        extra: float = 1 / 14,
        per_sample: bool = False,
    ) -> None:
        self.saliency = Attention() if saliency is None else as_saliency(saliency)
        self.needs, self.per_sample, self.extra = self.saliency.needs, per_sample, in_unit("extra", extra)
        several = [tokens] if isinstance(tokens, int) else list(tokens or ())
        self.tokens = [at_least("tokens", number, 1) for number in several]

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam if self.per_sample else recipe.lam[:1]
        content = self.saliency(x, context)
        grid = self._grid(content, size)
        content = normalised(at_size(content, grid))
        n = math.prod(grid)
        count = ((1.0 - lam.double()) * n + 1e-5).long() + int(self.extra * n + 1e-5) * (lam < 1)
        tokens = block_masks(count.clamp(max=n), grid, context.generator).to(x.device)
        own = (content[: len(partner)] * tokens).flatten(1).sum(dim=1)
        guest = (content[partner] * (1.0 - tokens)).flatten(1).sum(dim=1)
        mask, kept = enlarged(tokens, size)
        share = complete(kept.expand(-1, 2)).expand(len(partner), 2)
        applied = recipe.with_share(share, mask)
        return blend(x, partner, mask.to(x.dtype)), replace(applied, label_share=torch.stack((own, guest), dim=1))

    def _grid(self, content: Tensor, size: Sequence[int]) -> tuple[int, ...]:
        if not self.tokens:
            return tuple(content.shape[2:])
        grid = tuple(self.tokens * len(size) if len(self.tokens) == 1 else self.tokens)
        if len(grid) != len(size) or any(n > side for n, side in zip(grid, size, strict=True)):
            raise ValueError(f"tokens must be at most one for each of the places {size}, got {grid}")
        return grid


def tokenmix(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    lam: float | Tensor = 0.5,
    *,
    tokens: int | Sequence[int] | None = None,
    extra: float = 1 / 14,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = tokenmix(x, y, attention(model, x))`, then `mixed.loss(...)`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. saliency: the content, maps (B, 1, *grid) or an omnimix
    Saliency that needs no network. lam: a number or (B,) values in [0, 1], the share of tokens to keep, before `extra`.
    tokens, extra, per_sample: see `TokenBlocks`. y, partner: see `cutmix`. The label shares are
    `mixed.recipe.label_share`. ValueError for tables, integer x or arguments out of range.
    """
    per_sample = per_sample or (isinstance(lam, Tensor) and lam.numel() > 1)
    operation = TokenBlocks(saliency, tokens=tokens, extra=extra, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), Constant(), operation, lam, partner, generator)


@register(
    "tokenmix",
    paper="TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers, ECCV 2022, arXiv 2207.08409",
    tasks=("classification", "multilabel"),
    cost=1.33,
    inputs=("image",),
    network="attention",
    search={"lam": Uniform(0.3, 0.8)},
)
class TokenMix(Mix):
    """Cover each image by blocks of tokens of a partner and weigh the labels by the content that is seen.

    lam in [0, 1]: the share of tokens to keep, before `extra`. saliency: finds the content, such as
    `MeanActivation(teacher)` or `Attention(teacher)`; None is the attention of the network in training. tokens, extra,
    per_sample: see `TokenBlocks`. probability: the share of steps that mix.
    """

    def __init__(
        self,
        lam: float = 0.5,
        *,
        saliency: Saliency | None = None,
        tokens: int | Sequence[int] | None = None,
        extra: float = 1 / 14,
        per_sample: bool = False,
        probability: float = 1.0,
    ) -> None:
        operation = TokenBlocks(saliency, tokens=tokens, extra=extra, per_sample=per_sample)
        super().__init__(RandomPairing(), Constant(in_unit("lam", lam)), operation, probability=probability)
