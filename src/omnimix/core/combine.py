"""Methods made of methods: one of several each step, one after the other, or one several times on the same batch."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .checks import at_least, in_unit
from .method import Method, Setup
from .random import uniform
from .recipe import sum_of
from .tree import tree_map


class _OneOf(Method):
    """Each step belongs to one of `methods`; the choice is made when the rows are asked for, else at the loss."""

    def __init__(self, methods: Sequence[Method]) -> None:
        if not methods or not all(isinstance(m, Method) for m in methods):
            raise ValueError(f"methods must be a non-empty sequence of Methods, got {methods!r}")
        for method in methods:
            _combinable(method)
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
        equal = [1 / len(self.methods)] * len(self.methods)
        self.probabilities = _parts("probabilities", equal if probabilities is None else probabilities, self.methods)

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


class Schedule(_OneOf):
    """One after the other: each method for its share of all planned steps; needs setup(..., steps=...).

    shares: a number >= 0 for each of `methods`, in order; they must sum to 1.
    """

    def __init__(self, methods: Sequence[Method], shares: Sequence[float]) -> None:
        super().__init__(methods)
        self.shares = _parts("shares", shares, self.methods)

    def on_setup(self, given: Setup) -> None:
        if given.steps is None:
            raise ValueError("this schedule is a share of the whole training: pass setup(..., steps=planned steps)")
        self._ends = [round(end * given.steps) for end in itertools.accumulate(self.shares)]
        super().on_setup(given)

    def choose(self, step: int) -> int:
        last = max(i for i, share in enumerate(self.shares) if share > 0)
        return next((i for i, end in enumerate(self._ends) if step < end), last)


class Until(Schedule):
    """`first` for the first `share` of all planned steps, then `then`; needs setup(..., steps=...)."""

    def __init__(self, first: Method, then: Method, share: float) -> None:
        super().__init__([first, then], [in_unit("share", share), 1.0 - share])
        self.share = share


class Repeat(Method):
    """Each batch `times` times over, mixed anew each time; the losses are averaged.

    `Repeat(Choose([Mixup(), CutMix()]))` mixes each batch in two ways that are drawn. times >= 1. ValueError for
    methods that make more of a step than the gradient of a loss, and for those that choose other samples to train on.
    """

    def __init__(self, method: Method, times: int = 2) -> None:
        if not isinstance(method, Method) or not _one_loss(method):
            raise ValueError(
                f"method must be a Method whose step is one gradient of its loss, got {method!r}: others cannot be "
                "repeated on a batch"
            )
        _combinable(method)
        self.method, self.times, self.needs = method, at_least("times", times, 1), method.needs
        self.cost = self.times * (method.cost or 1.0)
        self._guests: deque[list[int]] = deque()

    def on_setup(self, given: Setup) -> None:
        self._guests.clear()
        self.method.setup(
            given.model,
            given.task,
            given.table,
            validation=given.validation,
            steps=given.steps,
            split=given.split,
            generator=self.generator,
        )

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [self.method.rows(index) for _ in range(self.times)]
        if any(not torch.equal(anchors, index) for anchors, _ in found):
            raise ValueError(f"{type(self.method).__name__} trains on samples of its own choice: it cannot be repeated")
        guests = [guests for _, guests in found if guests is not None]
        self._guests.append([0 if guests is None else guests.shape[1] for _, guests in found])
        return index, torch.cat(guests, dim=1) if guests else None

    def before_epoch(self) -> None:
        self._guests.clear()
        self.method.before_epoch()

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        batch = Batch.of(batch)
        if not model.training:
            return self.plain_loss(model, batch.alone)
        guests = self._guests.popleft() if self._guests else [0] * self.times
        first = itertools.accumulate(guests, initial=1)
        parts = [_with_guests(batch, at, count) for at, count in zip(first, guests, strict=False)]
        return sum_of(self.method.loss(model, part, **streams) for part in parts) / self.times

    def after_step(self) -> None:
        super().after_step()
        self.method.after_step()

    def after_epoch(self) -> None:
        self.method.after_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._guests.clear()
        self.method.load_state_dict(state["method"])


def _combinable(method: Method) -> None:
    """ValueError for methods whose predictions or whose last weights are those of all of training."""
    own = [name for name in ("predict", "after_training") if getattr(type(method), name) is not getattr(Method, name)]
    if own or method.follows_validation:
        raise ValueError(
            f"{type(method).__name__} predicts or ends training in its own way ({', '.join(own) or 'validation'}): "
            "it cannot be one part of a method, train with it alone"
        )


def _parts(name: str, given: Sequence[float], methods: Sequence[Method]) -> list[float]:
    parts = list(given)
    if len(parts) != len(methods) or min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
        raise ValueError(f"{name} must be {len(methods)} numbers >= 0 that sum to 1, got {parts}")
    return parts


def _one_loss(method: Method) -> bool:
    """Whether a step of the method is one gradient of its loss."""
    if isinstance(method, _OneOf):
        return all(map(_one_loss, method.methods))
    return type(method).step is Method.step


def _with_guests(batch: Batch, first: int, count: int) -> Batch:
    """The anchors of the batch with `count` of its columns of guests, from column `first` on."""
    if not count:
        return batch.alone
    n = len(batch)
    rows = torch.cat((torch.arange(n), torch.arange(first * n, (first + count) * n))).to(batch.device)

    def taken(value: Any) -> Any:
        return None if value is None else tree_map(lambda t: t[rows], value)

    return replace(batch, x=taken(batch.x), y=taken(batch.y), domain=taken(batch.domain), index=taken(batch.index))
