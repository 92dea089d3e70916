"""What a method trains beside the user's network: modules with an optimiser of their own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Beside:
    """Modules trained on the gradients that the backward pass of the user's own loop brings.

    modules: by name. make: gives the optimiser for their weights; None: Adam with a rate of 1e-3, until `like` shows
    the user's.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.modules = nn.ModuleDict(dict(modules))
        self._make = make or partial(torch.optim.Adam, lr=1e-3)
        self.optimizer: torch.optim.Optimizer | None = None
        self._lead: torch.optim.Optimizer | None = None
        self._found: dict[int, Any] = {}
        self._scale = torch.zeros((), device=next(self.modules.parameters()).device, requires_grad=True)

    def to(self, device: torch.device) -> None:
        """Move the modules to where the network is; what their optimiser has gathered follows."""
        if self._scale.device == device:
            return
        self.modules.to(device)
        self._scale = torch.zeros((), device=device, requires_grad=True)
        if self.optimizer is not None:
            self._use(self.optimizer)

    def like(self, optimizer: Any) -> None:
        """From now on step with an optimiser of the kind and settings of the given one, and at its rate.

        What is no optimiser of PyTorch changes nothing.
        """
        lead = getattr(optimizer, "optimizer", optimizer)  # wrappers of Fabric and others
        if lead is self._lead or not isinstance(lead, torch.optim.Optimizer):
            return
        taken = inspect.signature(type(lead)).parameters
        settings = {name: value for name, value in lead.defaults.items() if name in taken}
        self._lead = lead
        self._use(type(lead)(self.modules.parameters(), **settings))

    def watch(self, loss: Tensor) -> Tensor:
        """The same loss; its backward pass tells by what it was multiplied, as scalers for 16 bits do."""
        return loss + (self._scale - self._scale.detach()).to(loss.dtype)

    def backward(self, loss: Tensor) -> None:
        """Bring the gradients of `loss` for these modules, and for nothing else."""
        torch.autograd.backward(self.watch(loss), inputs=[*self.modules.parameters(), self._scale])

    @torch.no_grad()
    def step(self, rate: float | None = None) -> None:
        """A step on the gradients that have come since the last one; nothing without them.

        rate: None is the user's optimiser's, or that of `make`.
        """
        if self._scale.grad is None:
            return
        optimizer = self.optimizer or self._use(self._make(list(self.modules.parameters())))
        if rate is None and self._lead is not None:
            rate = self._lead.param_groups[0]["lr"]
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for weight in self.modules.parameters():
            if weight.grad is not None:  # scalers let gradients overflow now and then
                weight.grad.div_(self._scale.grad).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._scale.grad = None

    def _gathered(self) -> dict[int, Any]:
        return self._found if self.optimizer is None else self.optimizer.state_dict()["state"]

    def _use(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Go on with this optimiser and what has been gathered so far."""
        optimizer.load_state_dict({"state": self._gathered(), "param_groups": optimizer.state_dict()["param_groups"]})
        self.optimizer = optimizer
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        state = {str(number): dict(values) for number, values in self._gathered().items()}
        return {"weights": dict(self.modules.state_dict()), "optimizer": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["weights"])
        self._found = {int(number): copy.deepcopy(dict(values)) for number, values in state["optimizer"].items()}
        self.optimizer = self._lead = None


def linear(inputs: int, outputs: int, std: float, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """A linear layer of float32 on the CPU with normal weights and zero bias; global random state is not touched."""
    layer = nn.Linear(inputs, outputs, bias, device="meta", dtype=torch.float32).to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(outputs, inputs, generator=generator, device=generator.device))
        if bias:
            layer.bias.zero_()
    return layer


def mlp(inputs: int, outputs: int, hidden: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers of the given hidden widths with ReLU between them, as `linear` makes them.

    The weights have the variance 1 / (3 inputs) of PyTorch's own.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden, outputs)):
        layers += [linear(before, after, (3 * before) ** -0.5, generator), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
