"""Draws from an explicit `torch.Generator`: nothing here reads or moves PyTorch's global random state."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .checks import positive

T = TypeVar("T")
R = TypeVar("R")

_private = threading.local()
KEPT = 64
"""How many seeds' private streams are kept."""
SMALL = 0.1
"""Below this alpha, PyTorch's Dirichlet can come near the smallest float64."""


def default_generator() -> torch.Generator:
    """The generator used when the caller passes none: private, and seeded from `torch.initial_seed()`.

    The global stream is never consumed, and scripts that seed once are reproducible. Each seed has one stream, which
    goes on where it was when the same seed is set again: pass a generator of your own to repeat draws within a process.
    A DataLoader worker, whose initial seed PyTorch sets, gets its own.
    """
    known: OrderedDict[int, torch.Generator] = _private.__dict__.setdefault("generators", OrderedDict())
    seed = torch.initial_seed()
    if seed not in known:
        known[seed] = torch.Generator().manual_seed(seed)
        if len(known) > KEPT:
            known.popitem(last=False)
    return known[seed]


def resolve(generator: torch.Generator | None) -> torch.Generator:
    """`generator`, or the private default one; ValueError for anything else."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")
    return default_generator() if generator is None else generator


def uniform(*size: int, generator: torch.Generator) -> Tensor:
    """Float64 uniforms in [0, 1) on the generator's device."""
    return torch.rand(*size, generator=generator, device=generator.device, dtype=torch.float64)


def integers(high: int, *size: int, generator: torch.Generator) -> Tensor:
    """Integers uniform in 0..high-1 on the generator's device."""
    return torch.randint(high, size, generator=generator, device=generator.device)


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """A uniform permutation of 0..n-1; it may have fixed points."""
    return torch.randperm(n, generator=generator, device=generator.device)


def repeated(function: Callable[[T], R], generator: torch.Generator) -> Callable[[T], R]:
    """`function`, whose calls after the first repeat the first one's draws from the generator and leave it alone.

    For what activation checkpointing computes a second time.
    """
    first: list[Tensor] = []

    def call(value: T) -> R:
        now = generator.get_state()
        generator.set_state(first[0] if first else now)
        result = function(value)
        if first:
            generator.set_state(now)
        first.append(now)
        return result

    return call


def dirichlet(alpha: float, rows: int, k: int, generator: torch.Generator) -> Tensor:
    """(rows, k) float64 draws from the symmetric Dirichlet(alpha); k = 2 is Beta(alpha, alpha).

    For a small alpha, Gamma variates are kept as logarithms, log G(a) = log G(a+1) + log(U)/a, so that they give exact
    0s and 1s instead of 0/0.
    """
    positive("alpha", alpha)
    if math.isinf(alpha):
        return torch.full((rows, k), 1.0 / k, dtype=torch.float64, device=generator.device)
    if alpha >= SMALL:
        shape = torch.full((rows, k), float(alpha), dtype=torch.float64, device=generator.device)
        return torch._sample_dirichlet(shape, generator=generator)
    shape = torch.full((rows, k), float(alpha) + 1.0, dtype=torch.float64, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator)
    boost = (1.0 - uniform(rows, k, generator=generator)).log() / alpha
    return (gamma.log() + boost).softmax(dim=1)
