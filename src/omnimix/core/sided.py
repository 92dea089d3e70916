"""Methods that train modules of their own beside the user's network, made when the first batch shows their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .method import Method, Setup
from .side import Beside
from .split import Split, evaluating, observe
from .tree import tree_map


class Sided(Method):
    """Base of methods with side modules; combine it with others: `class Mine(Sided, Other)`.

    Subclasses define `build`, take the modules from `beside(model, x)` and return `self.side.watch(loss)`. The modules
    step in `after_step`, by `optimizer` where that is overridden, else as the user's optimiser as `step` shows it.
    """

    one_process = True
    side: Beside | None = None
    _lead: Any = None

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        """The side modules, new. sizes: features of the head's input as "head input", channels of each tap by name."""
        raise NotImplementedError

    def observed(self) -> tuple[str, ...]:
        """Names of the modules of the network whose channels `build` asks for."""
        return ()

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    """Makes the optimiser of the side modules; None: like the user's."""

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.split = given.split or Split(given.model)
        self.side, self._lead = None, None
        self.sizes: dict[str, int] = {}

    def beside(self, model: nn.Module, x: Any) -> Beside:
        """The side modules, where the network is."""
        if self.side is None:
            self._begin(self.measure(model, x))
        assert self.side is not None
        self.side.to(next(self.split.model.parameters()).device)
        return self.side

    def _begin(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.side = Beside(self.build(self.sizes), self.optimizer)

    @torch.no_grad()
    def measure(self, model: nn.Module, x: Any) -> dict[str, int]:
        """What `build` is told, from a pass of the first row of x that leaves no trace."""
        one = tree_map(lambda t: t[:1], x)
        with evaluating(model), observe(self.split.model, *self.observed()) as seen:
            features, _ = self.split.features_and_output(one, model)
        return {"head input": features[0].numel(), **{name: seen[name].shape[1] for name in self.observed()}}

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        self.follow(optimizer)
        return super().step(model, batch, optimizer, backward, clip, **streams)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        self._lead = optimizer

    def after_step(self) -> None:
        if self.side is not None:
            if self.optimizer is None and self._lead is not None:
                self.side.like(self._lead)
            self.side.step()
        self._lead = None
        super().after_step()

    def state_dict(self) -> dict[str, Any]:
        beside = {} if self.side is None else {"sizes": self.sizes, "side": self.side.state_dict()}
        return {**super().state_dict(), **beside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.side = None
        if "side" in state:
            self._begin(state["sizes"])
            assert self.side is not None
            self.side.load_state_dict(state["side"])
        super().load_state_dict(state)
