"""Flatness of a loss around weights t: the rise of the loss, and the size of its gradient, nearby.

    R0 = max L(t') - L(t),   R1 = rho max |grad L(t')|,   over |t' - t| <= rho
    sphere = mean |L(t + rho u) - L(t)|,   u uniform on the unit sphere

R0 and R1 by projected normalised ascent, so from below. Sources: Zhang et al., "Flatness-Aware Minimization for Domain
Generalization", ICCV 2023, arXiv 2307.11108; for the sphere Cha et al., "SWAD", NeurIPS 2021, arXiv 2102.08604.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...core.checks import at_least, positive
from ...core.random import resolve

Loss = Callable[[], Tensor]
"""The loss at the present weights; it must not draw: put the network into evaluation mode."""


@contextmanager
def _moving(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those that ask for gradients; afterwards they are what they were before, to the bit."""
    weights = [p for p in parameters if p.requires_grad]
    start = [p.detach().clone() for p in weights]
    try:
        yield weights
    finally:
        with torch.no_grad():
            for p, value in zip(weights, start, strict=True):
                p.copy_(value)


def _norm(parts: Iterable[Tensor]) -> Tensor:
    length: Tensor = torch.stack([part.norm() for part in parts]).norm()
    return length


def _direction(weights: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Uniform on the unit sphere of all weights together."""
    parts = [torch.randn(p.shape, generator=generator, device=generator.device).to(p) for p in weights]
    norm = _norm(parts)
    return [part / norm for part in parts]


def _highest(
    value: Loss, parameters: Iterable[Tensor], rho: float, steps: int, generator: torch.Generator | None
) -> float:
    """The highest value met within the ball, in an ascent from a random point of its surface."""
    positive("rho", rho)
    at_least("steps", steps, 1)
    with _moving(parameters) as weights:
        start = [p.detach().clone() for p in weights]
        best = value().detach()
        away = [rho * part for part in _direction(weights, resolve(generator))]
        for _ in range(steps):
            _put(weights, start, away)
            now = value()
            best = torch.maximum(best, now.detach())
            if not now.requires_grad:  # constant, as the gradient of a linear loss is
                return float(best)
            grads = torch.autograd.grad(now, weights, materialize_grads=True)
            length = _norm(grads) + 1e-12
            away = [a + g * (rho / length) for a, g in zip(away, grads, strict=True)]
            shrink = rho / torch.clamp(_norm(away), min=rho)
            away = [a * shrink for a in away]
        _put(weights, start, away)
        return float(torch.maximum(best, value().detach()))


@torch.no_grad()
def _put(weights: list[Tensor], start: list[Tensor], away: list[Tensor]) -> None:
    for p, value, move in zip(weights, start, away, strict=True):
        p.copy_(value + move)


def r0(
    loss: Loss,
    parameters: Iterable[Tensor],
    rho: float = 0.05,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """The rise of the loss to the highest found within rho > 0, a Euclidean distance in all parameters; >= 0."""
    weights = list(parameters)
    return _highest(loss, weights, rho, steps, generator) - float(loss().detach())


def r1(
    loss: Loss,
    parameters: Iterable[Tensor],
    rho: float = 0.05,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """rho times the largest norm of the gradient found within rho > 0; takes second derivatives."""
    weights = [p for p in parameters if p.requires_grad]

    def size() -> Tensor:
        return _norm(torch.autograd.grad(loss(), weights, create_graph=True, materialize_grads=True))

    return rho * _highest(size, weights, rho, steps, generator)


def sphere_flatness(
    loss: Loss, parameters: Iterable[Tensor], rho: float, draws: int = 100, generator: torch.Generator | None = None
) -> float:
    """The mean change of the loss at random weights rho > 0 away."""
    positive("rho", rho)
    generator = resolve(generator)
    with _moving(parameters) as weights, torch.no_grad():
        start, base = [p.clone() for p in weights], loss()
        changes = []
        for _ in range(at_least("draws", draws, 1)):
            _put(weights, start, [rho * part for part in _direction(weights, generator)])
            changes.append((loss() - base).abs())
        return float(torch.stack(changes).mean())
