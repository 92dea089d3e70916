"""A pass through a wrapper of a network whose loss may be differentiated before the backward pass of the step."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


class Inside(nn.Module):
    """`model`, a wrapper of `network`, giving the same outputs without what guards their backward pass.

    Wrappers that train in 16 bits (those of Fabric) let nothing but their own backward pass through their outputs. For
    methods whose loss is made of gradients: they are taken of the output as it leaves the network, in the wrapper's
    type. A wrapper without guards is used as it is.
    """

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.model, self.network = model, network
        self.training = model.training

    def forward(self, x: Any) -> Tensor:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            kept.append(output)
            return output.view_as(output)  # the guard goes to this one

        handle = self.network.register_forward_hook(keep)
        try:
            output = cast(Tensor, self.model(x))
        finally:
            handle.remove()
        return kept[-1].to(output.dtype) if kept and output._backward_hooks else output
