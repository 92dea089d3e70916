"""Several runs trained as one: stacked weights, one batch of all their batches, one step for all.

Small networks spend their time between operations, not in them. Each run keeps its own data, order, generator, draws,
validation and selected weights, so it gives what `fit` gives it alone, whatever runs beside it, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.method import Method, Mix
from ..core.operation import Context
from ..core.pairing import InTable, RandomPairing
from ..core.random import permutation
from ..core.recipe import Recipe, guest_layout
from ..networks.stacked import Stack, stackable
from .budget import Budget
from .checkpoint import describe
from .evaluate import ELEMENTS
from .loop import Alone, Fit, TrainingError, _check, _optimizer, _Run, _setup
from .parts import Data, Part
from .quick import quick_backward

Progress = Callable[[int, int], None]
_Drawn = tuple[Recipe | None, Sequence[str | None]]
"""The recipe of all runs' rows, None if no run mixes, and where each mixes, None for those that do not."""
_CPU = Alone(torch.device("cpu"))


def can_train_together(method: Method, model: nn.Module, data: Data, budget: Budget) -> bool:
    """Whether runs like this one can share a process: row-wise mixing, a plain MLP, tables in memory, one CPU."""
    mixer = method.mixer
    one_place = mixer is None or len(mixer.places) == 1 or not isinstance(mixer.pairing, InTable)
    parts = [part for part in (data.train, data.valid) if part is not None]
    tables = all(isinstance(part.x, Tensor) and part.x.ndim == 2 for part in parts)
    here = budget.devices == 1 and budget.precision == "32-true" and budget.accelerator in ("auto", "cpu")
    return method.by_row and one_place and tables and here and not budget.augment and stackable(model)


def same_shapes(data: Sequence[Data]) -> bool:
    """Whether the parts that are trained and validated on agree in shape and type from run to run."""

    def shape(part: Part | None) -> Any:
        return part and [(t.shape, t.dtype) for t in (part.x, part.y)]

    return all(shape(d.train) == shape(data[0].train) and shape(d.valid) == shape(data[0].valid) for d in data)


def shared(method: Method) -> Any:
    """The settings of a method that runs must have in common to train together; each draws by its own pairing, ratio,
    probability, places and label policy.
    """
    mixer = method.mixer
    if mixer is None:
        return describe(method)
    kinds = [type(part).__qualname__ for part in (method, mixer, mixer.pairing, mixer.labels)]
    return [*kinds, mixer.pairing.k, describe(mixer.operation), describe(mixer.objective)]


def but_for_rates(budget: Budget) -> Budget:
    """What budgets must have in common for runs to train together."""
    return replace(budget, lr=1.0, weight_decay=0.0)


def fit_together(
    methods: Sequence[Method],
    models: Sequence[nn.Module],
    data: Sequence[Data],
    budgets: Budget | Sequence[Budget],
    *,
    seeds: Sequence[int],
    checkpoints: Sequence[Path] | None = None,
    checkpoint_every: float = 30.0,
    progress: Progress | None = None,
) -> list[Fit | Exception]:
    """Train S runs of one kind (S methods made alike, S networks of one shape); see `fit` for what each gives.

    Every run must be one that `can_train_together`, all of `same_shapes`; tasks, networks, and what mixes and makes the
    loss must be set up alike. Parameters of pairings and ratios may differ, and learning rates and weight decays if
    `budgets` holds one a run. Else ValueError. A run whose loss becomes NaN, or whose validation metric is undefined,
    is returned as the error that `fit` raises, and the others go on. Times are a run's share of the whole.
    checkpoints: a file for each run, such as `fit` writes and continues from: runs may be grouped otherwise, or trained
    alone, when they go on. They stay when training is over. progress: called with (epochs done, all epochs).
    """
    each = [budgets] * len(methods) if isinstance(budgets, Budget) else list(budgets)
    for method, model, part, budget in zip(methods, models, data, each, strict=True):
        _check(method, part, budget)
        if not can_train_together(method, model, part, budget):
            raise ValueError(f"runs of {type(method).__name__} on {type(model).__name__} cannot be trained together")
    alike = {
        "methods": [*map(shared, methods)],
        "networks": [*map(str, models)],
        "tasks": [repr(d.task) for d in data],
        "budgets": [*map(but_for_rates, each)],
    }
    for name, values in alike.items():
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} must be set up alike to be trained together; train these runs one by one")
    if not same_shapes(data):
        raise ValueError("data must agree in shape from run to run to be trained together; train them one by one")
    paths = [None] * len(methods) if checkpoints is None else checkpoints
    with torch.random.fork_rng(devices=[]):
        members = [
            _Member(method, model, part, budget, seed, path)
            for method, model, part, budget, seed, path in zip(methods, models, data, each, seeds, paths, strict=True)
        ]
        groups: dict[int, list[_Member]] = {}
        for member in members:
            groups.setdefault(len(member.history), []).append(member)
        for number, group in enumerate(groups.values()):
            _Together(group, checkpoint_every, _share(progress, number, len(groups))).train()
        return [member.result() for member in members]


def _share(progress: Progress | None, number: int, groups: int) -> Progress | None:
    """Progress of a group, those before it being done."""
    if progress is None or groups == 1:
        return progress
    return lambda done, total: progress(number * total + done, groups * total)


class _Member(_Run):
    """One of the runs; while it trains, its weights lie in a stack."""

    def __init__(
        self, method: Method, model: nn.Module, data: Data, budget: Budget, seed: int, path: Path | None
    ) -> None:
        super().__init__(_CPU, method, model, data, budget, seed, path, math.inf, None)
        self.parts = [data.train, data.valid]
        self.error: Exception | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self._seed(0)
        _setup(method, model, data, budget, seed, rank=0)
        if path is not None:
            self.configuration = self._configuration()
            state = self._read(path)
            if state is not None:  # as `fit` wrote it, or the stack it was in
                model.load_state_dict(state["model"])
                self.optimizer_state = state["optimizer"]

    def enter(self, stack: Stack, place: int) -> None:
        self.stack, self.place = stack, place

    def weights(self) -> dict[str, Tensor]:
        return self.stack.of(self.place)

    def result(self) -> Fit | Exception:
        if self.error is not None:
            return self.error
        self.model.load_state_dict(self.weights())
        try:
            return self._finish()
        except TrainingError as error:
            return error


class _Lane:
    """The optimiser of runs that lie side by side in the stack and share learning rate and weight decay."""

    def __init__(self, members: Sequence[_Member], stack: Stack) -> None:
        self.members, self.first, self.budget = members, members[0].place, members[0].budget
        self.rows = slice(self.first, self.first + len(members))
        self.stacked = list(stack.weights.values())
        self.all = len(members) == len(self.stacked[0])
        self.weights = self.stacked if self.all else [nn.Parameter(w.detach()[self.rows]) for w in self.stacked]
        self.optimizer = _optimizer(self.budget, self.weights, _CPU.device)

    def at(self, epoch: int) -> None:
        """Set the learning rate of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.budget.rate(epoch)

    def step(self) -> None:
        """Step by the gradients of the stack."""
        if not self.all:
            for weight, stacked in zip(self.weights, self.stacked, strict=True):
                weight.grad = None if stacked.grad is None else stacked.grad[self.rows]
        self.optimizer.step()


class _Step(NamedTuple):
    """One step of all runs: B anchors each, and K - 1 guests an anchor where partners come from the whole table.

    x: (S, K * B, ...), of each run the anchors, then the first guests, and so on. y: (K * S * B, ...), the anchors of
    all runs, then the first guests of all runs, and so on; the recipe names these rows, and is None if no run mixes.
    places: where each run mixes; None for those that do not in this step.
    """

    x: Tensor
    y: Tensor
    anchors: int
    recipe: Recipe | None
    places: Sequence[str | None]


class _Together:
    """Trains runs that have come equally far."""

    def __init__(self, members: Sequence[_Member], every: float, progress: Progress | None) -> None:
        self.members = sorted(members, key=_rates)
        self.budget, self.every, self.progress = but_for_rates(members[0].budget), every, progress
        self.task = members[0].data.task
        self.stack = Stack([member.model for member in self.members])
        for place, member in enumerate(self.members):
            member.enter(self.stack, place)
        self.epochs = len(members[0].history)

    def train(self) -> None:
        self.x = torch.cat([member.data.train.x for member in self.members])
        self.y = torch.cat([member.data.train.y for member in self.members])
        self.mixer = self.members[0].method.mixer
        self.context = Context(torch.Generator())  # what is `by_row` draws nothing
        self.blind = _blind(self.members[0].method)
        self.lanes = [_Lane(list(some), self.stack) for _, some in groupby(self.members, key=_rates)]
        self.backward = quick_backward()
        self.validation = self._validation_inputs()
        self._resume()
        last_saved, saved = time.perf_counter(), self.epochs > 0
        while self.epochs < self.budget.epochs and any(member.error is None for member in self.members):
            start = time.perf_counter()
            self._epoch(self.epochs)
            self.epochs += 1
            for member in self.members:
                member.seconds += (time.perf_counter() - start) / len(self.members)
            done = self.epochs == self.budget.epochs
            if time.perf_counter() - last_saved >= self.every or (done and saved):
                self._save()
                last_saved, saved = time.perf_counter(), True
            if self.progress is not None:
                self.progress(self.epochs, self.budget.epochs)

    def _epoch(self, epoch: int) -> None:
        for lane in self.lanes:
            lane.at(epoch)
        losses: list[Tensor] = []
        start = time.perf_counter()
        for step in self._fetch(epoch):
            losses.append(self._train(step))
            for member in self.members:
                member.method.after_step()
        for member in self.members:
            member.method.after_epoch()
        seconds = (time.perf_counter() - start) / len(losses) / len(self.members)
        sizes = groupby(losses, key=lambda loss: loss.shape[0])
        runs = len(self.members)
        means = [torch.stack([*some]).view(-1, runs, size // runs).mean(dim=2) for size, some in sizes]
        output = self._validation_outputs()
        for member, own in zip(self.members, torch.cat(means).unbind(1), strict=True):
            member.step_seconds.append(seconds)
            if member.error is not None:
                continue
            try:
                row = {"epoch": epoch + 1, "train_loss": member._finite(own, epoch)}
                found = {} if output is None else member._validated(epoch, output[member.place])
                member.history.append({**row, **found, "lr": member.budget.rate(epoch)})
            except (TrainingError, ValueError) as error:  # the latter: a metric that is undefined for this run
                member.error = error

    def _fetch(self, epoch: int) -> Iterator[_Step]:
        runs, size = len(self.members), len(self.members[0].data.train)
        start = size * torch.arange(runs).view(-1, 1, 1)
        for groups in zip(*(member._groups(member.data.train, epoch) for member in self.members), strict=True):
            rows = torch.stack([torch.stack([_columns(*each) for each in group]) for group in groups], dim=1)
            steps, _, columns, count = rows.shape  # (steps, S, K, B)
            place = rows + start
            x = self.x.index_select(0, place.flatten()).view(steps, runs, columns * count, -1)
            y = self.y.index_select(0, place.transpose(1, 2).flatten()).view(steps, -1, *self.y.shape[1:])
            recipes: Iterable[_Drawn]
            if self.mixer is None:
                recipes = [(None, (None,) * runs)] * steps
            elif self.blind:
                recipes = _drawn_ahead([member.method for member in self.members], steps, count, columns)
            else:
                labels = y.view(steps, columns, runs, count, *self.y.shape[1:])
                recipes = (self._drawn(x[j], labels[j], rows[j], count) for j in range(steps))
            for own, target, (recipe, places) in zip(x.unbind(), y.unbind(), recipes, strict=True):
                yield _Step(own, target, count, recipe, places)

    def _drawn(self, x: Tensor, y: Tensor, rows: Tensor, count: int) -> _Drawn:
        """What the methods draw for their batches of one step."""
        recipes = [
            member.method.drawn(Batch(x[run], y[:, run].flatten(0, 1), None, rows[run].flatten(), count))
            for run, member in enumerate(self.members)
        ]
        return _joint(recipes, count), [None if recipe is None else recipe.place for recipe in recipes]

    def _train(self, step: _Step) -> Tensor:
        """One optimiser step of all runs; (S * B,) the losses of their anchors."""
        for weight in self.stack.weights.values():
            weight.grad = None
        losses = self._losses(step)
        self.backward(losses, _mean(len(losses), step.anchors))
        if self.budget.clip is not None:
            _clip_each(self.stack.weights.values(), self.budget.clip)
        for lane in self.lanes:
            lane.step()
        return losses.detach()

    def _losses(self, step: _Step) -> Tensor:
        """(S * B,) the losses of all runs' anchors."""
        count, recipe = step.anchors, step.recipe
        if self.mixer is None or recipe is None:
            x, y = step.x[:, :count], step.y[: count * len(step.places)]
            return self.task.losses(self.stack(x).flatten(0, 1), y)
        output = self._forward(self.mixer, step, recipe)
        losses = self.mixer.objective(output, step.y, recipe, self.task)
        return losses if recipe.loss_weight is None else losses * recipe.loss_weight

    def _forward(self, mixer: Mix, step: _Step, recipe: Recipe) -> Tensor:
        """The networks' output (S * B, ...) where each run mixes at its own place."""
        count, runs, x = step.anchors, len(step.places), step.x
        places = dict.fromkeys(place for place in step.places if place is not None)
        rewrite: dict[str, Callable[[Tensor], Tensor]] = {}
        for place in places:
            own = recipe if len(places) == 1 else _at(place, recipe, step.places, count)

            def mix(h: Tensor, own: Recipe = own) -> Tensor:
                mixed: Tensor = mixer.operation(_by_block(h, count), own, self.context)[0]
                return mixed.view(runs, count, -1)

            if place == "input":
                x = mix(x)
            else:
                rewrite[place] = mix
        return self.stack(x, rewrite).flatten(0, 1)

    def _validation_inputs(self) -> Sequence[Tensor]:
        """Validation rows (S, R, ...) of all runs, in pieces as large as those of a run alone."""
        parts = [member.data.valid for member in self.members if member.data.valid is not None]
        if not parts:
            return ()
        x = torch.stack([part.x for part in parts])
        return [piece.contiguous() for piece in torch.split(x, max(1, ELEMENTS // x.shape[2]), dim=1)]

    def _validation_outputs(self) -> Tensor | None:
        """(S, rows, outputs)"""
        if not self.validation:
            return None
        with torch.no_grad():
            found = [self.stack(x) for x in self.validation]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _save(self) -> None:
        """The files of the runs that go on, each as `fit` would write it."""
        names = list(self.stack.weights)
        for lane in self.lanes:
            state = lane.optimizer.state_dict()
            for member in lane.members:
                if member.path is None or member.error is not None:
                    continue

                def own(name: str, value: Any, run: int = member.place - lane.first) -> Any:
                    return self.stack.unstacked(name, value, run) if _by_weight(value) else value

                of_weights = {i: {k: own(names[i], v) for k, v in found.items()} for i, found in state["state"].items()}
                member._write(
                    member.path,
                    model=member.weights(),
                    optimizer={**state, "state": of_weights},
                    precision={},
                    methods=[member.method.state_dict()],
                )

    def _resume(self) -> None:
        """Give the optimisers what those of the runs had come to; the rest the runs know themselves."""
        names = list(self.stack.weights)
        for lane in self.lanes:
            given = [member.optimizer_state for member in lane.members if member.optimizer_state is not None]
            if not given:
                continue
            states = [state["state"] for state in given]

            def joined(i: int, key: str, value: Any, states: list[Any] = states) -> Any:
                return self.stack.stacked(names[i], [s[i][key] for s in states]) if _by_weight(value) else value

            of_weights = {i: {key: joined(i, key, v) for key, v in found.items()} for i, found in states[0].items()}
            lane.optimizer.load_state_dict({**given[0], "state": of_weights})


def _rates(member: _Member) -> tuple[float, float]:
    return member.budget.lr, member.budget.weight_decay


def _by_weight(value: Any) -> bool:
    """Whether what an optimiser keeps is laid out as a weight, not a count of steps."""
    return isinstance(value, Tensor) and value.ndim > 0


def _by_block(h: Tensor, count: int) -> Tensor:
    """(K * S * B, ...) the anchors of all runs, then their first guests, and so on, from (S, K * B, ...)."""
    if len(h) == 1 or h.shape[1] == count:
        return h.flatten(0, 1)
    return h.view(len(h), -1, count, *h.shape[2:]).transpose(0, 1).flatten(0, 2)


def _columns(anchors: Tensor, guests: Tensor | None) -> Tensor:
    """(K, B) training rows of a batch, anchors first."""
    return anchors.unsqueeze(0) if guests is None else torch.cat((anchors.unsqueeze(0), guests.T))


def _blind(method: Method) -> bool:
    """Whether recipes can be drawn for many steps ahead, from the sizes of the batches alone.

    Pairings of the whole table look whether a guest is its own anchor. Without dropout and batch norm a sample mixed
    with a copy of itself is the same as one that is not mixed.
    """
    if not isinstance(method, Mix) or method.labels is not None:
        return False
    known = type(method.pairing) is RandomPairing or type(method.pairing).__call__ is InTable.__call__
    return known and type(method).recipe is Mix.recipe and type(method).drawn is Mix.drawn


def _drawn_ahead(methods: Sequence[Any], steps: int, count: int, columns: int) -> list[_Drawn]:
    """What methods that are `_blind` draw for batches of `count` anchors, draw by draw as `Mix.recipe` does."""
    runs, k = len(methods), methods[0].pairing.k
    in_batch = columns == 1
    own, alone = torch.arange(count), _unmixed(count, k)[1]
    guests, shares, places = [], [], []
    for method in methods:
        for _ in range(steps):
            mixes = method.draw_whether()
            if in_batch:
                some = [permutation(count, method.generator) if mixes else own for _ in range(k - 1)]
                guests.append(some[0] if k == 2 else torch.stack(some))
            shares.append(method.draw_share(count, k) if mixes else alone)
            places.append(method.draw_place() if mixes else None)
    share = torch.stack(shares).view(runs, steps, count, k).transpose(0, 1).flatten(1, 2)
    if in_batch:
        partner = torch.stack(guests).view(runs, steps, k - 1, count) + count * torch.arange(runs).view(-1, 1, 1, 1)
        first = torch.arange(runs * count).expand(steps, -1).unsqueeze(2)
        partners = torch.cat((first, partner.permute(1, 0, 3, 2).flatten(1, 2)), dim=2).unbind()
    else:
        partners = (guest_layout(k, runs * count, share.device),) * steps
    found: list[_Drawn] = []
    for step, (partner, own_share) in enumerate(zip(partners, share.unbind(), strict=True)):
        where = places[step::steps]
        found.append((Recipe(partner, own_share) if any(where) else None, where))
    return found


@lru_cache(maxsize=8)
def _mean(rows: int, count: int) -> Tensor:
    """The gradient of the sum over runs of their mean losses."""
    return torch.full((rows,), 1.0 / count)


def _joint(recipes: Sequence[Recipe | None], count: int) -> Recipe | None:
    """The recipe of all runs' rows as they are fetched; runs that do not mix name themselves."""
    runs, mixing = len(recipes), [recipe for recipe in recipes if recipe is not None]
    if not mixing:
        return None
    k = mixing[0].partner.shape[1]
    each = [recipe or Recipe(*_unmixed(count, k)) for recipe in recipes]
    share = torch.cat([recipe.share for recipe in each])
    same = all(recipe.label_share is recipe.share for recipe in each)
    labels = None if same else torch.cat([recipe.label_share for recipe in each])
    weight = None
    if any(recipe.loss_weight is not None for recipe in each):
        ones = torch.ones(count)
        weight = torch.cat([ones if recipe.loss_weight is None else recipe.loss_weight for recipe in each])
    rows = torch.stack([recipe.partner for recipe in each])
    block = rows.div(count, rounding_mode="floor")
    start = torch.arange(0, runs * count, count).view(-1, 1, 1)
    partner = (rows + block * ((runs - 1) * count) + start).flatten(0, 1)
    return Recipe(partner, share, labels, weight)  # type: ignore[arg-type]


def _unmixed(count: int, k: int) -> tuple[Tensor, Tensor]:
    share = torch.zeros(count, k)
    share[:, 0] = 1.0
    return torch.arange(count).unsqueeze(1).expand(-1, k), share


def _at(place: str, recipe: Recipe, places: Sequence[str | None], count: int) -> Recipe:
    """The recipe with which the runs that mix at `place` do so, and the others keep their rows as they are."""
    here = torch.tensor([where == place for where in places])
    own = _unmixed(1, recipe.share.shape[1])[1]
    share = torch.where(here.repeat_interleave(count).unsqueeze(1), recipe.share, own)
    return replace(recipe, share=share, label_share=share)


def _clip_each(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """`clip_grad_norm_` for each run of the stack."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads], dim=1).norm(dim=1)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
