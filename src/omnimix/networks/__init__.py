"""The small networks that comparisons need, by name; timm's where it is installed."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.checks import at_least
from .by_timm import timm_network
from .mlp import MLP
from .preact_resnet import PreActResNet, preact_resnet18
from .small_cnn import SmallCNN
from .vit import ViT
from .wide_resnet import wide_resnet

__all__ = ["MLP", "NETWORKS", "PreActResNet", "SmallCNN", "ViT", "create", "preact_resnet18", "wide_resnet"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "small-cnn": SmallCNN,
    "preact-resnet18": preact_resnet18,
    "wrn-28-10": partial(wide_resnet, depth=28, k=10),
    "vit": ViT,
}
"""Besides, "wrn-DEPTH-K" and "timm:NAME"."""


def create(
    name: str, input_shape: tuple[int, ...], outputs: int, *, seed: int | None = None, **options: Any
) -> nn.Module:
    """The network `name` for inputs of shape `input_shape` (without the batch) and `outputs` classes or values.

    Its attribute `taps` names the modules after the first two stages; the last module is called "head" (timm: its own
    name). seed: same seed, same weights, and the caller's random state is left alone; None draws the weights from
    PyTorch's global state. options: those of the network. ValueError for unknown names and options.
    """
    at_least("outputs", outputs, 1)
    build, known = _builder(name)
    if known is not None:
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"{name} has no option {option!r}{hint} It takes: {', '.join(known) or 'none'}")
    with ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.device("cpu"))
            torch.default_generator.manual_seed(at_least("seed", seed, 0))
        return build(tuple(input_shape), outputs, **options)


def _builder(name: str) -> tuple[Callable[..., nn.Module], list[str] | None]:
    """(function of shape and outputs, names of its options; None: any)."""
    if name.startswith("timm:"):
        return partial(timm_network, name.removeprefix("timm:")), None
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        return partial(wide_resnet, depth=int(wide[1]), k=int(wide[2])), ["dropout"]
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(f"there is no network {name!r}{hint} All: {', '.join(NETWORKS)}, wrn-DEPTH-K, timm:NAME")
    return NETWORKS[name], list(inspect.signature(NETWORKS[name]).parameters)[2:]
