"""Names for methods: ours and those that other packages declare under the entry point `omnimix.methods`."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .checks import one_of
from .method import Method
from .search import Range

GROUP = "omnimix.methods"
TASKS = ("classification", "multilabel", "regression")
NETWORKS = ("any", "attention")
LEVELS = ("samples", "domains", "corpora", "models")

M = TypeVar("M", bound=Callable[..., Method])


@dataclass(frozen=True)
class Info:
    """The card of a registered method."""

    name: str
    factory: Callable[..., Method]
    paper: str
    tasks: tuple[str, ...]
    cost: float
    """Gradient evaluations of a step relative to plain training."""
    level: str
    inputs: tuple[str, ...]
    """What x may be: "any", "image" (B, C, *spatial)."""
    package: str
    search: Mapping[str, Range] = field(default_factory=dict)
    """From where tuning draws parameters of the factory; those not named here keep their values."""
    network: str = "any"
    """What it can train: "any", "attention" (a network with attention between the patches of images)."""

    @property
    def summary(self) -> str:
        """The first sentence of the factory's documentation."""
        return " ".join((inspect.getdoc(self.factory) or "").split("\n\n")[0].split())

    @property
    def parameters(self) -> dict[str, Any]:
        """Constructor arguments and their defaults (`inspect.Parameter.empty` where required)."""
        return {name: p.default for name, p in inspect.signature(self.factory).parameters.items() if name != "self"}


_methods: dict[str, Info] = {}
_plugins_loaded = False


def register(
    name: str,
    *,
    paper: str,
    tasks: tuple[str, ...] = TASKS,
    cost: float = 1.0,
    level: str = "samples",
    inputs: tuple[str, ...] = ("any",),
    network: str = "any",
    search: Mapping[str, Range] | None = None,
) -> Callable[[M], M]:
    """Decorate a Method class (or a function that makes one) to give it a name.

    paper: "Title, venue year, arXiv id". tasks: the target types it can train. cost: gradient evaluations of a step
    relative to plain training. network: see `Info`. search: ranges of parameters for tuning. ValueError if the name is
    taken by another factory, or if `search` names no parameter of it.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise ValueError(f"name must be lower-case letters, digits and - _ . (as in 'c-mixup'), got {name!r}")
    for task in tasks:
        one_of("tasks", task, TASKS)
    one_of("level", level, LEVELS)
    one_of("network", network, NETWORKS)

    def add(factory: M) -> M:
        if not callable(factory):
            raise ValueError(f"register decorates a Method class or a function that makes one, got {factory!r}")
        module = getattr(factory, "__module__", "")
        if name in _methods and _methods[name].factory.__qualname__ != factory.__qualname__:
            raise ValueError(f"a method named {name!r} exists already: {_methods[name].factory!r}")
        card = Info(name, factory, paper, tasks, cost, level, inputs, module.split(".")[0], dict(search or {}), network)
        for parameter in card.search:
            one_of("search", parameter, card.parameters)
        _methods[name] = card
        return factory

    return add


def _all() -> dict[str, Info]:
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for point in entry_points(group=GROUP):
            before = set(_methods)
            factory = point.load()
            if point.name not in _methods and not set(_methods) - before:
                raise ValueError(
                    f"the plug-in {point.value!r} declares the method {point.name!r}, but loading it registered none; "
                    f"decorate {getattr(factory, '__name__', factory)!r} with @omnimix.register"
                )
    return _methods


def info(name: str) -> Info:
    """The card of the method `name`; ValueError with the nearest names if there is none."""
    known = _all()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(f"there is no method {name!r}{hint} All: {', '.join(sorted(known))}")
    return known[name]


def create(name: str, **parameters: Any) -> Method:
    """The method `name` with its paper's defaults, changed by `parameters`; ValueError for unknown ones."""
    card = info(name)
    allowed = card.parameters
    for parameter in parameters:
        if parameter not in allowed:
            raise ValueError(f"{name} has no parameter {parameter!r}; it takes {', '.join(allowed) or 'none'}")
    method = card.factory(**parameters)
    method.tasks = card.tasks
    if method.cost is None:
        method.cost = card.cost
    return method


def methods(task: str | None = None, level: str | None = None) -> list[str]:
    """The names of all methods, or those for a task ("classification", ...) or a level ("samples", ...)."""
    if task is not None:
        one_of("task", task, TASKS)
    if level is not None:
        one_of("level", level, LEVELS)
    cards = sorted(_all().values(), key=lambda card: card.name)
    return [c.name for c in cards if (task is None or task in c.tasks) and (level is None or c.level == level)]
