"""Puzzle Mix: a mask that keeps the salient blocks of both images and suits their pixels, then blocks moved to fit it.

    min over z in {0, 1/(L-1), ..., 1}^blocks   sum_i z_i s2_i + (1 - z_i) s1_i - eta' log Binomial(z_i (L-1); L-1, lam)
        + sum_edges beta' (z_i - z_j)^2 + phi_11 z_i z_j + phi_10 z_i (1 - z_j) + phi_01 (1 - z_i) z_j
        + phi_00 (1 - z_i) (1 - z_j),
    phi_ac = beta' gamma mean |border of the first block in a - border of the second in c|,   a, c: 1 own, 0 partner,
    x~_i = z T1(x_i) + (1 - z) T2(x_pi(i)),   y~_i = mean(z) y_i + (1 - mean(z)) y_pi(i),   lam ~ Beta(alpha, alpha)

s1, s2: saliency of the blocks, summing to 1; beta' = beta / (16 b), eta' = eta / b^2 on a grid of b x b blocks; T moves
blocks. Source: Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020,
arXiv 2009.06962. Cost: 2 (the saliency) and the solvers. As the reference code, the terms in phi are taken as quadratic
in z; unlike it, the mask is a global minimum for every L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.checks import at_least, in_unit, non_negative, positive
from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import integers, uniform
from ...core.ratio import Beta, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import evaluating
from ...core.tree import Tree
from ..saliency import InputGradient, as_saliency, at_size, normalised
from .solver.blocks import block_grid, in_blocks, nearest_divisor, pooled, rearranged, spread
from .solver.min_cut import convex_labels
from .solver.transport import block_transport

BLOCKS = (2, 4, 8, 16)


def border_steps(
    x: Tensor, partner: Tensor, grid: Sequence[int], near: int, scale: Tensor | float = 1.0
) -> list[tuple[Tensor, ...]]:
    """For each axis phi_11, phi_10, phi_01, phi_00 (B, *grid, one less along the axis), before beta' and gamma.

    near: pixels are averaged over cubes of this side first, or the nearest divisor of that of a block. scale: by what
    they are multiplied.
    """
    sides = [side // blocks for side, blocks in zip(x.shape[2:], grid, strict=True)]
    cubes = [nearest_divisor(side, near) for side in sides]
    coarse = scale * pooled(x, [side // cube for side, cube in zip(x.shape[2:], cubes, strict=True)])
    cells, count = in_blocks(coarse, grid), len(partner)
    steps: list[tuple[Tensor, ...]] = []
    for axis, blocks in enumerate(grid):
        at = 2 + 2 * axis
        low = cells.narrow(at, 0, blocks - 1).select(at + 1, -1)
        high = cells.narrow(at, 1, blocks - 1).select(at + 1, 0)
        others = [1, *(3 + 2 * a - (a > axis) for a in range(len(grid)) if a != axis)]
        differences = low - high, low[:count] - high[partner], low[partner] - high[:count]
        own, p10, p01 = (difference.abs().mean(dim=others) for difference in differences)
        steps.append((own[:count], p10, p01, own[partner]))
    return steps


def energy_terms(
    own: Tensor,
    guest: Tensor,
    steps: Sequence[tuple[Tensor, ...]],
    lam: Tensor,
    *,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    labels: int = 3,
) -> tuple[Tensor, list[Tensor]]:
    """What `convex_labels` minimises, for z = label / (labels - 1): unary (B, labels, *grid), weights for each axis.

    own, guest: (B, *grid) block saliencies of the sample and its partner. steps: of `border_steps`. lam: (B,).
    """
    grid = own.shape[1:]
    blocks = math.prod(grid)
    beta = beta / 16 / blocks ** (1 / len(grid))
    on, off = guest.clone(), own.clone()  # what showing the sample, and its partner, costs
    weights = []
    for axis, (p11, p10, p01, p00) in enumerate(steps, start=1):
        scale, edges = beta * gamma / 2, p11.shape[axis]
        for cost, first, second in ((on, p11 + p10, p11 + p01), (off, p00 + p01, p00 + p10)):
            cost.narrow(axis, 0, edges).add_(first, alpha=scale)
            cost.narrow(axis, 1, edges).add_(second, alpha=scale)
        # Pixels of a range beyond [0, 1] could make it negative, and the minimum hard to find.
        weights.append((beta + scale * (p10 + p01 - p11 - p00)).clamp_(min=0))
    shape = (-1, labels, *(1 for _ in grid))
    level = torch.arange(labels, device=lam.device)
    z, lam = level / (labels - 1), lam.double().unsqueeze(1)
    log_lam, log_rest = (t.log().clamp(min=-1e4) for t in (lam, 1.0 - lam))
    ways = lam.new_tensor([math.log(math.comb(labels - 1, k)) for k in range(labels)])
    prior = -(level * log_lam + (labels - 1 - level) * log_rest + ways)
    unary = torch.lerp(off.unsqueeze(1), on.unsqueeze(1), z.view(shape))
    return unary + prior.float().view(shape) * (eta / blocks), weights


class Puzzle(Operation):
    """Show salient blocks of both; the shares are those of the mask.

    saliency: how to find it, or the maps of all rows; None is `InputGradient()`. blocks: along each side; of several
    one is drawn for each batch; where it does not divide a side, the nearest divisor is taken. labels >= 2: levels of
    the mask. beta, gamma, eta: weights of the smoothness of the mask, of the match of pixels at borders, and of the
    drawn share. near: side of the cubes of pixels that are averaged before borders are compared. scale: what inputs
    were divided by (the std of the normalisation), one number or one for each channel, so that borders are compared in
    pixels of [0, 1]; None: each channel of the batch is taken to span [0, 1] in pixels. transport: whether blocks move;
    eps: the price of it; piece: the side, in pixels, of what moves, None for whole blocks. adversarial: in [0, 1], how
    likely the samples, and on their own the partners, are shown with FGSM noise (the paper: .1 on CIFAR), for which it
    needs the network; radius: of that noise, in pixels of [0, 1]. x: (R, C, *spatial) with 1 to 3 spatial axes;
    ValueError otherwise.
    """

    def __init__(
        self,
        saliency: Saliency | Tensor | None = None,
        *,
        blocks: int | Sequence[int] = BLOCKS,
        labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        near: int = 4,
        scale: float | Sequence[float] | None = None,
        transport: bool = True,
        eps: float = 0.8,
        piece: int | None = None,
        adversarial: float = 0.0,
        radius: float = 10 / 255,
    ) -> None:
        self.saliency = InputGradient() if saliency is None else as_saliency(saliency)
        self.adversarial, self.radius = in_unit("adversarial", adversarial), positive("radius", radius)
        self.needs = ("network",) if adversarial else self.saliency.needs
        self.blocks = [at_least("blocks", n, 1) for n in ([blocks] if isinstance(blocks, int) else blocks)]
        if not self.blocks:
            raise ValueError("blocks must be a number of blocks along each side or several of them, got none")
        self.labels, self.near = at_least("labels", labels, 2), at_least("near", near, 1)
        self.beta, self.gamma = non_negative("beta", beta), non_negative("gamma", gamma)
        self.eta, self.eps = non_negative("eta", eta), non_negative("eps", eps)
        self.scale = None if scale is None else torch.as_tensor(scale, dtype=torch.float32)
        if self.scale is not None and not bool((self.scale > 0).all()):
            raise ValueError(f"scale must be > 0, what pixels of [0, 1] were divided by, or None; got {scale!r}")
        self.transport = transport
        self.piece = piece if piece is None else at_least("piece", piece, 1)

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        draw = int(integers(len(self.blocks), 1, generator=context.generator)) if len(self.blocks) > 1 else 0
        grid = block_grid(size, self.blocks[draw])
        partner = recipe.partner[:, 1].to(x.device)
        maps = at_size(self.saliency(x, context), size)
        with torch.no_grad():
            saliency = normalised(pooled(maps, grid))[:, 0]
            z = self.mask(x, saliency, partner, recipe.lam.to(x.device), grid)
            shown = spread(z, size).unsqueeze(1)
            kept = z.flatten(1).mean(dim=1)
            share = complete(torch.stack((kept, 1.0 - kept), dim=1))
        attacked = self.attacks(context)
        noise = self.noise(x, context) if any(attacked) else None
        if not self.transport and noise is None:
            return blend(x, partner, shown.to(x.dtype)), recipe.with_share(share, shown)
        moved = self.plan(maps, saliency, partner, z) if self.transport else partial(_unmoved, partner=partner)
        own, guest = moved(x)
        if noise is not None:
            noisy = moved(x + noise)
            own, guest = (new if hit else old for new, old, hit in zip(noisy, (own, guest), attacked, strict=True))
        mixed = torch.lerp(guest, own, shown.to(x.dtype))
        return mixed, recipe.with_share(share, shown, moved if self.transport else None)

    def attacks(self, context: Context) -> list[bool]:
        """Whether the samples, and whether their partners, are shown with noise."""
        if not self.adversarial:
            return [False, False]
        return [bool(coin < self.adversarial) for coin in uniform(2, generator=context.generator)]

    def noise(self, x: Tensor, context: Context) -> Tensor:
        """FGSM noise from a random start: steps of 1.2 radius, cut off at the radius, times a uniform number.

        The batch's least and greatest values of each channel count as black and white, beyond which nothing gets.
        """
        network, task, y = context.trained("adversarial Puzzle Mix")
        source, axes = context.generator, [0, *range(2, x.ndim)]
        radius = (self.radius / self.pixel(x)).to(x)
        start = radius * (2.0 * uniform(*x.shape, generator=source).to(x) - 1.0)
        black, white = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        start = (x + start).clamp(black, white) - x
        with evaluating(network.model), torch.enable_grad():
            inputs = (x + start).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(task.losses(network.model(inputs), y).sum(), inputs)
        noise = torch.minimum((start + 1.2 * radius * gradient.sign()).maximum(-radius), radius)
        return (x + noise * uniform(1, generator=source).to(x)).clamp(black, white) - x

    def pixel(self, x: Tensor) -> Tensor:
        """(1 or C, 1, ...) what pixels of [0, 1] were divided by to give x."""
        if self.scale is not None:
            return self.scale.to(x.device).view(-1, *(1 for _ in x.shape[2:]))
        axes = [0, *range(2, x.ndim)]
        span = (x.amax(axes) - x.amin(axes)).float().view(-1, *(1 for _ in x.shape[2:]))
        return torch.where(span > 0, 1.0 / span, 1.0)

    def mask(self, x: Tensor, saliency: Tensor, partner: Tensor, lam: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, *grid) the best z, for block saliencies (R, *grid)."""
        terms = energy_terms(
            saliency[: len(partner)],
            saliency[partner],
            border_steps(x.float(), partner, grid, self.near, self.pixel(x)),
            lam,
            beta=self.beta,
            gamma=self.gamma,
            eta=self.eta,
            labels=self.labels,
        )
        return convex_labels(*terms) / (self.labels - 1)

    def plan(
        self, maps: Tensor, saliency: Tensor, partner: Tensor, z: Tensor
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`transported`, with the blocks of both images, of which those of `piece` are a part, moved to suit z."""
        size, rows = maps.shape[2:], len(partner)
        if self.piece is not None:
            sides = zip(size, z.shape[1:], strict=True)
            grid = tuple(side // nearest_divisor(side // blocks, self.piece) for side, blocks in sides)
            z, saliency = spread(z, grid), normalised(pooled(maps, grid))[:, 0]
        plans = block_transport(torch.cat((z, 1.0 - z)), torch.cat((saliency[:rows], saliency[partner])), self.eps)
        return partial(transported, partner=partner, plans=plans)


def _unmoved(x: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    return x[: len(partner)], x[partner]


def transported(x: Tensor, partner: Tensor, plans: Tensor) -> tuple[Tensor, Tensor]:
    """The samples and the partners of x (R, C, *spatial) with their blocks taken from where `plans` say.

    plans: (2 B, *grid), for the samples and then for the partners.
    """
    own, guest = plans.chunk(2)
    return rearranged(x[: len(partner)], own), rearranged(x[partner], guest)


def puzzle_mix(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    alpha: float = 1.0,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
    **puzzle: Any,
) -> Mixed:
    """Mix a batch: `mixed = puzzle_mix(x, y, input_gradient(model, x, y))`, then `mixed.loss(...)`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y, alpha, lam, partner: see `cutmix`. saliency: maps
    (B, 1, *grid) or an omnimix Saliency that needs no network. per_sample: a share for each sample, not one for the
    batch. puzzle: further arguments of `Puzzle`. The share of the sample is `mixed.recipe.lam`. ValueError for tables,
    integer x or arguments out of range.
    """
    ratio, operation = Beta(alpha, per_sample=per_sample), Puzzle(saliency, **puzzle)
    return mix_once(x, y, RandomPairing(), ratio, operation, lam, partner, generator)


@register(
    "puzzle-mix",
    paper="Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup, ICML 2020, arXiv 2009.06962",
    cost=2.0,
    inputs=("image",),
    search={"alpha": Log(0.2, 4), "beta": Log(0.3, 5), "eta": Uniform(0.0, 1.0)},
)
class PuzzleMix(Mix):
    """Join the salient blocks of two images, moved to fit a smooth mask.

    alpha, per_sample: see `puzzle_mix`; from blocks to radius: see `Puzzle`. clean: weight of the loss of the unmixed
    batch, whose gradient comes with the saliency at no cost (the paper: 1 on Tiny-ImageNet); the pass for the saliency
    is then one of training. probability: the share of steps that mix. The reference code's loss on CIFAR is BCE of the
    softmax; here the task's.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        clean: float = 0.0,
        saliency: Saliency | None = None,
        per_sample: bool = False,
        blocks: int | Sequence[int] = BLOCKS,
        labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        near: int = 4,
        scale: float | Sequence[float] | None = None,
        transport: bool = True,
        eps: float = 0.8,
        piece: int | None = None,
        adversarial: float = 0.0,
        radius: float = 10 / 255,
        probability: float = 1.0,
    ) -> None:
        if saliency is not None and clean:
            raise ValueError(
                f"the clean loss comes with the default saliency: give saliency or clean, got clean={clean}"
            )
        operation = Puzzle(
            InputGradient(keep=clean) if saliency is None else saliency,
            blocks=blocks,
            labels=labels,
            beta=beta,
            gamma=gamma,
            eta=eta,
            near=near,
            scale=scale,
            transport=transport,
            eps=eps,
            piece=piece,
            adversarial=adversarial,
            radius=radius,
        )
        super().__init__(RandomPairing(), Beta(alpha, per_sample=per_sample), operation, probability=probability)
