"""One small step of every method before anything trains, so that what does not fit together is refused at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.batch import Batch
from ..core.method import Method, Mix
from ..train.parts import Data, table
from .jobs import Job, Plan, make_network, parts
from .protocol import Splits, prepare, split
from .spec import create

TABLE, BATCH = 1024, 8
"""The most rows that a method is told of, and those of the step."""


def rehearse(jobs: Sequence[Job], plan: Plan) -> None:
    """ValueError if the method of one of the jobs cannot take a step with this network on these data.

    Global random states stay as they are. What chooses partners by training ahead is set up, but takes no step.
    """
    network, data = make_network(plan, jobs[0].seed), _few(jobs[0], plan)
    with torch.random.fork_rng(devices=[]):
        for job in jobs:
            _try(job, copy.deepcopy(network), data)


def _few(job: Job, plan: Plan) -> Data:
    """Some rows of the training part; they validate too."""
    train = split(plan.protocol, plan.source, job.seed, job.hold).train
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:TABLE]]
    return prepare(plan.protocol, plan.source, Splits(some, some, some[:0]))


def _try(job: Job, network: nn.Module, data: Data) -> None:
    method = create(job.method, job.parameters)
    try:
        _step(method, network, data)
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{job.method}: {said}") from error


def _step(method: Method, network: nn.Module, data: Data) -> None:
    """A step at every place where the method mixes, whatever share of steps it leaves out."""
    known = table(data.train, method.needs)
    method.setup(network, data.task, known, validation=known, steps=BATCH, generator=torch.Generator().manual_seed(0))
    if method.samples_ahead:
        return
    mixers = [part for part in parts(method) if isinstance(part, Mix)]
    places = {mixer: mixer.places for mixer in mixers}
    still: Any = _Still()
    for turn in range(max(map(len, places.values()), default=1)):
        for mixer in mixers:
            mixer.places, mixer.probability = (places[mixer][turn % len(places[mixer])],), 1.0
        anchors, guests = method.rows(torch.arange(min(BATCH, len(data.train))))
        rows = anchors if guests is None else torch.cat((anchors, guests.T.flatten()))
        x, y, domain = data.train.take(rows)
        method.step(network, Batch(x, y, domain, rows, len(anchors)), still)


class _Still:
    """An optimiser that changes nothing. PyTorch's own import for seconds when the first is made."""

    param_groups: ClassVar[list[dict[str, Any]]] = [{"params": [], "lr": 0.0}]

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass

    def step(self) -> None:
        pass
