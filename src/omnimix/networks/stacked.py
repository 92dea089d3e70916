"""Several small networks of one shape as one: their weights lie in stacks, and a layer computes all of them at once.

Inputs are (S, R, width): R rows for each of S runs. What one run computes depends on how many others are stacked with
it by rounding at most, and on many shapes not at all. There are no modules and hooks: for small networks those take
longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten)
"""Layers without weights that treat every row by itself; `Flatten` has nothing to do in a table."""
Layer = Callable[[Tensor], Tensor]


def stackable(network: nn.Module) -> bool:
    """Whether the network is a plain sequence of linear layers and elementwise ones, for rows (R, width).

    Each is used once, and all weights are trained.
    """
    modules = list(network.modules())
    if not isinstance(network, nn.Sequential) or not all(p.requires_grad for p in network.parameters()):
        return False
    if len(modules) != sum(1 for _ in network.named_modules(remove_duplicate=False)):
        return False
    plain = all(
        type(module).forward is nn.Sequential.forward
        if isinstance(module, nn.Sequential)
        else type(module) in (nn.Linear, *ELEMENTWISE)
        for module in modules
    )
    return plain and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class Stack:
    """Networks that are `stackable` and of one shape, as one function of (S, R, width).

    weights: by the names of the networks' parameters, (S, inputs, outputs) and (S, 1, outputs), two outputs or more.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._layers: list[tuple[Layer, tuple[str, ...]]] = []
        self._outputs: dict[str, int] = {}
        for name, module in networks[0].named_modules():
            if isinstance(module, nn.Sequential):
                continue
            if isinstance(module, nn.Linear):
                alike = [cast(nn.Linear, network.get_submodule(name)) for network in networks]
                self._add(self._linear(name, alike), name, networks[0])
            else:
                self._add(_same if isinstance(module, nn.Flatten) else module.forward, name, networks[0])

    def _add(self, layer: Layer, name: str, network: nn.Module) -> None:
        """Note which modules end with the layer `name`, itself included."""
        ends = [name]
        while name:
            name, _, last = name.rpartition(".")
            if [child for child, _ in network.get_submodule(name).named_children()][-1] != last:
                break
            ends.append(name)
        self._layers.append((layer, tuple(ends)))

    def _linear(self, name: str, layers: Sequence[nn.Linear]) -> Layer:
        # A product with a vector has other bits for one run than for several: it gets a second column of zeros.
        padding = 1 if layers[0].out_features == 1 else 0
        self._outputs[name] = layers[0].out_features
        weight = self.weights[f"{name}.weight"] = _stacked([layer.weight.T for layer in layers], padding)
        bias: Tensor | None = None
        if layers[0].bias is not None:
            bias = self.weights[f"{name}.bias"] = _stacked([layer.bias.unsqueeze(0) for layer in layers], padding)

        def product(x: Tensor) -> Tensor:
            out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
            return out.narrow(2, 0, 1) if padding else out

        return product

    def __call__(self, x: Tensor, rewrite: Mapping[str, Layer] | None = None) -> Tensor:
        """(S, R, outputs). rewrite: functions to put the outputs of modules through, by name."""
        for layer, ends in self._layers:
            x = layer(x)
            if rewrite:
                for name in ends:
                    if name in rewrite:
                        x = rewrite[name](x)
        return x

    def of(self, run: int) -> dict[str, Tensor]:
        """The state dict of one run's network, copied."""
        found = {}
        for name, value in self.weights.items():
            outputs = self._outputs[name.rpartition(".")[0]]
            own = value.detach()[run, :, :outputs]
            found[name] = (own.T if name.endswith("weight") else own[0]).clone(memory_format=torch.contiguous_format)
        return found


def _same(x: Tensor) -> Tensor:
    return x


def _stacked(tensors: Sequence[Tensor], padding: int) -> nn.Parameter:
    return nn.Parameter(F.pad(torch.stack([tensor.detach() for tensor in tensors]), (0, padding)))
