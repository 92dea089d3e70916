"""Methods made of methods: one of several each step."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .checks import in_unit
from .method import Method, Setup
from .random import uniform


class _OneOf(Method):
    """Each step belongs to one of `methods`; the choice is made when the rows are asked for, else at the loss."""

    def __init__(self, methods: Sequence[Method]) -> None:
        if not methods or not all(isinstance(m, Method) for m in methods):
            raise ValueError(f"methods must be a non-empty sequence of Methods, got {methods!r}")
        self.methods = list(methods)
        self.needs = tuple(dict.fromkeys(column for m in methods for column in m.needs))
        self._chosen: deque[int] = deque()
        self._drawn = 0
        self._used = 0

    @abstractmethod
    def choose(self, step: int) -> int:
        """The position of the method that makes step `step` (0, 1, ...)."""

    def on_setup(self, given: Setup) -> None:
        self._chosen.clear()
        self._drawn = self._used = 0
        for method in self.methods:
            seed = int(torch.randint(2**62, (1,), generator=self.generator, device=self.generator.device))
            method.setup(
                given.model,
                given.task,
                given.table,
                validation=given.validation,
                steps=given.steps,
                split=given.split,
                generator=torch.Generator(self.generator.device).manual_seed(seed),
            )

    def _draw(self) -> int:
        self._given()
        self._drawn += 1
        return self.choose(self._drawn - 1)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        choice = self._draw()
        self._chosen.append(choice)
        return self.methods[choice].rows(index)

    def _current(self) -> Method:
        choice = self._chosen.popleft() if self._chosen else self._draw()
        self._used += 1
        return self.methods[choice]

    def before_epoch(self) -> None:
        """Forget choices made for batches that were never trained on: a loader may have fetched ahead."""
        self._chosen.clear()
        self._drawn = self._used
        for method in self.methods:
            method.before_epoch()

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        if not model.training:
            return self.plain_loss(model, Batch.of(batch).alone)
        return self._current().loss(model, batch, **streams)

    def step(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, *args: Any, **kw: Any) -> Tensor:
        return self._current().step(model, batch, optimizer, *args, **kw)

    def after_step(self) -> None:
        super().after_step()
        for method in self.methods:
            method.after_step()

    def after_epoch(self) -> None:
        for method in self.methods:
            method.after_epoch()

    def state_dict(self) -> dict[str, Any]:
        children = {str(i): m.state_dict() for i, m in enumerate(self.methods)}
        return {**super().state_dict(), "used": self._used, "methods": children}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._drawn = self._used = int(state["used"])
        self._chosen.clear()
        for i, method in enumerate(self.methods):
            method.load_state_dict(state["methods"][str(i)])


class Choose(_OneOf):
    """Each step one of `methods`, drawn with `probabilities` (default: equal; they must sum to 1)."""

    def __init__(self, methods: Sequence[Method], probabilities: Sequence[float] | None = None) -> None:
        super().__init__(methods)
        weights = [1 / len(self.methods)] * len(self.methods) if probabilities is None else list(probabilities)
        if len(weights) != len(self.methods) or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"probabilities must be {len(self.methods)} numbers >= 0 that sum to 1, got {weights}")
        self.probabilities = weights

    def choose(self, step: int) -> int:
        point, cumulated = float(uniform(1, generator=self.generator)), 0.0
        for position, weight in enumerate(self.probabilities):
            cumulated += weight
            if point < cumulated:
                return position
        return max(i for i, weight in enumerate(self.probabilities) if weight > 0)


class Alternate(_OneOf):
    """Strictly in turn: step t belongs to methods[t mod n]."""

    def choose(self, step: int) -> int:
        return step % len(self.methods)


class Until(_OneOf):
    """`first` for the first `share` of all planned steps, then `then`; needs setup(..., steps=...)."""

    def __init__(self, first: Method, then: Method, share: float) -> None:
        super().__init__([first, then])
        self.share = in_unit("share", share)

    def on_setup(self, given: Setup) -> None:
        if given.steps is None:
            raise ValueError("this schedule is a share of the whole training: pass setup(..., steps=planned steps)")
        self._switch = round(self.share * given.steps)
        super().on_setup(given)

    def choose(self, step: int) -> int:
        return 0 if step < self._switch else 1
