"""Find a mixture by training a model under weights that change: DoReMi, DoGE, R&B, ODM, online Group DRO, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.checks import one_of
from ..mixture import Mixture
from ..proxy import Packed, Rule, Trained, Training, train
from .doge import DoGE
from .doremi import DoReMi, doremi
from .group_dro_online import GroupDROOnline
from .odm import ODM
from .r_and_b import RAndB

RULES: dict[str, Callable[..., Rule]] = {"doge": DoGE, "r-and-b": RAndB, "odm": ODM, "group-dro": GroupDROOnline}
DOREMI = "doremi"
METHODS = (DOREMI, *RULES)


@dataclass
class Found:
    """The mixture, the run that found it (DoReMi: the last proxy), and what all runs of the search took."""

    mixture: Mixture
    trained: Trained
    tokens: int
    flops: float
    seconds: float


def weigh_online(
    packed: Packed,
    training: Training,
    method: str,
    *,
    target: Mapping[str, float] | None = None,
    seed: int = 0,
    parts: tuple[str, ...] = ("valid",),
    folder: Path | None = None,
    progress: Callable[[float], None] | None = None,
    **settings: Any,
) -> Found:
    """Run `method` on packed documents.

    target: the shares of the domains in what the model is for, where it can be said (doge: which domains; r-and-b:
    their shares); None: all alike. folder: for checkpoints. settings: of the method.

    The mixture is the mean over the steps for DoReMi and DoGE, and the last one for the others, whose result is the
    trained model itself: there `trained.path` shows which weights it was trained on.
    """
    one_of("method", method, METHODS)
    if target is not None and method not in ("doge", "r-and-b"):
        raise ValueError(f"{method} takes no target domains; doge and r-and-b do")
    allowed = list(inspect.signature(DoReMi if method == DOREMI else RULES[method]).parameters)
    allowed = [*allowed[1:], "rounds", "tolerance"] if method == DOREMI else allowed
    for name in settings:
        if name not in allowed:
            raise ValueError(f"{method} has no setting {name!r}; it takes {', '.join(allowed)}")
    if method == DOREMI:
        mixture, rounds = doremi(packed, training, seed=seed, parts=parts, folder=folder, progress=progress, **settings)
        runs = [run for one in rounds for run in (one.reference, one.proxy)]
    else:
        given = {} if target is None else {"targets": tuple(target)} if method == "doge" else {"target": target}
        rule = RULES[method](**given, **settings)
        file = folder and folder / f"{method}.safetensors"
        runs = [train(packed, rule, training, seed=seed, parts=parts, checkpoint=file, progress=progress)]
        facts = {"method": method, "average": rule.average, "settings": rule.settings()}
        mixture = Mixture(runs[-1].weights, provenance=facts)
    return Found(
        mixture,
        runs[-1],
        sum(run.tokens for run in runs),
        sum(run.flops for run in runs),
        sum(run.seconds for run in runs),
    )
