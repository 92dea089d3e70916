"""Batch-norm statistics that fit weights which no training step has seen, such as averages of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .companion import fitting
from .random import permutation, uniform
from .split import evaluating
from .tree import Tree, tensors, tree_map

ROWS = 2048
"""Samples from which statistics are taken unless a number is given."""


def moving_norms(model: nn.Module) -> list[str]:
    """The names of the batch-norm layers whose running statistics a training pass would move now."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [name for name, layer in layers if layer.training and layer.running_mean is not None]


def some_rows(batches: Iterable[Batch], count: int, generator: torch.Generator) -> Tree:
    """The inputs of at most `count` rows of the batches, any equally likely, in random order."""
    kept, keys = None, torch.empty(0, dtype=torch.float64)
    for batch in batches:
        new = uniform(len(batch), generator=generator).cpu()
        both = torch.cat((keys, new))
        stay = both.argsort()[:count]
        if int(stay.max()) < len(keys):  # none of the new ones
            continue
        x = batch.alone.x
        kept = _at(x if kept is None else _joined(kept, x), stay)
        keys = both[stay]
    if kept is None:
        raise ValueError("there are no training batches to take batch-norm statistics from")
    return _at(kept, permutation(len(keys), generator))


def _at(tree: Tree, rows: Tensor | slice) -> Tree:
    return tree_map(lambda t: t[rows.to(t.device) if isinstance(rows, Tensor) else rows], tree)


def _joined(first: Tree, second: Tree) -> Tree:
    other = tensors(second)
    return tree_map(lambda t: torch.cat((t, next(other))), first)


@torch.no_grad()
def refresh_norms(model: nn.Module, names: Sequence[str], x: Tree, size: int = 64) -> None:
    """Replace the running statistics of these batch-norm layers by the mean over batches of `size` rows of x.

    All else is in evaluation mode meanwhile: nothing draws random numbers. A last row alone joins the batch before it.
    """
    layers = [model.get_submodule(name) for name in names]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    count = len(next(tensors(x)))
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()  # type: ignore[operator]
            layer.momentum, layer.training = None, True  # type: ignore[assignment]
        try:
            for start, stop in zip(starts, [*starts[1:], count], strict=True):
                model(fitting(model, _at(x, slice(start, stop))))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
