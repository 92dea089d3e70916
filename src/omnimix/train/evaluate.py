"""Scoring a model: plain predictions in evaluation mode, never mixed, and the metrics of the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import Method
from ..core.task import Task
from ..core.tree import Tree, tensors, tree_map
from .metrics import scores
from .parts import Part

ELEMENTS = 2**20
"""Input numbers of one forward pass unless a batch size is given."""


def outputs(
    model: nn.Module, method: Method, part: Part, batch_size: int | None = None, *, by_domain: bool = False
) -> Tensor:
    """(N, outputs) what the method predicts for every row, on the model's device, without gradients.

    batch_size: rows of one forward pass; None takes about a million input numbers. by_domain: the method is told the
    domains of the rows where the part has them, as in validation.
    """
    like = next(model.parameters(), torch.empty(0))

    def ready(value: Tensor) -> Tensor:
        return value.to(like.device, like.dtype if value.is_floating_point() else None, non_blocking=True)

    def predicted(x: Tree, domain: Tensor | None) -> Tensor:
        x = tree_map(ready, x)
        if domain is None or not by_domain:
            return method.predict(model, x)
        return method.predict_in(model, x, domain.to(like.device))

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            if batch_size is None:
                first = part.x if part.in_memory else part.take(torch.zeros(1, dtype=torch.long))[0]
                batch_size = max(1, ELEMENTS // sum(t[:1].numel() for t in tensors(first)))
            if part.in_memory and batch_size >= len(part):
                return predicted(part.x, part.domain)
            batches = torch.split(torch.arange(len(part), device=part.y.device), batch_size)
            parts = (part.take(index) for index in batches)
            return torch.cat([predicted(x, domain) for x, _, domain in parts])
    finally:
        for module, mode in modes:
            module.training = mode


def predictions(
    output: Tensor, y: Tensor, task: Task, target_scale: Any = None, raw: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Float64 predictions and the targets they are scored against, both on the CPU and in raw units.

    Probabilities for class ids and multi-hot targets; one-hot targets become class ids.
    """
    y = y.cpu()
    prediction = task.predict(output.double().cpu())
    if task.name == "regression":
        y = y.double().reshape(len(y), -1)
        prediction = prediction.reshape(len(y), -1)
        if prediction.shape != y.shape:
            raise ValueError(f"the model gives {prediction.shape[1]} values a row, the targets have {y.shape[1]}")
        if target_scale is not None:
            offset, scale = (torch.as_tensor(value, dtype=torch.float64).cpu() for value in target_scale)
            prediction = offset + scale * prediction
            # A raw 0 must stay 0, which undoing the normalisation would not give.
            y = offset + scale * y if raw is None else raw.cpu().double().reshape(len(y), -1)
    elif task.name == "classification" and y.is_floating_point():
        if not bool((y.max(dim=1).values == 1).all()):
            raise ValueError("classification is scored against class ids or one-hot targets, not soft ones")
        y = y.argmax(dim=1)
    return prediction, y


def predict(
    model: nn.Module,
    method: Method,
    part: Part,
    task: Task,
    *,
    batch_size: int | None = None,
    target_scale: tuple[Tensor | float, Tensor | float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Predictions for a part and the targets to score them against, as `predictions` gives them.

    target_scale: (offset, scale) where targets were normalised, so that errors are in raw units. ValueError if the
    model gives NaN or infinite outputs.
    """
    output = outputs(model, method, part, batch_size)
    bad = int((~torch.isfinite(output.reshape(len(output), -1))).any(dim=1).sum())
    if bad:
        raise ValueError(f"the model's outputs are NaN or infinite for {bad} of {len(part)} rows; it cannot be scored")
    return predictions(output, part.y, task, target_scale, part.raw)


def evaluate(
    model: nn.Module,
    method: Method,
    part: Part,
    task: Task,
    *,
    batch_size: int | None = None,
    target_scale: tuple[Tensor | float, Tensor | float] | None = None,
) -> dict[str, float]:
    """The metrics of the task on a part: see `metrics.METRICS`; with domains also "worst_domain" and each domain.

    target_scale, errors: see `predict`.
    """
    prediction, y = predict(model, method, part, task, batch_size=batch_size, target_scale=target_scale)
    return scores(task, prediction, y, None if part.domain is None else part.domain.cpu())
