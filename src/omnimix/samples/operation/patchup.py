"""PatchUp: at a hidden layer, mix or exchange blocks of the feature maps, and the labels by the volume changed.

    h~_i = (1 - P) h_i + P (lam h_i + (1 - lam) h_pi(i)),   y~_i = u y_i + (1 - u) (lam y_i + (1 - lam) y_pi(i))

P: blocks of side b about cells drawn in every channel with probability gamma prod_a n_a / (b_a (n_a - b_a + 1)), the
same for all samples; u = mean(1 - P). Soft: lam ~ Beta(alpha, alpha); hard: lam = 0, the blocks are exchanged.
Source: Faramarzi, Amini, Badrinaaraayanan, Verma, Chandar, "PatchUp: A Feature-Space Block-Level Regularization
Technique for Convolutional Neural Networks", AAAI 2022, arXiv 2006.07794. Cost: 1. The paper adds to the loss against
y~ the terms u L(y) + (1 - u) L(lam y + (1 - lam) y_pi): for losses linear in the label that is the same number again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import at_least, in_unit, one_of
from ...core.combine import Choose
from ...core.method import Mix, Setup
from ...core.objective import MixedLoss
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.ratio import Beta, Constant
from ...core.recipe import Recipe, rowwise
from ...core.registry import register
from ...core.search import Choice, Uniform
from ...core.split import Split
from ...core.tree import Tree
from .cutmix import CutMix
from .manifold_mixup import SoftmaxBCE


def hole_probability(gamma: float, block: int, size: Sequence[int]) -> float:
    """How often a cell of a map is the centre of a block, so that about gamma of the map is touched; at most 1."""
    return min(1.0, gamma * math.prod(n / (min(block, n) * (n - min(block, n) + 1)) for n in size))


class Patches(Operation):
    """Mix blocks of the maps by the recipe's share and leave the rest; share 0 exchanges the blocks.

    gamma in [0, 1]: about how much to touch. block: the odd side of the blocks, cut to the map's. x: (R, C, *spatial)
    with 1 to 3 spatial axes. The mask is the mean over channels of each cell's own share. ValueError for other inputs.
    """

    def __init__(self, gamma: float = 0.75, block: int = 7) -> None:
        self.gamma = in_unit("gamma", gamma)
        self.block = at_least("block", block, 1)
        if block % 2 == 0:
            raise ValueError(f"block must be odd, so that blocks have a centre, got {block}")

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, source = spatial_size(x, recipe), context.generator
        chance = hole_probability(self.gamma, self.block, size)
        draws = torch.rand(x.shape[1:], generator=source, device=source.device).to(x.device)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
        holes = pool((draws < chance).float().unsqueeze(0), self.block, 1, self.block // 2)
        lam = recipe.lam.to(x.device)
        own = 1.0 - holes * rowwise(1.0 - lam, x)
        kept = 1.0 - holes.mean() * (1.0 - lam)
        mixed = blend(x, recipe.partner[:, 1].to(x.device), own.to(x.dtype))
        return mixed, recipe.with_share(torch.stack((kept, 1.0 - kept), dim=1), own.mean(dim=1, keepdim=True))


class _AtTaps(Mix):
    """At taps that the network chooses, where none are named."""

    taps: Sequence[str] | None = None

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        if self.taps is None:
            self.places = (given.split or Split(given.model)).taps[:2]
        return super().resolve_places(given)


@register(
    "patchup",
    paper="PatchUp: A Feature-Space Block-Level Regularization Technique for Convolutional Neural Networks, "
    "AAAI 2022, arXiv 2006.07794",
    inputs=("image",),
    search={"hard": Choice(False, True), "gamma": Uniform(0.3, 0.95), "probability": Uniform(0.3, 1.0)},
)
class PatchUp(Choose):
    """At a random one of the input and some layers: CutMix at the input, blocks mixed or exchanged at the layers.

    hard: exchange blocks rather than interpolate them. alpha: Beta(alpha, alpha) inside the blocks, of no use where
    hard. gamma: about how much of a map is touched. block: the side of the blocks, odd. probability: the share of steps
    that mix. The paper's gamma and probability are .75 and 1, and where hard .5 and .7: None takes them. taps: names of
    modules that give maps (B, C, *spatial); None: the network's first two (the authors': the first convolution and the
    first stage, taps=("conv1", "layer1")). loss: "ce", the task's own loss, or
    "bce_on_softmax", that of the reference code (class labels only).
    """

    def __init__(
        self,
        hard: bool = False,
        alpha: float = 2.0,
        gamma: float | None = None,
        block: int = 7,
        probability: float | None = None,
        taps: Sequence[str] | None = None,
        *,
        loss: Literal["ce", "bce_on_softmax"] = "ce",
    ) -> None:
        objective = MixedLoss() if one_of("loss", loss, ("ce", "bce_on_softmax")) == "ce" else SoftmaxBCE()
        share = (0.7 if hard else 1.0) if probability is None else probability
        operation = Patches((0.5 if hard else 0.75) if gamma is None else gamma, block)
        places = ("input",) if taps is None else taps
        hidden = _AtTaps(
            RandomPairing(),
            Constant(0.0) if hard else Beta(alpha),
            operation,
            objective,
            places=places,
            probability=share,
        )
        hidden.taps = taps
        cut = CutMix(probability=share)
        cut.objective = objective
        at_input = 1.0 / (1 + (2 if taps is None else len(taps)))
        super().__init__([cut, hidden], [at_input, 1.0 - at_input])
