"""Which operator, with which coefficients, merges these checkpoints best: by the user's own evaluation.

Every operator is tried with its defaults and with equally many draws of its coefficients, and the models themselves are
measured too. Measurements run on the engine of comparisons and are rows of the result store, so that a sweep that was
stopped goes on. Draws come from ranges through Optuna, each by a hash of its own (see `tune`); the same seed gives the
same draws.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..core.checks import at_least
from ..core.search import Range, Uniform
from ..models import checkpoint
from . import engine as engines
from .engine.base import Work
from .jobs import Outcome, versions
from .spec import fingerprint
from .statistics import Estimate, estimate
from .store import Failure, Run, Store
from .tune import sample

RANGES: dict[str, Range] = {
    "weight": Uniform(0.1, 1.0),
    "density": Uniform(0.1, 1.0),
    "lambda": Uniform(0.2, 1.5),
    "t": Uniform(0.0, 1.0),
}
"""Of the options that are drawn: one value for all models, but one weight a model."""
STORE = "results.sqlite"
RESAMPLED = 300
"""Values whose interval is taken by bootstrap, at most; of more by the normal distribution, which is the same then."""


@dataclass(frozen=True)
class Judge:
    """The user's evaluation: a function of the folder of a model that returns a number, or one for every example."""

    name: str
    function: Callable[[Path], Any] = field(repr=False)
    source: str
    """SHA-256 of the file."""

    @classmethod
    def of(cls, text: str) -> Judge:
        """From FILE.py:function; the file is run. ValueError if there is no such file or function."""
        file, colon, name = text.rpartition(":")
        path = Path(file)
        if not colon or path.suffix != ".py" or not name:
            raise ValueError(f"an evaluation is FILE.py:function, got {text!r}")
        if not path.is_file():
            raise ValueError(f"{file}: there is no such file")
        return _judge(text, str(path.resolve()), name, hashlib.sha256(path.read_bytes()).hexdigest())

    def __call__(self, folder: Path) -> list[float]:
        """The values of the examples; one where the function returns a number."""
        value = self.function(folder)
        if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
            value = value.tolist()
        try:
            numbers = [float(one) for one in value] if isinstance(value, Iterable) else [float(value)]
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} must return a number, got {value!r} for {folder}") from None
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{self.name} must return a finite number, got {value} for {folder}")
        return numbers


@cache
def _judge(text: str, path: str, name: str, source: str) -> Judge:
    """The file is run once in a process."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{text.rpartition(':')[0]}: has no function {name!r}")
    return Judge(text, function, source)


@dataclass(frozen=True)
class Score:
    """A measured model."""

    name: str
    """The operator, or the path of a model."""
    options: Mapping[str, Any]
    values: tuple[float, ...]
    """Of the examples, or the one of all."""
    seconds: float
    recipe: checkpoint.Recipe | None
    """None for a model itself."""

    @property
    def value(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean over examples; None where there are too few."""
        return spread(self.values).ci95

    def minus(self, other: Score) -> Estimate | None:
        """The difference to another model, by example; None where the examples are not the same number."""
        if len(self.values) != len(other.values):
            return None
        return spread([mine - its for mine, its in zip(self.values, other.values, strict=True)])


def spread(values: Sequence[float]) -> Estimate:
    """Mean, deviation and interval of the values of examples."""
    if len(values) <= RESAMPLED:
        return estimate(values)
    every = torch.tensor(values, dtype=torch.float64)
    mean, sd = float(every.mean()), float(every.std())
    reach = 1.959964 * sd / math.sqrt(len(values))
    return Estimate(len(values), mean, sd, (mean - reach, mean + reach))


def candidates(recipes: Sequence[checkpoint.Recipe], draws: int, seed: int) -> list[checkpoint.Recipe]:
    """Each recipe as it is, and `draws` times with the options that it leaves open drawn from `RANGES`.

    Operators without such options come once. ValueError for draws < 0.
    """
    at_least("draws", draws, 0)
    found = []
    for recipe in recipes:
        found.append(recipe)
        given = {*recipe.common, *(name for own in recipe.per_model for name in own)}
        free = [name for name in checkpoint.METHODS[recipe.method][1] if name in RANGES and name not in given]
        found += [_drawn(recipe, free, number, seed) for number in range(1, draws + 1) if free]
    return found


def _drawn(recipe: checkpoint.Recipe, free: Sequence[str], number: int, seed: int) -> checkpoint.Recipe:
    def value(name: str, model: int = 0) -> Any:
        return sample(RANGES[name], int(fingerprint([seed, recipe.method, name, model, number])[:8], 16))

    common = {**recipe.common, **{name: value(name) for name in free if name != "weight"}}
    own: list[dict[str, Any]] = [dict(given) for given in recipe.per_model or [{}] * len(recipe.models)]
    if "weight" in free:
        for model, given in enumerate(own):
            given["weight"] = value("weight", model)
    return replace(recipe, common=common, per_model=tuple(own) if any(own) else ())


@dataclass(frozen=True)
class Asked:
    """A model to measure. recipe: None for a model itself. key: of all that decides its score."""

    name: str
    recipe: checkpoint.Recipe | None
    config: dict[str, Any]
    data: str
    key: str


@dataclass(frozen=True)
class Measuring(Work):
    """What the measurements share. threads: of each."""

    judge: str
    work: Path
    how: Mapping[str, Any]
    threads: int
    source: str
    device: str = "cpu"

    def execute(self, unit: tuple[Asked, ...], progress: Callable[[float], None]) -> Outcome:
        return [self._run(asked) for asked in unit]

    def killed(self, unit: tuple[Asked, ...], error: BaseException) -> Outcome:
        said = "the process of this measurement was killed twice, most likely for want of memory"
        return [self._failed(asked, said, str(error)) for asked in unit]

    def _run(self, asked: Asked) -> Run | Failure:
        before, start = torch.get_num_threads(), time.perf_counter()
        folder = self.work / f"candidate-{asked.key[:16]}"
        torch.set_num_threads(self.threads)
        try:
            judge = Judge.of(self.judge)
            if judge.source != self.source:
                raise ValueError(f"{self.judge} was changed while it was used; start again")
            values = judge(self._folder(asked, folder))
        except Exception as error:
            line = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            return self._failed(asked, line, "".join(traceback.format_exception(error)))
        finally:
            torch.set_num_threads(before)
            for left in (folder, folder.with_name(folder.name + ".partial")):
                shutil.rmtree(left, ignore_errors=True)
        return Run(
            key=asked.key, method=asked.name, seed=0, data=asked.data, code=self.source, config=asked.config,
            metrics={"score": math.fsum(values) / len(values)}, domains={}, history=[], best_epoch=None,
            seconds=time.perf_counter() - start, step_seconds=None, peak_memory=None, device=self.device,
            versions=versions(), extras={"values": values},
        )  # fmt: skip

    def _folder(self, asked: Asked, folder: Path) -> Path:
        """Where the weights lie; those of a merge, or of a model with an adapter, are written first."""
        recipe = asked.recipe
        if recipe is None:
            if Path(asked.name).exists():
                return Path(asked.name)
            recipe = checkpoint.Recipe("linear", (asked.name,))
        plan = checkpoint.plan_merge(recipe, **self.how)
        try:
            return checkpoint.merge_checkpoints(plan, folder)
        finally:
            plan.close()

    def _failed(self, asked: Asked, line: str, trace: str) -> Failure:
        return Failure(asked.key, asked.name, 0, asked.config, line, trace, versions())


def evaluate(
    recipes: Sequence[checkpoint.Recipe],
    judge: Judge,
    work: Path,
    *,
    told: Callable[[Score], None] = lambda score: None,
    workers: int = 1,
    **how: Any,
) -> list[Score]:
    """The scores of the models and their base, and of those that the recipes merge, in this order.

    work: a folder for the store, and for as many merged models at a time as there are workers. told: called with each
    score. workers: measurements at a time; they share the processor's cores. how: see `plan_merge`. ValueError for what
    cannot be merged, and for evaluations that fail or give no number; what was measured before is kept.
    """
    at_least("jobs", workers, 1)
    asked = [*_models(recipes, judge, how), *(_merge(recipe, judge, how) for recipe in recipes)]
    threads = max(1, (os.cpu_count() or 1) // workers)
    measuring = Measuring(judge.name, work.absolute(), how, threads, judge.source)
    with Store(work / STORE) as store:
        have = store.runs(one.key for one in asked)
        known = {key: _values(run) for key, run in have.items()}
        for one in asked:
            if one.key in have:
                told(_score(one, known[one.key]))
        todo = list({one.key: (one,) for one in asked if one.key not in have}.values())
        places = {one.key: one for one in asked}
        with engines.shared_fractions(len(todo)) as fractions:
            for outcomes in engines.run(todo, measuring, workers, fractions):  # type: ignore[arg-type]
                for outcome in outcomes:
                    store.add(outcome)
                    if isinstance(outcome, Failure):
                        raise ValueError(f"{outcome.method}: {outcome.error}")
                    known[outcome.key] = _values(outcome)
                    told(_score(places[outcome.key], known[outcome.key]))
    return [_score(one, known[one.key]) for one in asked]


def _models(recipes: Sequence[checkpoint.Recipe], judge: Judge, how: Mapping[str, Any]) -> list[Asked]:
    paths = dict.fromkeys(path for recipe in recipes for path in (recipe.base, *recipe.models) if path is not None)
    found = []
    for path in paths:
        with checkpoint.Checkpoint(path, unpickle=how.get("unpickle", False)) as held:
            found.append(_asked(path, None, {"model": path}, held.files, judge))
    return found


def _merge(recipe: checkpoint.Recipe, judge: Judge, how: Mapping[str, Any]) -> Asked:
    plan = checkpoint.plan_merge(recipe, **how)
    try:
        return _asked(recipe.method, recipe, recipe.facts(), [f for one in plan.everyone for f in one.files], judge)
    finally:
        plan.close()


def _asked(
    name: str, recipe: checkpoint.Recipe | None, config: dict[str, Any], files: Sequence[Path], judge: Judge
) -> Asked:
    data = fingerprint([[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    key = fingerprint([config, data, judge.name.rpartition(":")[2], judge.source])
    return Asked(name, recipe, config, data, key)


def _values(run: Run) -> tuple[tuple[float, ...], float]:
    """The values of a row of the store, and its seconds."""
    return tuple(run.extras.get("values", [run.metrics["score"]])), run.seconds


def _score(asked: Asked, found: tuple[tuple[float, ...], float]) -> Score:
    options = {} if asked.recipe is None else _options(asked.recipe)
    return Score(asked.name, options, *found, asked.recipe)


def _options(recipe: checkpoint.Recipe) -> dict[str, Any]:
    """As on the command line."""
    own = {name: [given.get(name) for given in recipe.per_model] for given in recipe.per_model for name in given}
    return {**recipe.common, **own}


def ranked(scores: Sequence[Score], lower: bool) -> list[Score]:
    """Best first; equal scores in their order."""
    return sorted(scores, key=lambda score: score.value if lower else -score.value)
