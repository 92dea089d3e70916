"""Users' loss functions, evaluated per sample."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _unreduced(criterion: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(criterion, nn.Module):
        if not hasattr(criterion, "reduction"):
            return criterion
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # type: ignore[assignment]
        return unreduced
    try:
        takes_reduction = "reduction" in inspect.signature(criterion).parameters
    except (TypeError, ValueError):
        takes_reduction = False
    return functools.partial(criterion, reduction="none") if takes_reduction else criterion


def per_sample(criterion: Callable[..., Any], output: Tensor, y: Tensor) -> Tensor:
    """(B,) losses: `criterion` without its reduction, averaged over all dimensions but the first.

    ValueError if it gives one number for the batch, from which per-sample shares cannot be recovered.
    """
    losses = _unreduced(criterion)(output, y)
    if not isinstance(losses, Tensor) or losses.ndim == 0 or losses.shape[0] != output.shape[0]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"criterion must give one loss per sample ({output.shape[0]} here), it gave {got}; "
            "use reduction='none', or a function that takes `reduction`"
        )
    return losses.flatten(1).mean(dim=1) if losses.ndim > 1 else losses


def sample_weight(criterion: Callable[..., Any], y: Tensor) -> Tensor | None:
    """(B,) weights by whose sum a mean-reduced class-id loss divides, or None where it divides by the batch size.

    `nn.CrossEntropyLoss` and `nn.NLLLoss` with class weights or ignored ids divide by the sum of the weights.
    """
    if not isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) or y.is_floating_point():
        return None
    kept = y != criterion.ignore_index
    if criterion.weight is None and bool(kept.all()):
        return None
    weight = torch.ones_like(y, dtype=torch.get_default_dtype())
    if criterion.weight is not None:
        weight = criterion.weight[y.clamp(min=0)]
    weight = weight * kept
    return weight.flatten(1).mean(dim=1) if weight.ndim > 1 else weight
