"""Several small networks of one shape as one: their weights lie in stacks, and a layer computes all of them at once.

Inputs are (S, R, width): R rows for each of S runs. What one run computes does not depend on which and how many others
are stacked with it, on one thread bit for bit: see LANES. There are no modules and hooks: for small networks those
take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten)
"""Layers without weights that treat every row by itself; `Flatten` has nothing to do in a table."""
LANES = 16
"""Numbers that the widest registers hold. Optimisers and activations compute what is left over at a tensor's end with
other bits, and where a run lies in the stack would decide which of its weights that is: columns of zeros fill it up.
"""
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

    weights: by the names of the networks' parameters, (S, inputs, outputs) and (S, 1, outputs), outputs filled up with
    zeros to a multiple of LANES.
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
        padding = -layers[0].out_features % LANES
        self._outputs[name] = layers[0].out_features
        weight = self.weights[f"{name}.weight"] = nn.Parameter(_stacked([layer.weight.T for layer in layers], padding))
        bias: nn.Parameter | None = None
        if layers[0].bias is not None:
            rows = [layer.bias.unsqueeze(0) for layer in layers]
            bias = self.weights[f"{name}.bias"] = nn.Parameter(_stacked(rows, padding))

        def product(x: Tensor) -> Tensor:
            out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
            return out.narrow(2, 0, layers[0].out_features) if padding else out

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
        return {name: self.unstacked(name, value.detach(), run) for name, value in self.weights.items()}

    def unstacked(self, name: str, value: Tensor, run: int) -> Tensor:
        """What one run has in a value that is laid out as the weight `name`, as its network has it; copied."""
        own = value[run, :, : self._outputs[name.rpartition(".")[0]]]
        return (own.T if name.endswith("weight") else own[0]).clone(memory_format=torch.contiguous_format)

    def stacked(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `unstacked`, from what all runs have."""
        rows = [value.T if name.endswith("weight") else value.unsqueeze(0) for value in values]
        return _stacked(rows, self.weights[name].shape[2] - rows[0].shape[1])


def _same(x: Tensor) -> Tensor:
    return x


def _stacked(tensors: Sequence[Tensor], padding: int) -> Tensor:
    return F.pad(torch.stack([tensor.detach() for tensor in tensors]), (0, padding))
