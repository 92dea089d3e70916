"""SMMix: paste the region of a partner that is attended to most over one's own that is attended to least.

    x~_i = x_i with the cube of r tokens of least s_i replaced by that of x_pi(i) of most s_pi(i), r / n ~ U(.25, .75);
    L = loss(f(x~_i), s y_i + (1 - s) y_pi(i)) + fine (loss(g(own tokens), y_i) + loss(g(pasted tokens), y_pi(i))) / 2
        + consistency KL(softmax(s f(x_i) + (1 - s) f(x_pi(i))) || softmax f(x~_i)),   s: the share of x_i by area

s_i: the attention that patches get from all patches, f(x): the network in evaluation mode and without gradient where
it judges unmixed images, n: tokens along the shorter side, g: the head on the mean of final tokens. Source: Chen, Lin,
Lin, Zhang, Chao, Ji, "SMMix: Self-Motivated Image Mixing for Vision Transformers", ICCV 2023, arXiv 2212.12977. Cost:
1.33: both f(x) and s come from one pass. There g is a head of its own; here it shares the head of the network, so that
nothing is added to it. The reference mixes every other batch by mixup: `Choose([Mixup(0.8), SMMix()])`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import non_negative
from ...core.method import Mix, Setup
from ...core.operation import Context, Operation, Saliency, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import Split, evaluating, observe
from ...core.tree import Tree
from ..label.attention import whole_images
from ..ratio.uniform_side import UniformSide
from ..saliency import Attention, as_saliency, watch_attention
from .cutmix import outside
from .stretch import stretch


def region(maps: Tensor, side: Tensor, *, most: bool) -> Tensor:
    """(R, d) the first cells of the cubes of side (R,) cells in which maps (R, 1, *grid) sum to the most, or least.

    Of several such cubes the first.
    """
    sums, possible, grid = maps[:, 0].double(), torch.ones_like(maps[:, 0], dtype=torch.bool), maps.shape[2:]
    for axis, cells in enumerate(grid, 1):
        start = torch.arange(cells, device=maps.device)
        along = [-1, *(cells if a == axis else 1 for a in range(1, sums.ndim))]
        behind = (start + side.unsqueeze(1)).view(along)
        before = torch.cat((torch.zeros_like(sums.narrow(axis, 0, 1)), sums.cumsum(dim=axis)), dim=axis)
        sums = before.gather(axis, behind.clamp(max=cells).expand_as(sums)) - before.narrow(axis, 0, cells)
        possible &= behind <= cells
    sums = torch.where(possible, sums if most else -sums, -math.inf)
    return torch.stack(torch.unravel_index(sums.flatten(1).argmax(dim=1), grid), dim=1)


class MaxMinRegions(Operation):
    """Show the most salient cube of the partner, of about its share, in the sample's least salient one; by area.

    saliency: how to find it, whose grid is that of the cells, or the maps of all rows; None is the attention that
    patches get from all patches. x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError for other inputs.
    """

    def __init__(self, saliency: Saliency | Tensor | None = None) -> None:
        self.saliency = Attention(patches=True) if saliency is None else as_saliency(saliency)
        self.needs = self.saliency.needs

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        maps = self.saliency(x, context)
        grid = maps.shape[2:]
        side = (min(grid) * (1.0 - lam.double()) ** (1.0 / len(size))).round().long()
        cell = torch.tensor([whole // cells for whole, cells in zip(size, grid, strict=True)], device=x.device)
        low = region(maps[: len(partner)], side, most=False) * cell
        there = region(maps[partner], side, most=True) * cell
        extent = side.unsqueeze(1) * cell
        mask = outside(low, low + extent, size)
        moved = partial(own_and_region, rows=partner, source=(there, there + extent), target=(low, low + extent))
        mixed = moved(x)[1].lerp_(x[: len(partner)], mask.to(x.dtype))
        kept = 1.0 - extent.prod(dim=1, keepdim=True) / math.prod(size)
        return mixed, recipe.with_share(complete(kept.expand(-1, 2)), mask, moved)


def own_and_region(
    x: Tensor, rows: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The samples of x (R, C, *spatial), and x[rows] with the boxes `source` moved to `target`."""
    return x[: len(rows)], stretch(x, rows, source, target)


def smmix(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    low: float = 0.25,
    high: float = 0.75,
    *,
    per_sample: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch, without the further losses: `mixed = smmix(x, y, attention(model, x, patches=True))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. saliency: maps (B, 1, *grid) or an omnimix Saliency that
    needs no network. low, high: the range in [0, 1] of the side of the regions. per_sample: a side for each sample; the
    places are found for each in any case. lam: a number or (B,) values in [0, 1], the share left of the sample, in
    place of the draw of the side. y, partner: see `cutmix`. ValueError for tables, integer x or arguments out of range.
    """
    ratio = UniformSide(low, high, power=2.0, per_sample=per_sample)
    return mix_once(x, y, RandomPairing(), ratio, MaxMinRegions(saliency), lam, partner, generator)


def token_tap(model: nn.Module, x: Tensor, width: int, cells: int) -> str:
    """The module that runs last among those giving tokens (R, cells or more, width), by a pass in evaluation mode."""
    with evaluating(model), torch.no_grad(), observe(model) as seen:
        model(x)
    for name, h in reversed(seen.items()):
        if isinstance(h, Tensor) and h.ndim == 3 and h.shape[1] >= cells and h.shape[2] == width:
            return name
    raise ValueError(
        f"{type(model).__name__} has no module that gives tokens (R, {cells} or more, {width}) for its head; name one "
        "with tap=..., or take cutmix or transmix"
    )


class _Judge(Attention):
    """Keeps the output of the pass that gives the attention, and the grid."""

    output: Tensor | None = None
    grid: Sequence[int] | None = None

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        model = context.trained("SMMix")[0].model
        with evaluating(model), torch.no_grad(), watch_attention(model, self.block) as seen:
            self.output = model(x)
        maps = seen.maps(len(x), x.shape[2:], patches=True)
        self.grid = maps.shape[2:]
        return maps


@register(
    "smmix",
    paper="SMMix: Self-Motivated Image Mixing for Vision Transformers, ICCV 2023, arXiv 2212.12977",
    tasks=("classification",),
    cost=1.33,
    inputs=("image",),
    network="attention",
    search={"high": Uniform(0.4, 0.9), "fine": Log(0.1, 3), "consistency": Log(0.1, 3)},
)
class SMMix(Mix):
    """Paste the most attended region of a partner over the least attended one, and learn from both regions.

    low, high, per_sample: see `smmix`. fine, consistency >= 0: weights of the losses of the regions and of the blend of
    the predictions for unmixed images. tap: the module that gives the last tokens; None finds it. block: the name of a
    module, whose last attention is taken; None takes the network's last. probability: the share of steps that mix.
    """

    def __init__(
        self,
        low: float = 0.25,
        high: float = 0.75,
        fine: float = 1.0,
        consistency: float = 1.0,
        *,
        tap: str | None = None,
        block: str | None = None,
        per_sample: bool = False,
        probability: float = 1.0,
    ) -> None:
        self.fine, self.consistency = non_negative("fine", fine), non_negative("consistency", consistency)
        self.judge, self.tap, self.found = _Judge(block=block), tap, tap
        ratio = UniformSide(low, high, power=2.0, per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, MaxMinRegions(self.judge), probability=probability)

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.found = self.tap

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        whole_images(recipe, Context(self.generator, batch.y), "SMMix")
        network = self.split
        assert network is not None  # set up
        spatial_size(batch.x, recipe)
        if self.found is None:
            self.found = self._find(network, batch.x)
        with observe(network.model, self.found) as seen:
            output, applied = self.forward(model, batch, recipe)
        clean, self.judge.output = self.judge.output, None
        assert clean is not None
        loss = self.objective.mean(output, batch.y, applied, self.task)
        of_two = (applied.share < 1).all(dim=1)
        further = self.fine * self._regions(network, seen[self.found], batch.y, applied)
        further = further + self.consistency * self._blend(output, clean, applied)
        return loss + (further * of_two).mean()

    def _find(self, network: Split, x: Tensor) -> str:
        linear = [m for m in network.model.get_submodule(network.head_name).modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise ValueError(f"smmix needs a linear head; {network.head_name!r} holds none")
        with evaluating(network.model), torch.no_grad(), watch_attention(network.model, self.judge.block) as seen:
            network.model(x[:1])
        cells = seen.maps(1, x.shape[2:]).numel()
        return token_tap(network.model, x[:1], linear[-1].in_features, cells)

    def _regions(self, network: Split, tokens: Tensor, y: Tensor, applied: Recipe) -> Tensor:
        """(B,) the mean loss of the tokens of either image for its label."""
        assert applied.mask is not None
        assert self.judge.grid is not None
        own = F.interpolate(applied.mask, self.judge.grid, mode="nearest").flatten(1).to(tokens.dtype)
        tokens = tokens[:, -own.shape[1] :]
        found = []
        for k, weights in enumerate((own, 1.0 - own)):
            mean = torch.einsum("bp,bpd->bd", weights, tokens) / weights.sum(dim=1, keepdim=True).clamp(min=1)
            found.append(self.task.losses(network.head(mean), y[applied.partner[:, k]]))
        return (found[0] + found[1]) / 2

    @staticmethod
    def _blend(output: Tensor, clean: Tensor, applied: Recipe) -> Tensor:
        """(B,) how far the predictions are from the blend of those for the two images."""
        share = applied.share.to(clean.dtype)
        blend = share[:, :1] * clean[applied.partner[:, 0]] + share[:, 1:] * clean[applied.partner[:, 1]]
        log_p = output.float().log_softmax(dim=1)
        return F.kl_div(log_p, blend.float().softmax(dim=1), reduction="none").sum(dim=1)
