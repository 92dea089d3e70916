"""DARE: drop each entry of the changes with probability 1 - density and rescale the rest, so that their mean stays.

tau~_i = m_i * tau_i / density, m_i ~ Bernoulli(density), then task arithmetic or TIES. Yu et al., "Language models are
super mario", ICML 2024, arXiv:2311.03099. It suits many small changes and fails for large ones. Masks are seeded by
tensor name, model and block: they do not depend on the order of tensors nor on how a checkpoint is cut into files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...core.checks import at_least, in_unit
from ...core.random import resolve
from .base import Block, Merger
from .linear import checked_weights
from .task_arithmetic import TaskArithmetic, checked_lam
from .ties import checked_density, elect


def dare(change: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """The change with the share 1 - density of its entries dropped and the others divided by density.

    change: a difference of weights, any shape. density in (0, 1]; 1 gives the change back. ValueError outside.
    """
    if in_unit("density", density) == 0:
        raise ValueError("density must be a number in (0, 1], got 0: nothing would be left")
    generator = resolve(generator)
    drawn = torch.rand(change.shape, generator=generator, device=generator.device).to(change.device)
    return change * (drawn < density) / density


class DareLinear(TaskArithmetic):
    """DARE, then task arithmetic. density: share kept, one number or one a model. See `TaskArithmetic`."""

    name: ClassVar[str] = "dare-linear"
    pieces: ClassVar[bool] = False

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        *,
        density: float | Sequence[float] = 0.5,
        lam: float = 1.0,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(weights, lam=lam, normalize=normalize)
        self.density, self.seed = checked_density(density), at_least("seed", seed, 0)

    def combine(self, block: Block, found: Any) -> Tensor:
        assert block.base is not None
        return self.add(block.base, dropped(block, self.density, self.seed))


class DareTies(Merger):
    """DARE, then the election of signs of TIES (sums of 0 count as positive) without its trimming.

    weights, lam: see `Ties`. density: share kept, one number or one a model. normalize: divide by the weights that
    agree; default no, since dropped changes are rescaled already.
    """

    name: ClassVar[str] = "dare-ties"
    base: ClassVar[Literal["required", "none"]] = "required"

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        *,
        density: float | Sequence[float] = 0.5,
        lam: float = 1.0,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        self.weights = None if weights is None else checked_weights(weights, normalize=False)
        self.density, self.lam = checked_density(density), checked_lam(lam)
        self.normalize, self.seed = normalize, at_least("seed", seed, 0)

    def combine(self, block: Block, found: Any) -> Tensor:
        assert block.base is not None
        weights = self.weights or (1.0,) * len(block.models)
        changes = [c.mul_(w) for c, w in zip(dropped(block, self.density, self.seed), weights, strict=True)]
        total = torch.stack(changes).sum(0)
        return elect(block.base, changes, total, weights, 1.0, self.lam, normalize=self.normalize)


def dropped(block: Block, density: float | Sequence[float], seed: int) -> list[Tensor]:
    """The changes of a block after DARE."""
    assert block.base is not None
    shares = [density] * len(block.models) if isinstance(density, float) else list(density)
    if len(shares) != len(block.models):
        raise ValueError(
            f"density must be one number, or one a model: got {len(shares)} for {len(block.models)} models"
        )
    changes = []
    for i, (model, share) in enumerate(zip(block.models, shares, strict=True)):
        key = hashlib.sha256(f"{seed}\0{block.name}\0{i}\0{block.number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
        changes.append(dare(model - block.base, share, generator))
    return changes
