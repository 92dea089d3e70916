"""A way of training. A method owns neither the user's model nor the optimiser."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .batch import Batch
from .checks import in_unit
from .objective import LabelPolicy, MixedLoss, Objective
from .operation import Context, Interpolate, Operation
from .pairing import InTable, Pairing, RandomPairing
from .random import integers, resolve, uniform
from .ratio import Beta, Ratio
from .recipe import Mixed, Recipe
from .split import Split
from .table import Table
from .task import Task
from .tree import rows

AHEAD = 16
"""For how many batches partners are drawn at once: their tables should stay in the processor's cache."""


@dataclass(frozen=True)
class Setup:
    """What a method is told before training. steps: the planned number of optimiser steps, where known.

    table holds the training rows; validation the validation rows, under the same column names.
    """

    model: nn.Module
    task: Task
    table: Table | None = None
    validation: Table | None = None
    steps: int | None = None
    split: Split | None = None


class Method:
    """Base of all methods: by itself, empirical risk minimisation.

    Life: `setup(...)` once; then for every step `rows(index)` where the caller owns the sampler, `step(...)` or
    `loss(...)`, and `after_step()`; `after_epoch()` after each pass. All randomness comes from `self.generator`.
    """

    streams: ClassVar[tuple[str, ...]] = ()
    """Names of extra batches that `loss` takes as keyword arguments."""
    needs: tuple[str, ...] = ()
    """Table columns that must be there."""
    transductive: ClassVar[bool] = False
    tasks: tuple[str, ...] = ()
    """What it can train, as registered; () where it was made without a name."""
    cost: float | None = None
    """Gradient evaluations of a step relative to plain training; None: as registered."""
    one_process: ClassVar[bool] = False
    """Whether it trains modules of its own that several processes would not keep alike."""
    samples_ahead: int = 0
    """Of how many samples it takes gradients before the first step."""
    follows_validation: ClassVar[bool] = False
    """Whether it cannot do without `after_validation`."""
    own_step: ClassVar[bool] = False
    """Whether `step` is more than one gradient of `loss` and a step of the user's optimiser."""

    generator: torch.Generator
    given: Setup | None = None
    steps_done: int = 0

    def setup(
        self,
        model: nn.Module,
        task: Task,
        table: Table | None = None,
        *,
        validation: Table | None = None,
        steps: int | None = None,
        split: Split | None = None,
        generator: torch.Generator | None = None,
    ) -> Method:
        """Tell the method what it trains, and with which randomness; returns itself.

        table: per-sample columns of the training set ("label", "domain", "feature") for methods that choose partners
        from all of it. steps: planned optimiser steps, for schedules. generator: None takes omnimix's private one.
        ValueError if the method needs something that is not given.
        """
        if not isinstance(task, Task):
            raise ValueError(f"task must be an omnimix.Task such as Classification(10), got {task!r}")
        if self.tasks and task.name not in self.tasks:
            raise ValueError(f"{type(self).__name__} is for {' and '.join(self.tasks)}, the task is {task!r}")
        for column in self.needs:
            if table is None or column not in table:
                raise ValueError(
                    f"{type(self).__name__} needs the {column!r} of every training sample: "
                    f"pass setup(..., table=omnimix.Table({column}=...))"
                )
        self.given = Setup(model, task, table, validation, steps, split)
        self.generator = resolve(generator)
        self.steps_done = 0
        self.on_setup(self.given)
        return self

    def on_setup(self, given: Setup) -> None:
        """For subclasses: prepare what training needs."""

    @property
    def task(self) -> Task:
        return self._given().task

    def _given(self) -> Setup:
        if self.given is None:
            raise ValueError(f"call {type(self).__name__}.setup(model, task) before training")
        return self.given

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The training rows to load for the anchors `index` (B,): (anchors (B,), guests (B, K - 1) or None)."""
        return index, None

    def batches(self, size: int, steps: int, generator: torch.Generator) -> list[Tensor] | None:
        """For methods whose batches have a make-up of their own: the anchors (size or fewer,) of each step of a pass.

        None: the caller's own order. generator: that of the order, the same for all methods.
        """
        return None

    def plan(self, batches: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor | None]]:
        """`rows` of the coming batches, one after the other; a method may draw for many of them at once."""
        return map(self.rows, batches)

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        """The scalar training loss of one batch."""
        return self.plain_loss(model, Batch.of(batch).alone)

    @property
    def mixer(self) -> Mix | None:
        """The Mix whose operation and objective make the loss of steps that `drawn` mixes; None if no step mixes."""
        return None

    @property
    def by_row(self) -> bool:
        """Whether a step is no more than this: `drawn`, the mixer's operation and the mean of its objective.

        None of which looks beyond the rows that mix, so that the batches of several runs can be trained as one.
        """
        return _same(self, Method, "loss", "plain_loss", "step", "predict")

    def drawn(self, batch: Batch) -> Recipe | None:
        """For methods `by_row`: the recipe of the current step, labels included; None: this step does not mix."""
        return None

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of the batch as it is."""
        return self.task.mean_loss(model(batch.x), batch.y)

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        """One optimiser step; returns the detached loss. Methods that need several gradients override it."""
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(model, batch, **streams)
        backward(loss)
        if clip is not None:
            clip()
        optimizer.step()
        return loss.detach()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Told the user's optimiser after the backward pass, by loops that call `loss` rather than `step`."""

    def after_step(self) -> None:
        """Count the step."""
        self.steps_done += 1

    def before_epoch(self) -> None:
        """Called before the rows of a pass over the data are asked for."""

    def after_epoch(self) -> None:
        """Called after every pass over the data."""

    def after_validation(self, loss: float) -> None:
        """Called with the mean validation loss of the present weights, as often as they are validated."""

    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Called once with the weights that are kept, for predictors that need statistics of the training set.

        batches: its rows in order, unaugmented; nothing is loaded unless they are asked for.
        """

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        """The output used for evaluation; never mixed."""
        return cast(Tensor, model(x))

    def predict_in(self, model: nn.Module, x: Any, domain: Tensor) -> Tensor:
        """The output used for validation where the domains (B,) of the rows are known, seen in training or not."""
        return self.predict(model, x)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs: nested dicts of tensors, numbers and strings."""
        state: dict[str, Any] = {"steps_done": self.steps_done}
        if self.given is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; `setup` comes first."""
        self._given()
        self.steps_done = int(state["steps_done"])
        self.generator.set_state(state["generator"])


def _same(method: Method, base: type[Method], *names: str) -> bool:
    """Whether the method does these as `base` does."""
    return all(getattr(type(method), name) is getattr(base, name) for name in names)


def _by_row(part: Operation | Objective) -> bool:
    """What the class says that defines how it is called: subclasses that call it otherwise say so themselves."""
    caller = next((kind for kind in type(part).__mro__ if "__call__" in vars(kind)), None)
    return caller is not None and bool(vars(caller).get("by_row", False))


class Mix(Method):
    """The composable method: pairing (who), ratio (how much), operation (how), objective (what for).

    Every part has a default, that of mixup: random partners, Beta(1, 1), interpolation, the mixed loss.
    labels: a policy that changes the label shares, after the operation or after the forward pass on what was mixed.
    places: where to mix, "input" or names of hidden taps; one is drawn uniformly each step. probability: the share of
    steps that mix at all.
    """

    labels_from_output: ClassVar[bool] = False
    """Whether `mixed_loss` changes the label shares by what the network gives; policies of labels say so themselves."""

    def __init__(
        self,
        pairing: Pairing | None = None,
        ratio: Ratio | None = None,
        operation: Operation | None = None,
        objective: Objective | None = None,
        *,
        labels: LabelPolicy | None = None,
        places: Sequence[str] = ("input",),
        probability: float = 1.0,
    ) -> None:
        self.pairing = RandomPairing() if pairing is None else pairing
        self.ratio = Beta(1.0) if ratio is None else ratio
        self.operation = Interpolate() if operation is None else operation
        self.objective = MixedLoss() if objective is None else objective
        self.labels = labels
        self.places = _places(places)
        self.probability = in_unit("probability", probability)
        self.split: Split | None = None
        self._shares: deque[Tensor] = deque()
        self._extra: list[Tensor] = []

    def on_setup(self, given: Setup) -> None:
        self._shares.clear()
        if "network" in self.operation.needs:
            self.split = given.split or Split(given.model)
        self.pairing.prepare(given.table, self.generator)
        self.places = self.resolve_places(given)
        if "network" in self.operation.needs and self.places != ("input",):
            raise ValueError(
                f"{type(self.operation).__name__} looks at the inputs through the network, so that it can mix at "
                f"'input' only, got places {self.places}"
            )
        if self._labels_after is not None and self.places != ("input",):
            raise ValueError(
                f"{type(self.labels).__name__} weighs the parts of mixed inputs, so that they are mixed at 'input' "
                f"only, got places {self.places}"
            )

    def resolve_places(self, given: Setup) -> tuple[str, ...]:
        """The places to draw from, once the network is known; names that are no taps are refused."""
        if self.places == ("input",):
            return self.places
        self.split = given.split or Split(given.model)
        for name in self.places:
            if name != "input":
                self.split._check("tap", name)
        return self.places

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return index, self.pairing.rows(index, self.generator)

    def plan(self, batches: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor | None]]:
        self._shares = deque(self.ratio.ahead(len(batches), self.pairing.k, self.generator))
        if type(self).rows is not Mix.rows or not isinstance(self.pairing, InTable):
            yield from super().plan(batches)
            return
        for start in range(0, len(batches), AHEAD):
            some = batches[start : start + AHEAD]
            guests = self.pairing.rows(torch.cat(list(some)), self.generator)
            yield from zip(some, torch.split(guests, [len(index) for index in some]), strict=True)

    def recipe(self, batch: Batch) -> Recipe | None:
        """Draw who is mixed with whom, how much and where; None: this step does not mix."""
        if not self.draw_whether():
            return None
        partner = self.pairing(batch, self.generator)
        share = self.draw_share(len(batch), partner.shape[1]).to(batch.device, non_blocking=True)
        return Recipe(partner, share, place=self.draw_place())

    def draw_whether(self) -> bool:
        """Whether the step mixes: the first of the draws of `recipe`, before the partners."""
        return self.probability == 1 or float(uniform(1, generator=self.generator)) < self.probability

    def draw_share(self, rows: int, k: int) -> Tensor:
        """(rows, k) the shares: the draw of `recipe` after the partners."""
        return self._shares.popleft().expand(rows, -1) if self._shares else self.ratio(rows, k, self.generator)

    def draw_place(self) -> str:
        """Where to mix: the last of the draws of `recipe`."""
        if len(self.places) == 1:
            return self.places[0]
        return self.places[int(integers(len(self.places), 1, generator=self.generator))]

    @property
    def mixer(self) -> Mix | None:
        return self

    @property
    def by_row(self) -> bool:
        hooks = ("loss", "mixed_loss", "forward", "mix", "apply", "plain_loss", "step", "predict")
        plain_mean = type(self.objective).mean in (Objective.mean, MixedLoss.mean)
        labels = self.labels is None or self.labels.by_row
        return (
            _same(self, Mix, *hooks) and _by_row(self.operation) and _by_row(self.objective) and plain_mean and labels
        )

    def drawn(self, batch: Batch) -> Recipe | None:
        recipe = self.recipe(batch)
        return recipe if recipe is None or self.labels is None else self.labels(recipe, Context(self.generator))

    def mix(self, batch: Batch, recipe: Recipe) -> Mixed:
        """Mix the inputs of the batch as the recipe says."""
        x, applied = self.apply(batch.x, recipe, batch.y)
        return Mixed(x, batch.y, applied)

    def apply(self, x: Any, recipe: Recipe, y: Tensor | None = None) -> tuple[Any, Recipe]:
        """The operation and the label policy on inputs, with their targets y, or on activations at a tap."""
        self._extra = []
        context = self._context(y)
        mixed, applied = self.operation(x, recipe, context)
        return mixed, applied if self.labels is None or self.labels.after else self.labels(applied, context)

    def _context(self, y: Tensor | None) -> Context:
        network = self.split if "network" in self.operation.needs else None
        return Context(self.generator, y, network, None if self.given is None else self.given.task, self._extra)

    @property
    def _labels_after(self) -> LabelPolicy | None:
        """The policy where it comes after the forward pass."""
        return self.labels if self.labels is not None and self.labels.after else None

    def forward(self, model: nn.Module, batch: Batch, recipe: Recipe) -> tuple[Tensor, Recipe]:
        """The network's output on the mixed batch, mixed at `recipe.place`, and the recipe applied."""
        if recipe.place == "input":
            mixed, labels = self.mix(batch, recipe), self._labels_after
            if labels is None:
                return cast(Tensor, model(mixed.x)), mixed.recipe
            with labels.watch(model) as seen:
                output = cast(Tensor, model(mixed.x))
            return output, labels(mixed.recipe, replace(self._context(batch.y), output=output, seen=seen))
        if self.split is None:
            raise ValueError(f"mixing at tap {recipe.place!r} needs setup(model, ...) first")
        applied: list[Recipe] = []
        state = self.generator.get_state()

        def rewrite(h: Tensor) -> Tensor:
            if h.shape[0] != rows(batch.x):
                raise ValueError(
                    f"tap {recipe.place!r} gives {tuple(h.shape)}, but the batch has {rows(batch.x)} rows: mixing "
                    "needs the rows first; choose another tap"
                )
            if applied:  # activation checkpointing recomputes the tap: repeat the same draws
                resumed = self.generator.get_state()
                self.generator.set_state(state)
                h, _ = self.apply(h, recipe)
                self.generator.set_state(resumed)
                return h
            h, done = self.apply(h, recipe)
            applied.append(done)
            return h

        with self.split.rewrite(recipe.place, rewrite):
            output = model(batch.x)
        return cast(Tensor, output), applied[0]

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch)
        recipe = self.recipe(batch) if model.training else None
        if recipe is None:
            return self.plain_loss(model, batch.alone)
        return self.mixed_loss(model, batch, recipe)

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of the batch mixed by `recipe`."""
        output, applied = self.forward(model, batch, recipe)
        loss = self.objective.mean(output, batch.y, applied, self.task)
        while self._extra:
            loss = loss + self._extra.pop()
        return loss

    def state_dict(self) -> dict[str, Any]:
        ahead = {"ahead": torch.cat(list(self._shares))} if self._shares else {}
        return {**super().state_dict(), "missing": self.pairing.missing, **ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.pairing.missing = int(state["missing"])
        self._shares = deque(torch.split(state["ahead"], 1) if "ahead" in state else ())


def _places(places: Sequence[str]) -> tuple[str, ...]:
    if isinstance(places, str) or not places or not all(isinstance(p, str) and p for p in places):
        raise ValueError(f"places must be a non-empty sequence of 'input' and tap names, got {places!r}")
    return tuple(places)
