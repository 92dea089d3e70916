"""Exponential moving averages of weights (EMA), for PyTorch's own `AveragedModel`: those that it lacks.

    e_n = d_n e_{n-1} + (1 - d_n) theta_n,   e_0 = theta_0

warm-up "ratio": d_n = min(d, (1 + n) / (10 + n)), as in TensorFlow's moving averages; "unbiased": d_n = d (1 - d^n) /
(1 - d^(n+1)), which makes e_n the mean of theta_0..theta_n with weights proportional to d^(n-k), without the extra
weight of the start (Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980, section 3).
Cost: 1, and a pass over the weights each step.

A constant d, stochastic weight averaging (Izmailov et al., UAI 2018, arXiv:1803.05407), its learning rate and the
statistics of batch normalisation are in `torch.optim.swa_utils`: `get_ema_multi_avg_fn`, `AveragedModel`, `SWALR`,
`update_bn`; after each optimiser step call `update_parameters`, in the end `update_bn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...core.checks import in_unit, one_of

Warmup: TypeAlias = Literal["ratio", "unbiased"]
Average: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def decay_at(n: int, decay: float, warmup: Warmup) -> float:
    """d_n of the module's docstring; n >= 1 models are in the average already."""
    if warmup == "ratio":
        return min(decay, (1 + n) / (10 + n))
    return decay * (1 - decay**n) / (1 - decay ** (n + 1)) if decay < 1 else n / (n + 1)


def ema(decay: float = 0.999, *, warmup: Warmup = "ratio") -> Average:
    """The `multi_avg_fn` of `torch.optim.swa_utils.AveragedModel` for an average with warm-up.

    decay: d in [0, 1]; with 1, "unbiased" is the plain mean (SWA). Buffers of integers, which `use_buffers=True` brings
    along, take the newest value. The average of a model in half precision has to be kept in float32, as
    `AveragedModel(model, multi_avg_fn=ema()).float()`. ValueError for an average in half precision, whose rounding
    would swallow the steps, and for another decay or warm-up.
    """
    in_unit("decay", decay)
    one_of("warmup", warmup, ("ratio", "unbiased"))

    @torch.no_grad()
    def update(averages: Sequence[Tensor], current: Sequence[Tensor], n: Tensor | int) -> None:
        share = 1 - decay_at(int(n), decay, warmup)
        kind = averages[0].dtype  # AveragedModel gives one at a time
        if kind in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the average must be kept in float32, got {str(kind).removeprefix('torch.')}: steps would be lost in "
                "its rounding. Use AveragedModel(model, multi_avg_fn=ema()).float()"
            )
        if kind.is_floating_point or kind.is_complex:
            torch._foreach_lerp_(list(averages), [value.to(kind) for value in current], share)
        else:
            torch._foreach_copy_(list(averages), list(current))

    return update
