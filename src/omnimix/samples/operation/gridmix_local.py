"""GridMix (Baek et al. 2021): take each cell of a grid from one of two images, and classify every cell, too.

    x~_i = m x_i + (1 - m) x_pi(i), m constant in the cells of an n x n grid, 1 with probability lam ~ Beta(a, a)
    loss = mixed loss by mean(m) + weight * mean over cells of loss(W z_cell + b, m_cell y_i + (1 - m_cell) y_pi(i))

z_cell: the last feature map's mean over the cell. Source: Baek, Bang, Shim, "GridMix: Strong Regularization Through
Local Context Mapping", Pattern Recognition 2021; written from memory of the paper. There the local classifier has
weights of its own, here it shares those of the head, so that nothing is added to the network. Cost: 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, non_negative
from ...core.method import Mix, Setup
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.random import uniform
from ...core.ratio import Beta, complete
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.split import Split, observe
from ...core.tree import Tree
from ..saliency import feature_map
from .solver.blocks import enlarged


class GridCells(Operation):
    """Take each cell of an n^d grid from the sample with probability lam, else from the partner; shares follow.

    n: cells along each axis. per_sample: a grid for each sample, else one for the batch, for the first sample's share.
    x: (R, C, *spatial) with 1 to 3 spatial axes; ValueError for other inputs.
    """

    def __init__(self, n: int = 4, *, per_sample: bool = False) -> None:
        self.n, self.per_sample = at_least("n", n, 1), per_sample

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe)
        partner, lam = recipe.partner[:, 1].to(x.device), recipe.lam.to(x.device)
        lam = lam if self.per_sample else lam[:1]
        draws = uniform(len(lam), *[self.n] * len(size), generator=context.generator).to(x.device)
        mask = (draws < lam.double().view(-1, *[1] * len(size))).float().unsqueeze(1)
        mask, kept = enlarged(mask, size)
        share = complete(kept.expand(-1, 2)).expand(len(partner), 2)
        return blend(x, partner, mask.to(x.dtype)), recipe.with_share(share, mask)


def cell_means(maps: Tensor, n: int) -> Tensor:
    """(R, D, *[n] * d) means of maps (R, D, *grid) over the cells of an n^d grid."""
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[maps.ndim - 3]
    return pool(maps, n)


@register(
    "gridmix-local",
    paper="GridMix: Strong Regularization Through Local Context Mapping, Pattern Recognition 2021",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "n": Choice(2, 4, 8), "weight": Log(0.03, 3)},
)
class GridMixLocal(Mix):
    """Take each cell of a grid from one of two images, and classify images and cells.

    alpha, per_sample: see `cutmix`. n: cells along each axis. weight >= 0: of the loss of the cells. tap: the module
    that gives the last feature map; None finds it, see `feature_map`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        n: int = 4,
        weight: float = 1.0,
        *,
        per_sample: bool = False,
        tap: str | None = None,
    ) -> None:
        ratio, cells = Beta(alpha, per_sample=per_sample), GridCells(n, per_sample=per_sample)
        super().__init__(RandomPairing(), ratio, cells)
        self.n, self.weight, self.tap, self.found = n, non_negative("weight", weight), tap, tap

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.split, self.found = given.split or Split(given.model), self.tap

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        network = self.split
        assert network is not None  # set up
        linear = [m for m in network.model.get_submodule(network.head_name).modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise ValueError(f"gridmix-local needs a linear head; {network.head_name!r} holds none")
        self.found = self.found or feature_map(network.model, batch.x[:1])[0]
        with observe(network.model, self.found) as seen:
            output, applied = self.forward(model, batch, recipe)
        loss = self.objective.mean(output, batch.y, applied, self.task)
        z = cell_means(F.relu(seen[self.found]), self.n)
        weight, bias = linear[-1].weight, linear[-1].bias  # under autocast maps are of another type
        local = F.linear(z.movedim(1, -1).to(weight.dtype), weight, bias).movedim(-1, 1)
        return loss + self.weight * self._cells(local, batch.y, applied)

    def _cells(self, local: Tensor, y: Tensor, applied: Recipe) -> Tensor:
        """The mean loss of local outputs (B, C, *[n] * d) over the images of two samples."""
        assert applied.mask is not None
        own = cell_means(applied.mask, self.n).to(local.dtype)
        target = self.task.soft_target(y)[applied.partner].to(local.dtype)
        target = target.view(*target.shape, *[1] * (local.ndim - 2))
        target = (own * target[:, 0] + (1 - own) * target[:, 1]).expand_as(local)
        of_two = (applied.share < 1).all(dim=1)
        return (self.task.losses(local, target) * of_two).mean()
