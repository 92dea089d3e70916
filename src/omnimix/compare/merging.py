"""Which operator, with which coefficients, merges these checkpoints best: by the user's own evaluation.

Every operator is tried with its defaults and with equally many draws of its coefficients, and the models themselves are
measured too. A measurement is a row of the result store, so that a sweep that was stopped goes on. Draws come from
ranges through Optuna, each by a hash of its own (see `tune`); the same seed gives the same draws.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..core.checks import at_least
from ..core.search import Range, Uniform
from ..models import checkpoint
from .jobs import versions
from .spec import fingerprint
from .store import Run, Store
from .tune import sample

RANGES: dict[str, Range] = {
    "weight": Uniform(0.1, 1.0),
    "density": Uniform(0.1, 1.0),
    "lambda": Uniform(0.2, 1.5),
    "t": Uniform(0.0, 1.0),
}
"""Of the options that are drawn: one value for all models, but one weight a model."""


@dataclass(frozen=True)
class Judge:
    """The user's evaluation: a function of the folder of a model that returns a number."""

    name: str
    function: Callable[[Path], float] = field(repr=False)
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
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise ValueError(f"{file}: has no function {name!r}")
        return cls(text, function, hashlib.sha256(path.read_bytes()).hexdigest())

    def __call__(self, folder: Path) -> float:
        value = self.function(folder)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} must return a number, got {value!r} for {folder}") from None
        if not math.isfinite(number):
            raise ValueError(f"{self.name} must return a finite number, got {number} for {folder}")
        return number


@dataclass(frozen=True)
class Score:
    """A measured model."""

    name: str
    """The operator, or the path of a model."""
    options: Mapping[str, Any]
    value: float
    seconds: float
    recipe: checkpoint.Recipe | None
    """None for a model itself."""


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
    per_model = tuple(own) if any(own) else ()
    return checkpoint.Recipe(recipe.method, recipe.models, recipe.base, common, per_model, recipe.dtype)


def evaluate(
    recipes: Sequence[checkpoint.Recipe],
    judge: Judge,
    work: Path,
    *,
    told: Callable[[Score], None] = lambda score: None,
    **how: Any,
) -> list[Score]:
    """The scores of the models that the recipes merge, of these models and of their base, in that order last to first.

    work: a folder for the store, and for one merged model at a time. told: called with each score. how: see
    `plan_merge`. ValueError for what cannot be merged, and for evaluations that give no number.
    """
    work.mkdir(parents=True, exist_ok=True)
    paths = dict.fromkeys(path for recipe in recipes for path in (recipe.base, *recipe.models) if path is not None)
    scores = []
    with Store(work / "results.sqlite") as store:
        for path in paths:
            with checkpoint.Checkpoint(path, unpickle=how.get("unpickle", False)) as held:
                files = _state(held.files)
            scores.append(_score(store, judge, path, {}, None, files, partial(Path, path)))
            told(scores[-1])
        for recipe in recipes:
            plan = checkpoint.plan_merge(recipe, **how)

            def merged(plan: checkpoint.Plan = plan) -> Path:
                out = work / "candidate"
                for left in (out, out.with_name("candidate.partial")):
                    shutil.rmtree(left, ignore_errors=True)
                return checkpoint.merge_checkpoints(plan, out)

            try:
                files = _state([file for one in plan.everyone for file in one.files])
                scores.append(_score(store, judge, recipe.method, _options(recipe), recipe, files, merged))
            finally:
                plan.close()
                shutil.rmtree(work / "candidate", ignore_errors=True)
            told(scores[-1])
    return scores


def _score(
    store: Store,
    judge: Judge,
    name: str,
    options: Mapping[str, Any],
    recipe: checkpoint.Recipe | None,
    files: list[list[Any]],
    folder: Callable[[], Path],
) -> Score:
    """From the store, or measured and put there."""
    facts = recipe.facts() if recipe is not None else {"model": name}
    data = fingerprint(files)
    key = fingerprint([facts, data, judge.name.rpartition(":")[2], judge.source])
    done = store.runs([key]).get(key)
    if done is None:
        start = time.perf_counter()
        found = judge(folder())
        done = Run(
            key=key, method=name, seed=0, data=data, code=judge.source, config=facts, metrics={"score": found},
            domains={}, history=[], best_epoch=None, seconds=time.perf_counter() - start, step_seconds=None,
            peak_memory=None, device="cpu", versions=versions(),
        )  # fmt: skip
        store.add(done)
    value = done.metrics["score"]
    assert value is not None
    return Score(name, options, value, done.seconds, recipe)


def _options(recipe: checkpoint.Recipe) -> dict[str, Any]:
    """As on the command line."""
    own = {name: [given.get(name) for given in recipe.per_model] for given in recipe.per_model for name in given}
    return {**recipe.common, **own}


def _state(files: Sequence[Path]) -> list[list[Any]]:
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def ranked(scores: Sequence[Score], lower: bool) -> list[Score]:
    """Best first; equal scores in their order."""
    return sorted(scores, key=lambda score: score.value if lower else -score.value)
