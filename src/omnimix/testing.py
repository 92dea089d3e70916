"""The contract that every registered method keeps, ours and plug-ins': `check_method("my-method")`."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .core.batch import Batch
from .core.method import Method, Mix
from .core.ratio import Constant
from .core.recipe import Recipe
from .core.registry import Info, create, info
from .core.table import Table
from .core.task import Classification, MultiLabel, Regression, Task

ROWS, CLASSES = 24, 3
TASK: dict[str, Callable[[], Task]] = {
    "classification": lambda: Classification(CLASSES),
    "multilabel": lambda: MultiLabel(CLASSES),
    "regression": lambda: Regression(1),
}


class _Net(nn.Module):
    """Two hidden layers on flattened input: integers, or floats of its own type."""

    taps = ("block1", "block2")

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Linear(features, 16), nn.LeakyReLU(0.1))
        self.block2 = nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.1))
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.head.weight.dtype)
        hidden: Tensor = self.head(self.block2(self.block1(x.flatten(1))))
        return hidden


class _ConvNet(nn.Module):
    """Two convolutions, the mean over places and a linear head, for methods that take images only."""

    taps = ("block1", "block2")

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.LeakyReLU(0.1))
        self.block2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.LeakyReLU(0.1))
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.head.weight.dtype)
        hidden: Tensor = self.head(self.block2(self.block1(x)).mean(dim=(2, 3)))
        return hidden


class _AttentionNet(nn.Module):
    """Patches of 3 x 3, a class token and a layer of attention, for methods that read it."""

    taps = ("patch", "attend")

    def __init__(self, shape: torch.Size, outputs: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(shape[0], 16, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 1 + shape[1:].numel() // 9, 16))
        self.attend = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.head.weight.dtype)
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat((self.token.expand(len(x), -1, -1), h), dim=1) + self.places
        q, k, v = self.attend(h).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        h = self.norm(h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        hidden: Tensor = self.head(h[:, 0])
        return hidden


@dataclass(frozen=True)
class _World:
    """Random data of one task, and a way to make methods and networks for it."""

    name: str
    parameters: dict[str, Any]
    task: Task
    x: Tensor
    y: Tensor

    @staticmethod
    def of(card: Info, parameters: dict[str, Any], task: str, shape: tuple[int, ...]) -> _World:
        draw = torch.Generator().manual_seed(7)
        x = torch.randn(ROWS, *shape, generator=draw)
        y = {
            "classification": torch.randint(CLASSES, (ROWS,), generator=draw),
            "multilabel": torch.randint(2, (ROWS, CLASSES), generator=draw).float(),
            "regression": torch.randn(ROWS, generator=draw),
        }[task]
        return _World(card.name, parameters, TASK[task](), x, y)

    def table(self) -> Table:
        return Table(label=self.y, domain=torch.arange(ROWS) % 3, feature=self.x.flatten(1))

    def net(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            if info(self.name).network == "attention":
                return _AttentionNet(self.x.shape[1:], self.task.outputs).to(dtype)
            if info(self.name).inputs == ("image",):
                return _ConvNet(self.x.shape[1], self.task.outputs).to(dtype)
            return _Net(self.x[0].numel(), self.task.outputs).to(dtype)

    def method(self, model: nn.Module, seed: int = 0) -> Method:
        method = create(self.name, **self.parameters)
        table, draw = self.table(), torch.Generator().manual_seed(seed)
        return method.setup(model, self.task, table, validation=self.table(), steps=100, generator=draw)

    def batch(self, method: Method, rows: list[int], x: Tensor | None = None, y: Tensor | None = None) -> Batch:
        x, y = self.x if x is None else x, self.y if y is None else y
        anchors, guests = method.rows(torch.tensor(rows))
        index = anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))
        return Batch(x[index], y[index], (torch.arange(ROWS) % 3)[index], index, anchors=len(anchors))

    def losses(self, method: Method, model: nn.Module, steps: int) -> list[float]:
        found = []
        for step in range(steps):
            batch = self.batch(method, [(5 * step + i) % ROWS for i in range(6)])
            found.append(float(method.loss(model, batch).detach()))
            method.after_step()
        return found


class _Skip(Exception):
    """The check does not apply to this method or data."""


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _refuses(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError as error:
        _expect(len(str(error)) > 20, f"the ValueError for {what} says too little: {error}")
    else:
        raise AssertionError(f"{what} must be refused by a ValueError")


def _any_batch_size(world: _World) -> None:
    for size in (8, 7, 3, 1):
        model = world.net()
        method = world.method(model)
        loss = method.loss(model, world.batch(method, list(range(size))))
        _expect(
            loss.ndim == 0 and bool(torch.isfinite(loss)), f"batch of {size}: loss must be one finite number, {loss}"
        )
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in model.parameters()]
        _expect(all(g is not None and bool(torch.isfinite(g).all()) for g in grads), f"batch of {size}: bad gradients")


def _inputs_unchanged(world: _World) -> None:
    model = world.net()
    method = world.method(model)
    for _ in range(4):
        batch = world.batch(method, list(range(6)))
        x, y = batch.x.clone(), batch.y.clone()
        method.loss(model, batch)
        _expect(torch.equal(x, batch.x) and torch.equal(y, batch.y), "the batch was modified in place")


def _global_randomness_untouched(world: _World) -> None:
    model = world.net()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    world.losses(world.method(model), model, 3)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # type: ignore[index]  # noqa: NPY002
    _expect(torch.equal(before[0], after[0]), "torch's global random state moved")
    _expect(bool((before[1] == after[1]).all()), "numpy's global random state moved")
    _expect(before[2] == after[2], "Python's global random state moved")


def _deterministic(world: _World) -> None:
    model = world.net()
    first, second = (world.losses(world.method(model, seed=11), model, 4) for _ in range(2))
    _expect(first == second, f"equal generators gave unequal losses: {first} and {second}")


def _half_precision(world: _World) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = world.net(dtype)
        method = world.method(model)
        loss = method.loss(model, world.batch(method, list(range(6)), x=world.x.to(dtype)))
        _expect(bool(torch.isfinite(loss)), f"{dtype}: loss is {loss}")


def _channels_last(world: _World) -> None:
    if world.x.ndim != 4:
        raise _Skip
    model = world.net()
    plain, last = world.method(model), world.method(model)
    a = plain.loss(model, world.batch(plain, list(range(6))))
    b = last.loss(model, world.batch(last, list(range(6)), x=world.x.to(memory_format=torch.channels_last)))
    _expect(bool(torch.isclose(a, b, atol=1e-5)), f"channels-last gives another loss: {a} and {b}")


def _soft_targets(world: _World) -> None:
    if not isinstance(world.task, Classification):
        raise _Skip
    model = world.net()
    hard, soft = world.method(model), world.method(model)
    one_hot = world.task.soft_target(world.y)
    a = hard.loss(model, world.batch(hard, list(range(6))))
    try:
        b = soft.loss(model, world.batch(soft, list(range(6)), y=one_hot))
    except ValueError:
        return
    _expect(bool(torch.isclose(a, b, atol=1e-5)), f"one-hot targets give another loss than class ids: {b} and {a}")


def _lam_one_is_plain(world: _World) -> None:
    model = world.net()
    method = world.method(model)
    if not isinstance(method, Mix) or type(method).loss is not Mix.loss:
        raise _Skip
    method.ratio = Constant(1.0)
    for _ in range(3):
        batch = world.batch(method, list(range(7)))
        mixed, plain = method.loss(model, batch), method.plain_loss(model, batch.alone)
        mixed = mixed - _joined(method, model, batch)
        _expect(bool(torch.isclose(mixed, plain, atol=1e-5)), f"lam = 1 gives {mixed}, plain training {plain}")


def _joined(method: Mix, model: nn.Module, batch: Batch) -> float:
    """What the operation adds to the loss of a mixed step, such as the loss whose gradient gave the saliency."""
    recipe = method.recipe(batch)
    if recipe is None or not method.operation.needs:
        return 0.0
    method.forward(model, batch, recipe)
    return sum(float(scalar.detach()) for scalar in method._extra)


def _labels_follow_inputs(world: _World) -> None:
    method = world.method(world.net())
    if not isinstance(method, Mix) or method.labels is not None or "input" not in method.places:
        raise _Skip
    if not method.operation.labels_follow:
        raise _Skip
    colour = torch.randint(2, (ROWS,), generator=torch.Generator().manual_seed(5)).float()
    x = colour.view(-1, *[1] * (world.x.ndim - 1)).expand_as(world.x).contiguous()
    errors = []
    for _ in range(30):
        batch = world.batch(method, list(range(ROWS)), x=x)
        recipe = method.recipe(batch)
        if recipe is None or recipe.place != "input":
            continue
        mixed = method.mix(batch, recipe)
        colours = batch.x.flatten(1)[:, 0][mixed.recipe.partner]
        error = mixed.x.flatten(1).mean(dim=1) - (mixed.recipe.label_share * colours).sum(dim=1)
        errors.append(error[(colours != colours[:, :1]).any(dim=1)].abs())
    found = torch.cat(errors) if errors else torch.empty(0)
    if not len(found):
        raise _Skip
    error = float(found.mean())  # single rows may be off, by noise or by a share rounded to whole cells
    _expect(error < 0.06, f"the label shares are off the shares in the inputs by {error:.3f} on average")


def _gradients_reach_partners(world: _World) -> None:
    model = world.net()
    method = world.method(model)
    if not isinstance(method, Mix):
        raise _Skip
    own = torch.arange(2).unsqueeze(1)
    partner = torch.cat((own, (1 - own).expand(2, method.pairing.k - 1)), dim=1)
    share = Constant(0.5)(2, method.pairing.k, method.generator)
    for place in method.places:
        x = world.x[:2].clone().requires_grad_()
        output, applied = method.forward(model, Batch(x, world.y[:2]), Recipe(partner, share, place=place))
        first = method.objective(output, world.y[:2], applied, world.task)[0]
        (grad,) = torch.autograd.grad(first, x)
        if not bool(applied.share[0, applied.partner[0] == 1].any()):
            continue  # the operation itself says who shows where, and left the partner out
        _expect(bool(grad[1].any()), f"mixing at {place!r} passes no gradient to the partner")


def _state_round_trip(world: _World) -> None:
    model = world.net()
    method = world.method(model)
    world.losses(method, model, 2)
    state = method.state_dict()
    _expect(_storable(state), f"state_dict must hold dicts, tensors, numbers and strings only: {state}")
    state = _copied(state)
    expected = world.losses(method, model, 3)
    other = world.method(model, seed=99)
    other.load_state_dict(state)
    found = world.losses(other, model, 3)
    _expect(found == expected, f"a restored method goes on differently: {found}, not {expected}")


def _storable(state: Any) -> bool:
    if isinstance(state, dict):
        return all(isinstance(key, str) and _storable(value) for key, value in state.items())
    if isinstance(state, list):
        return all(map(_storable, state))
    return state is None or isinstance(state, (Tensor, bool, int, float, str))


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


def _evaluation_unmixed(world: _World) -> None:
    model = world.net().eval()
    method = world.method(model)
    for _ in range(3):
        batch = world.batch(method, list(range(6)))
        loss, plain = method.loss(model, batch), method.plain_loss(model, batch.alone)
        _expect(bool(torch.isclose(loss, plain, atol=1e-6)), f"in evaluation mode the loss is {loss}, plain {plain}")
    found = method.predict(model, world.x)
    if type(method).predict is Method.predict:
        _expect(torch.equal(found, model(world.x)), "predict differs from the network")
        return
    _expect(torch.equal(found, method.predict(model, world.x)), "predict gives another result the second time")
    _expect(found.shape == model(world.x).shape, f"predict gives {found.shape}, the network {model(world.x).shape}")
    if not method.transductive:
        alone = torch.cat([method.predict(model, world.x[i : i + 1]) for i in range(3)])
        _expect(torch.allclose(found[:3], alone, atol=1e-5), "predictions depend on the other rows of the batch")


def _model_untouched(world: _World) -> None:
    model = world.net()
    names, weights = list(model.state_dict()), [p.clone() for p in model.parameters()]
    method = world.method(model)
    world.losses(method, model, 3)
    _expect(list(model.state_dict()) == names, "the method added or removed parts of the user's network")
    _expect(all(map(torch.equal, weights, model.parameters())), "the method changed weights without an optimiser step")
    _expect(model.training, "the method left the network in evaluation mode")
    before = model(world.x)
    _expect(torch.equal(before, model(world.x)), "the network's own forward pass became random")


def _refusals(world: _World) -> None:
    model = world.net()
    method = world.method(model)
    rows = torch.arange(4)
    _refuses(lambda: create(world.name, no_such_parameter=1), "an unknown parameter")
    _refuses(lambda: create(world.name, **world.parameters).loss(model, (world.x, world.y)), "training before setup")
    _refuses(lambda: method.loss(model, (world.x[rows], world.y[:3])), "y with another number of rows than x")
    _refuses(lambda: method.loss(model, (world.x[:0], world.y[:0])), "an empty batch")
    if method.needs:
        _refuses(lambda: create(world.name, **world.parameters).setup(model, world.task), "a missing table")
    if isinstance(method, Mix) and method.places == ("input",):
        integers = (world.x * 10).long()
        _refuses(lambda: _many(method, world, model, integers), "an integer input")


def _many(method: Method, world: _World, model: nn.Module, x: Tensor) -> None:
    for _ in range(20):  # a method may leave some steps unmixed
        method.loss(model, world.batch(method, list(range(6)), x=x))


CHECKS: tuple[Callable[[_World], None], ...] = (
    _any_batch_size,
    _inputs_unchanged,
    _global_randomness_untouched,
    _deterministic,
    _half_precision,
    _channels_last,
    _soft_targets,
    _lam_one_is_plain,
    _labels_follow_inputs,
    _gradients_reach_partners,
    _state_round_trip,
    _evaluation_unmixed,
    _model_untouched,
    _refusals,
)


def _worlds(card: Info, parameters: dict[str, Any]) -> Iterator[tuple[str, _World]]:
    shapes = {"any": (5,), "image": (3, 6, 9)}
    for task in card.tasks:
        for shape in dict.fromkeys([*(shapes[kind] for kind in card.inputs), (3, 6, 9)]):
            yield f"{task}, x {shape}", _World.of(card, parameters, task, shape)


def check_method(name: str, **parameters: Any) -> list[str]:
    """Check that the registered method `name` keeps the contract of all methods; return the names of the checks passed.

    For every task the method declares, on tables (where it takes them) and non-square images: batches of 8, 7, 3 and 1;
    input unchanged; no global random state touched; the same generator state gives the same losses; float16 and
    bfloat16; channels-last; soft targets as class ids (or refused); lam = 1 is plain training; label shares as in the
    inputs, unless a label policy or the operation sets them; gradients reach both partners; a saved state continues
    exactly; evaluation never mixes; the network left as it was; bad input refused by a ValueError that says why. Checks
    that do not apply to the method or the data are not among the names. parameters: passed to `create`. Raises
    AssertionError listing everything that failed.
    """
    card = info(name)
    passed, failed = [], []
    if not card.summary:
        failed.append(f"{name}: the factory has no docstring")
    if not card.paper:
        failed.append(f"{name}: the card names no paper")
    for where, world in _worlds(card, parameters):
        for check in CHECKS:
            label = f"{check.__name__.strip('_')} ({where})"
            try:
                check(world)
                passed.append(label)
            except _Skip:
                continue
            except Exception as error:
                line = traceback.extract_tb(error.__traceback__)[-1]
                failed.append(f"{label}: {type(error).__name__}: {error} [{line.name}, line {line.lineno}]")
    if failed:
        raise AssertionError(f"method {name!r} breaks the contract:\n  " + "\n  ".join(failed))
    return passed
