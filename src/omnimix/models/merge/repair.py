"""REPAIR: give the units of a merged network the mean and spread that they have in its parents.

mean = sum_k w_k mean_k, sd = sum_k w_k sd_k for every channel before its activation function: averaged networks, even
aligned ones, lose variance layer by layer. Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation
Repair", ICLR 2023, arXiv:2211.08403. Networks with batch normalisation have their statistics taken again ("RESET").
Cost: one forward pass of each network over some inputs; no labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .linear import checked_weights
from .matching.recalibrate import NORMS, recalibrate
from .patches import evaluating, outputs, solvable, watching

SMALLEST = 1e-6
"""Channels of less spread than this are left as they are."""


@torch.no_grad()
def repair(
    merged: nn.Module,
    parents: Sequence[nn.Module],
    inputs: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
) -> nn.Module:
    """A repaired copy of `merged`.

    parents: the networks it is the mean of, aligned (units in the order of `merged`). inputs: batches x, gone through
    len(parents) + 1 times. weights: shares of the parents, default equal. Every linear and convolution layer but the
    last is corrected, earlier ones first. ValueError without data, and for layers without a bias where there is no
    batch normalisation.
    """
    shares = checked_weights(weights or [1.0] * len(parents), normalize=True)
    if len(shares) != len(parents):
        raise ValueError(f"weights must be one number a parent: got {len(shares)} for {len(parents)} parents")
    model = copy.deepcopy(merged)
    if any(isinstance(module, NORMS) for module in model.modules()):
        return recalibrate(model, inputs)
    order = _order(model, inputs)
    for name in order[:-1]:
        if model.get_submodule(name).bias is None:
            raise ValueError(f"layer {name!r} has no bias, so that its mean cannot be repaired")
    stats = [statistics(parent, order[:-1], inputs) for parent in parents]
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in order[:-1]}
    mean, spread = (
        {name: torch.stack([w * one[name][i] for w, one in zip(shares, stats, strict=True)]).sum(0) for name in layers}
        for i in (0, 1)
    )
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def corrected(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            rows = outputs(layer, out).cpu()
            found[name].append(torch.stack([rows.mean(0), rows.var(0, unbiased=False)]))
            now, sd = found[name][-1][0], found[name][-1][1].sqrt()
            factor = _factor(spread[name], sd)
            shift = mean[name] - now * factor
            shape = (1, -1, *[1] * (out.dim() - 2)) if isinstance(layer, nn.Conv2d) else (-1,)
            return out * factor.to(out).reshape(shape) + shift.to(out).reshape(shape)

        return hook

    handles = [layer.register_forward_hook(corrected(name)) for name, layer in layers.items()]
    with evaluating(model):
        for x in inputs:
            model(x)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        now, variance = torch.stack(found[name]).mean(0)
        factor = _factor(spread[name], variance.sqrt())
        layer.weight.mul_(factor.to(layer.weight).reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias.double().cpu() - now) * factor + mean[name])
    return model


def _factor(wanted: Tensor, have: Tensor) -> Tensor:
    return torch.where(have > SMALLEST, wanted / have.clamp(min=SMALLEST), torch.ones_like(have))


def _order(model: nn.Module, inputs: Sequence[Any]) -> list[str]:
    """The layers in the order in which they run."""
    ran: dict[str, None] = {}
    layers = {name: module for name, module in model.named_modules() if solvable(module)}
    for x in inputs:
        with watching(model, layers, lambda name, *_: ran.setdefault(name)):
            model(x)
        return [*ran]
    raise ValueError("inputs must hold at least one batch")


def statistics(model: nn.Module, names: Sequence[str], inputs: Iterable[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation (out,) of the outputs of layers over all samples and positions, float64."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in names}

    def note(name: str, layer: nn.Module, given: Tensor, out: Tensor) -> None:
        rows = outputs(layer, out).cpu()
        one = sums[name]
        one[0], one[1], one[2] = one[0] + len(rows), one[1] + rows.sum(0), one[2] + (rows**2).sum(0)

    with watching(model, {name: model.get_submodule(name) for name in names}, note):
        for x in inputs:
            model(x)
    return {name: (s / n, (q / n - (s / n) ** 2).clamp(min=0).sqrt()) for name, (n, s, q) in sums.items()}
