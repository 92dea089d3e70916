"""How much the layers of a network do: their gradients, how far they turn the stream, what deleting one costs.

    gradient norm of layer l:  |dL/dtheta_l|_2          angular distance:  arccos(cos(h_l, h_{l+1})) / pi
    block influence:  1 - cos(h_l, h_{l+1})             deletion:  loss without layer l - loss

h_l: input of layer l. Sources: Li, Yin, Liu, "Mix-LN", ICLR 2025, arXiv:2412.13795 (gradient norms, deletion); Gromov
et al., "The Unreasonable Ineffectiveness of the Deeper Layers", ICLR 2025, arXiv:2403.17887 (angular distance); Men et
al., "ShortGPT", 2024, arXiv:2403.03853 (block influence). `blocks` is any sequence of modules whose first argument and
whose output (or its first element) is the stream. Cost: a pass; for deletion one a layer more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def gradient_norms(blocks: Iterable[nn.Module]) -> Tensor:
    """(L,) Euclidean norms of the gradients that the last backward pass left in the blocks, before any clipping.

    The paper divides by their mean over the layers; compare ratios of layers, averaged over several batches, after some
    training: at the start they are all alike. ValueError for a block without gradients.
    """
    norms = []
    for i, block in enumerate(blocks):
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        if not gradients:
            raise ValueError(f"block {i} has no gradients; call this after backward and before they are cleared")
        norms.append(torch.nn.utils.get_total_norm(gradients))
    return torch.stack(norms)


def angular_distances(
    blocks: Sequence[nn.Module], run: Callable[[], Any], *, valid: Tensor | None = None, last: bool = True
) -> Tensor:
    """(L,) in [0, 1]: the mean angle between each block's input and output, over pi.

    run: calls the network once, on a batch whose stream is (B, T, width). valid: (B, T), true where a token is no
    padding; default all. last: the last valid token of every row (the authors' choice), else all of them.
    """
    angles = [2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)) / torch.pi for a, b in _streams(blocks, run)]
    return torch.stack([_mean(angle, valid, last) for angle in angles])


def block_influence(
    blocks: Sequence[nn.Module], run: Callable[[], Any], *, valid: Tensor | None = None, last: bool = False
) -> Tensor:
    """(L,) in [0, 2]: the mean of 1 - cos between each block's input and output; arguments as `angular_distances`."""
    return torch.stack([_mean((a - b).square().sum(-1) / 2, valid, last) for a, b in _streams(blocks, run)])


@torch.no_grad()
def deletion_costs(blocks: Sequence[nn.Module], loss: Callable[[], float]) -> list[float]:
    """How much `loss()` rises when each block in turn hands its input on. The network is unchanged afterwards.

    Where Post-LN layers change into Pre-LN ones, the first of the latter sets the scale of the stream: its cost is high
    whatever it computes.
    """
    whole, costs = float(loss()), []
    for block in blocks:
        handle = block.register_forward_hook(_skip)
        try:
            costs.append(float(loss()) - whole)
        finally:
            handle.remove()
    return costs


def _skip(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


@torch.no_grad()
def _streams(blocks: Sequence[nn.Module], run: Callable[[], Any]) -> list[tuple[Tensor, Tensor]]:
    """Unit vectors of each block's input and output."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        seen[id(module)] = (_unit(args[0]), _unit(after))

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(record).remove)
        run()
    missing = [i for i, block in enumerate(blocks) if id(block) not in seen]
    if missing:
        raise ValueError(f"run must call every block, it did not call {missing}")
    return [seen[id(block)] for block in blocks]


def _unit(h: Tensor) -> Tensor:
    return nn.functional.normalize(h.detach().to(torch.promote_types(h.dtype, torch.float32)), dim=-1)


def _mean(values: Tensor, valid: Tensor | None, last: bool) -> Tensor:
    """The mean of (B, T) over the valid tokens, or over each row's last."""
    taken = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.to(values.device).bool()
    if taken.shape != values.shape:
        raise ValueError(f"valid must have the shape {tuple(values.shape)} of the tokens, got {tuple(taken.shape)}")
    if not taken.any(dim=1).all():
        raise ValueError("valid must leave at least one token in every row")
    if last:
        taken = taken & (taken.flip(1).cumsum(1).flip(1) == 1)
    return values[taken].mean()
