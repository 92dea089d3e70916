"""Batch statistics of a merged network: they are no mean of the parents' and are taken again from data.

Cost: one forward pass over some inputs. Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..patches import evaluating

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def recalibrate(model: nn.Module, inputs: Iterable[Any]) -> nn.Module:
    """Set the running statistics of all batch normalisation, in place, to the mean over these batches; gives the model.

    inputs: batches x that `model(x)` takes, of at least two samples each. Dropout stays off. ValueError without data.
    """
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.train()
        try:
            for x in inputs:
                model(x)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise ValueError("inputs must hold at least one batch")
    return model
