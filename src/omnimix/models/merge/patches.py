"""What linear and convolution layers multiply their weights with, row by row: the inputs of least-squares merging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def solvable(layer: nn.Module) -> bool:
    """Whether the outputs are a matrix times the rows of `patches`: linear, and 2-d convolutions of one group."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(N, in) rows in float64, for all examples and positions; in is that of `layer.weight.flatten(1)`."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2).double()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    found = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return found.transpose(1, 2).flatten(0, 1).double()


def outputs(layer: nn.Module, y: Tensor) -> Tensor:
    """(N, out) rows in float64 of the layer's output, in the order of `patches`."""
    return (y.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else y).flatten(0, -2).double()


Seen = Callable[[str, nn.Module, Tensor, Tensor], None]
"""Called with the name of a layer, itself, its input and its output."""


@contextmanager
def watching(model: nn.Module, layers: dict[str, nn.Module], seen: Seen) -> Iterator[None]:
    """In the block, the model is in evaluation mode, without gradients, and its layers tell what they see."""

    def watch(name: str) -> Any:
        return lambda layer, given, out: seen(name, layer, given[0], out)

    with evaluating(model), torch.no_grad():
        handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In the block, all modules are in evaluation mode; afterwards each is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
