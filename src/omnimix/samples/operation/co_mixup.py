"""Co-Mixup: the inputs of a group are mixed jointly, so that outputs are salient and smooth, and unlike one another.

    x~_o = sum_k M_ok x_k,   y~_o = sum_k mean(M_ok) y_k,   M: see `solver.joint`, with cost_k = -saliency_k,
    bias_k = -eta' log p_k,  p ~ Dirichlet(alpha),  A = (1 - omega) I + omega n D / sum(D),   eta' = eta / blocks

Saliency maps sum to 1; D: L1 distances between their summits. Source: Kim, Choo, Jeong, Song, "Co-Mixup: Saliency
Guided Joint Mixup with Supermodular Diversity", ICLR 2021, arXiv 2102.03065. Cost: 2 (the saliency, whose pass is also
that of the clean loss) and the solver. There is no first image: an output's recipe names all inputs of its group.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from ...core.method import Mix
from ...core.operation import Context, Operation, Saliency, spatial_size
from ...core.pairing import Pairing
from ...core.preset import mix_once
from ...core.random import dirichlet, integers
from ...core.ratio import Ratio
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.tree import Tree
from ..saliency import InputGradient, as_saliency, at_size, normalised
from .saliencymix import peaks
from .solver.blocks import block_grid, pooled, spread
from .solver.joint import Threshold, joint_masks


class Groups(Pairing):
    """Consecutive rows, `size` at a time: everybody may be mixed with all of the group; the last may be smaller."""

    selects = False

    def __init__(self, size: int = 20) -> None:
        self.k = at_least("size", size, 2)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return _members(len(batch), self.k, batch.device)


def _members(rows: int, k: int, device: torch.device) -> Tensor:
    """(rows, k) the rows of each row's group, itself first; itself again where the group is smaller than k."""
    own, step = torch.arange(rows, device=device).unsqueeze(1), torch.arange(k, device=device)
    first = own // k * k
    count = (rows - first).clamp(max=k)
    return torch.where(step < count, first + (own - first + step) % count, own)


class GroupDirichlet(Ratio):
    """Shares p ~ Dirichlet(alpha) of the members of each group of k consecutive rows, equal for all its rows."""

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = positive("alpha", alpha)

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        drawn = dirichlet(self.alpha, -(-rows // k), k, generator).flatten()
        members = _members(rows, k, generator.device)
        share = drawn[members]
        share[:, 1:].masked_fill_(members[:, 1:] == members[:, :1], 0.0)
        return (share / share.sum(dim=1, keepdim=True)).float()


class JointBlocks(Operation):
    """Mix each group of K consecutive rows jointly; K is that of the recipe, whose shares are the wishes for inputs.

    saliency: how to find it, or the maps of all rows; None is `InputGradient(keep=1)`. blocks: along each side; where
    it does not divide a side, the nearest divisor. beta, gamma, tau, sweeps, threshold: see `joint_masks`. eta: weight
    of the wishes. omega: in [0, 1], weight of the distance of salient places in the compatibility of inputs. x: (R, C,
    *spatial) with 1 to 3 spatial axes; partners are those of `Groups`. ValueError otherwise.
    """

    def __init__(
        self,
        saliency: Saliency | Tensor | None = None,
        *,
        blocks: int = 4,
        beta: float = 0.32,
        gamma: float = 1.0,
        eta: float = 0.05,
        tau: float = 0.83,
        omega: float = 0.001,
        sweeps: int = 4,
        threshold: Threshold = "hard",
    ) -> None:
        one_of("threshold", threshold, ("hard", "soft"))
        self.threshold: Threshold = threshold
        self.saliency = InputGradient(keep=1.0) if saliency is None else as_saliency(saliency)
        self.needs = self.saliency.needs
        self.blocks, self.sweeps = at_least("blocks", blocks, 1), at_least("sweeps", sweeps, 1)
        self.beta, self.gamma = non_negative("beta", beta), non_negative("gamma", gamma)
        self.eta, self.tau, self.omega = non_negative("eta", eta), non_negative("tau", tau), in_unit("omega", omega)

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size = spatial_size(x, recipe, two=False)
        rows, k = recipe.partner.shape
        members, partner = _members(rows, k, x.device), recipe.partner.to(x.device)
        if x.device.type == "cpu" and not bool((partner // k == members // k).all()):
            raise ValueError("joint mixing is for groups of consecutive rows; use the pairing Groups(size)")
        maps = at_size(self.saliency(x, context), size)[:rows]
        wish = maps.new_zeros(rows, k, dtype=torch.float32)
        wish.scatter_add_(1, partner % k, recipe.share.to(wish))
        share, shown = torch.zeros_like(wish), maps.new_empty(maps.shape)
        whole, inputs = rows // k * k, list[tuple[Tensor, Tensor]]()
        for some, count in ((slice(whole), k), (slice(whole, rows), rows - whole)):
            if not len(members[some]):
                continue
            with torch.no_grad():
                mask = self.masks(maps[some], wish[some, :count], count, context.generator)
                shares = mask.flatten(3).mean(dim=3).flatten(0, 1)
                share[some, :count] = shares.gather(1, members[some, :count] % k)
                inputs.append(_strongest(mask, members[some]))
                own = mask.diagonal(dim1=1, dim2=2).movedim(-1, 1).flatten(0, 1)
                shown[some] = spread(own, size).unsqueeze(1).to(shown)
        image, weight = (torch.cat(parts) for parts in zip(*inputs, strict=True))
        moved = partial(_shown, image=image, weight=weight)
        (first, much), (second, _) = moved(x)
        mixed = torch.lerp(second, first, much.to(x.dtype))
        return mixed, replace(recipe, partner=members, share=share, label_share=share, mask=shown, moved=moved)

    def masks(self, maps: Tensor, wish: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """(G, count, count, *grid) for G groups of `count` rows. maps: (G count, 1, *size); wish: (G count, count)."""
        grid = block_grid(maps.shape[2:], self.blocks)
        cost = -normalised(pooled(maps.float(), grid)).view(-1, count, *grid)
        cells = cost[0, 0].numel()
        distance = _summits(maps.float()).view(len(cost), count, -1)
        distance = (distance.unsqueeze(1) - distance.unsqueeze(2)).abs().sum(dim=3)
        distance = distance * (count / distance.sum(dim=(1, 2), keepdim=True).clamp(min=1.0))
        compat = (1.0 - self.omega) * torch.eye(count, device=maps.device) + self.omega * distance
        start = integers(count, len(cost), count, cells, generator=generator).to(maps.device)
        return joint_masks(
            cost,
            compat,
            -self.eta / cells * wish.log().clamp(min=-1e4).view(-1, count, count),
            beta=self.beta,
            gamma=self.gamma,
            tau=self.tau,
            threshold=self.threshold,
            sweeps=self.sweeps,
            start=start,
        )


def _strongest(mask: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and weights, (B, 2, *grid) each, of the two inputs that a block shows most of: it shows no others.

    mask: (G, count, count, *grid). members: (G count, K) of `_members`, whose least is the first of its group.
    """
    weight, which = mask.flatten(0, 1).topk(min(2, mask.shape[2]), dim=1)
    if mask.shape[2] == 1:  # a row alone
        weight, which = torch.cat((weight, 1.0 - weight), dim=1), torch.cat((which, which), dim=1)
    return which + members.amin(dim=1).view(-1, *[1] * (which.ndim - 1)), weight


def _shown(maps: Tensor, image: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Of maps (R, C, *spatial) what a row shows in its blocks, with its weights, twice; see `_strongest`."""
    size = maps.shape[2:]
    rows, weights = spread(image, size), spread(weight, size)
    return tuple(
        (maps.gather(0, rows[:, k : k + 1].expand(-1, maps.shape[1], *size)), weights[:, k : k + 1]) for k in range(2)
    )


def _summits(maps: Tensor) -> Tensor:
    """(R, d) where each map (R, 1, *size) is largest, averaged over cubes of side 8."""
    sums = maps.double()  # so that equal maps stay equal, and their summits the first cell
    for axis, side in enumerate(maps.shape[2:], start=2):
        before, width = sums.cumsum(dim=axis), min(8, side)
        later = before.narrow(axis, width, side - width) - before.narrow(axis, 0, side - width)
        sums = torch.cat((before.narrow(axis, width - 1, 1), later), dim=axis)
    return peaks(sums.float()).float()


def co_mixup(
    x: Tensor,
    y: Tensor,
    saliency: Saliency | Tensor,
    alpha: float = 2.0,
    *,
    group: int = 20,
    generator: torch.Generator | None = None,
    **joint: Any,
) -> Mixed:
    """Mix a batch: `mixed = co_mixup(x, y, input_gradient(model, x, y))`, then `mixed.loss(...)`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y: class ids (B,), soft or multi-label (B, C), real (B,)
    or (B, D). saliency: maps (B, 1, *grid) or an omnimix Saliency that needs no network. alpha > 0 of the Dirichlet
    distribution of the inputs' shares in their group. group >= 2: rows mixed jointly, in order. joint: further
    arguments of `JointBlocks`. Shares are in `mixed.recipe.share`, (B, group). ValueError for tables, integer x or
    arguments out of range.
    """
    return mix_once(x, y, Groups(group), GroupDirichlet(alpha), JointBlocks(saliency, **joint), generator=generator)


@register(
    "co-mixup",
    paper="Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity, ICLR 2021, arXiv 2102.03065",
    cost=2.0,
    inputs=("image",),
    search={"alpha": Log(0.5, 8), "beta": Log(0.08, 1), "tau": Uniform(0.7, 0.95)},
)
class CoMixup(Mix):
    """Mix groups of images jointly, so that each output is salient and the outputs differ.

    alpha, group: see `co_mixup`; from blocks to threshold: see `JointBlocks`. clean: weight of the loss of the unmixed
    batch, whose gradient comes with the default saliency at no cost, 1 if None; 0: none, and the saliency is taken in
    evaluation mode. The reference code's loss on CIFAR is BCE of the softmax; here the task's.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        group: int = 20,
        clean: float | None = None,
        saliency: Saliency | None = None,
        blocks: int = 4,
        beta: float = 0.32,
        gamma: float = 1.0,
        eta: float = 0.05,
        tau: float = 0.83,
        omega: float = 0.001,
        sweeps: int = 4,
        threshold: Threshold = "hard",
    ) -> None:
        if saliency is not None and clean:
            raise ValueError(
                f"the clean loss comes with the default saliency: give saliency or clean, got clean={clean}"
            )
        operation = JointBlocks(
            InputGradient(keep=1.0 if clean is None else clean) if saliency is None else saliency,
            blocks=blocks,
            beta=beta,
            gamma=gamma,
            eta=eta,
            tau=tau,
            omega=omega,
            sweeps=sweeps,
            threshold=threshold,
        )
        super().__init__(Groups(group), GroupDirichlet(alpha), operation)
