"""Several hidden layers whose outputs are rewritten at once, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .split import Rewrite, Split


def all_of(model: nn.Module, names: Sequence[str]) -> tuple[str, ...] | None:
    """`names` if the network has modules of all these names."""
    found = {name for name, _ in model.named_modules()}
    return tuple(names) if found.issuperset(names) else None


class Taps:
    """The modules `names` of `model`; None: `published` where it has all of these, else two taps.

    Those are the first two of `split`, or of what `Split` finds. ValueError for names that the network does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str] | None = None,
        split: Split | None = None,
        *,
        published: Sequence[str] = (),
    ) -> None:
        split = split or Split(model)
        if names is None and published:
            names = all_of(model, published)
        self.model, self.names = model, split.taps[:2] if names is None else tuple(names)
        if isinstance(names, str) or not self.names:
            raise ValueError(f"taps must be a non-empty sequence of module names, got {names!r}")
        self._splits = {split._check("tap", name): Split(model, split.head_name) for name in self.names}

    @contextmanager
    def rewrite(
        self, functions: Mapping[str, Rewrite], network: nn.Module | None = None, *, before: bool = False
    ) -> Iterator[None]:
        """Within the block, replace the outputs of these taps by `function(output)`; before: their inputs, likewise.

        network: the one that is evaluated, `model` itself, a wrapper around it or a copy. Modules in training mode
        keep the rules of `Split.rewrite`: one pass in the block.
        """
        host = self.model
        if network is not None and all(module is not host for module in network.modules()):
            host = network
        with ExitStack() as stack:
            for name, function in functions.items():
                module = host.get_submodule(name)
                if host is self.model and module.training:
                    stack.enter_context(self._splits[name].rewrite(name, function, before=before))
                elif before:
                    stack.callback(module.register_forward_pre_hook(_pre_hook(function)).remove)
                else:
                    stack.callback(module.register_forward_hook(_hook(function)).remove)
            yield


def _hook(function: Rewrite) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def rewritten(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return function(output)

    return rewritten


def _pre_hook(function: Rewrite) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def rewritten(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (function(inputs[0]), *inputs[1:])

    return rewritten
