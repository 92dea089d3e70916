"""The loss of one batch at several weights, with the same random numbers each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .split import norm_policy


class Replay:
    """`loss()` again and again: dropout and draws repeat, and only the first pass moves batch-norm statistics.

    model: the network whose random numbers come from PyTorch's generators of the CPU and of its own device.
    generators: others that `loss` draws from. After each call all generators stand where the first pass left them.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], *generators: torch.Generator) -> None:
        self.model, self.loss = model, loss
        own = next(model.parameters()).device
        self.generators = [torch.default_generator, *generators]
        if own.type == "cuda":
            self.generators.append(torch.cuda.default_generators[own.index or 0])
        self.start: list[Tensor] | None = None

    def __call__(self) -> Tensor:
        if self.start is None:
            self.start = [generator.get_state() for generator in self.generators]
            return self.loss()
        now = [generator.get_state() for generator in self.generators]
        self._set(self.start)
        try:
            with norm_policy(self.model, "separate"):
                return self.loss()
        finally:
            self._set(now)

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
