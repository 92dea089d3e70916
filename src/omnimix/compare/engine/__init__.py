"""Where the runs of a comparison are computed. A unit is one run, or several that train together; what a run gives is
the same on every engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...core.checks import one_of
from ..jobs import Outcome, Plan, Unit
from . import local
from .base import Comparison, Work, shared_fractions

__all__ = ["Work", "check", "run", "shared_fractions"]

ENGINES = ("local", "ray")


def check(engine: str, address: str | None) -> None:
    """ValueError for an engine that there is not, or an address that it does not take."""
    one_of("engine", engine, ENGINES)
    if engine == "ray":
        from .ray import load

        load()
    elif address is not None:
        raise ValueError(f"address = {address!r} is for a Ray cluster; ask for it with engine = 'ray' (--engine ray)")


def run(
    units: Sequence[Unit],
    plan: Plan | Work,
    workers: int | None,
    fractions: np.ndarray,
    engine: str = "local",
    address: str | None = None,
) -> Iterator[Outcome]:
    """The outcomes of every unit, as they end. fractions: (len(units),), kept up to date while they run.

    plan: that of a comparison, or other work. workers: units at a time; None: as many as the cluster at `address` has
    room for.
    """
    work = plan if isinstance(plan, Work) else Comparison(plan)
    if engine == "ray":
        from . import ray

        return ray.run(units, work, workers, fractions, address)
    assert workers is not None
    return local.run(units, work, workers, fractions)
