"""A pass with other weights than the network's own, whose gradients reach the network's own weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def replaced(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block, the modules of `model` compute with the second of each pair (parameter, tensor).

    All that share a parameter do. What is recomputed after the block, as by activation checkpointing, sees the
    parameters themselves.
    """
    new = {id(own): tensor for own, tensor in pairs}
    places = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if id(p) in new]
    try:
        for module, name, own in places:
            module._parameters[name] = new[id(own)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, own in places:
            module._parameters[name] = own
