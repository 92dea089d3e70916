"""Users' loss functions, evaluated per sample."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
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


def _reduction(criterion: Callable[..., Any]) -> str:
    if isinstance(criterion, functools.partial):
        return str(criterion.keywords.get("reduction", "mean"))
    return str(getattr(criterion, "reduction", "mean"))


def aligned(output: Tensor, y: Tensor) -> Tensor:
    """Real-valued targets in the shape of the output: a last dimension of 1 is added or dropped, never broadcast."""
    if y.is_floating_point() and y.ndim + 1 == output.ndim and output.shape[-1] == 1:
        return y.unsqueeze(-1)
    if y.is_floating_point() and y.ndim == output.ndim + 1 and y.shape[-1] == 1:
        return y.squeeze(-1)
    return y


def per_sample(criterion: Callable[..., Any], output: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,) losses: `criterion` without its reduction; other dimensions are averaged, or summed where it sums them.

    weight: of every loss, such as (B, *spatial), before they are averaged.

    ValueError if it gives one number for the batch, from which per-sample shares cannot be recovered.
    """
    losses = _unreduced(criterion)(output, aligned(output, y))
    if not isinstance(losses, Tensor) or losses.ndim == 0 or losses.shape[0] != output.shape[0]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"criterion must give one loss per sample ({output.shape[0]} here), it gave {got}; "
            "use reduction='none', or a function that takes `reduction`"
        )
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))  # sums of halves overflow
    if weight is not None:
        if losses.ndim < 2:
            raise ValueError(
                "label maps are mixed cell by cell: criterion must give a loss for every cell, it gave one per sample"
            )
        losses = losses * weight
    if losses.ndim == 1:
        return losses
    losses = losses.flatten(1)
    return losses.sum(dim=1) if _reduction(criterion) in ("sum", "batchmean") else losses.mean(dim=1)


def total(criterion: Callable[..., Any], losses: Tensor, weight: Tensor | None) -> Tensor:
    """The batch's loss from (B,) losses: their sum or mean, as `criterion` reduces; weight: see `sample_weight`."""
    if _reduction(criterion) == "sum":
        return losses.sum()
    return losses.mean() if weight is None else losses.sum() / weight.sum()


def sample_weight(criterion: Callable[..., Any], y: Tensor, where: Tensor | None = None) -> Tensor | None:
    """(B,) weights by whose sum a mean of class-id losses divides, or None where it divides by the batch size.

    `nn.CrossEntropyLoss`, `nn.NLLLoss`, `F.cross_entropy` and `F.nll_loss` (also as partials) divide by the sum of the
    weights of classes that are not ignored. where: (B, *spatial) weights of the cells of y.
    """
    given: dict[str, Any] = {}
    function = criterion
    while isinstance(function, functools.partial):
        given, function = {**function.keywords, **given}, function.func
    if isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)):
        given = {"weight": function.weight, "ignore_index": function.ignore_index}
    elif function is not F.cross_entropy and function is not F.nll_loss:
        return None
    if y.is_floating_point():
        return None
    kept = y != given.get("ignore_index", -100)
    weight = given.get("weight")
    weight = kept.float() if weight is None else weight[torch.where(kept, y, 0)] * kept
    if where is not None:
        weight = weight * where
    return cast(Tensor, weight.flatten(1).mean(dim=1) if weight.ndim > 1 else weight)
