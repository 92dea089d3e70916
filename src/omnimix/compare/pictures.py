"""What methods do to training samples, seen without training: who is mixed with whom, how much, and what comes out.

A method is set up on an untrained network and asked for the losses of a few batches; its mixing parts are made to note
their recipes instead of computing a loss, so no forward pass is needed. A method that mixes in a way of its own is
seen through what it gives to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.method import Method, Mix
from ..core.recipe import Mixed, Recipe
from ..core.side import Beside
from ..core.tree import rows
from ..train.parts import Data, table
from .jobs import Job, Plan, make_network, noise_seed, parts
from .protocol import prepare, split
from .spec import create

FEW = 4
"""Batches of methods that need the network itself to be watched."""
DRAWS = 2000
"""Samples whose partners are counted."""
BYTES = 2**26
"""Inputs beyond that are represented by `DRAWS` of the training rows."""


@dataclass(frozen=True)
class Step:
    """What a method made of one training batch.

    mix, recipe: the part that mixed and how, or None where the batch was trained on as it is. seen: what the network
    was given by a method that is not made of `Mix`, else None.
    """

    batch: Batch
    mix: Mix | None = None
    recipe: Recipe | None = None
    seen: Tensor | None = None

    @property
    def mixed(self) -> Mixed | None:
        """The mixed inputs with their recipe; None where the inputs stay as they are."""
        if self.mix is None or self.recipe is None or self.recipe.place != "input":
            return None
        return self.mix.mix(self.batch, self.recipe)


class _Eye(nn.Module):
    """Stands for the network, or before it, and notes what it is given."""

    def __init__(self, outputs: int, network: nn.Module | None = None) -> None:
        super().__init__()
        self.outputs, self.network, self.seen = outputs, network, list[Any]()

    def forward(self, x: Any) -> Any:
        self.seen.append(x)
        return torch.zeros(rows(x), self.outputs, requires_grad=True) if self.network is None else self.network(x)


def watch(
    method: Method, network: nn.Module, data: Data, *, batch_size: int, draws: int = DRAWS, seed: int = 0
) -> list[Step]:
    """What `method` makes of `draws` training samples, batch by batch; `network` is not trained.

    ValueError, with the reason in one line, for a method that cannot be shown without training.
    """
    if method.streams:
        raise ValueError(f"it trains on the extra streams {', '.join(method.streams)}")
    try:
        return _watch(method, network, data, _Eye(data.task.outputs), batch_size, draws, seed)
    except Exception as error:  # whatever a method of others does, the report is written
        if any(isinstance(value, Beside) for value in vars(method).values()):
            raise ValueError("it learns how to mix along with the network") from error
    try:
        steps = _watch(method, network, data, _Eye(data.task.outputs, network), batch_size, FEW * batch_size, seed)
    except Exception as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error
    if all(step.seen is None and step.recipe is None for step in steps):
        raise ValueError("it mixes hidden states in a pass of its own through the network")
    return steps


def _watch(
    method: Method, network: nn.Module, data: Data, eye: _Eye, batch_size: int, draws: int, seed: int
) -> list[Step]:
    part, generator, steps = data.train, torch.Generator().manual_seed(seed), list[Step]()
    columns = table(part, method.needs)
    method.setup(network, data.task, columns, steps=1000, generator=torch.Generator().manual_seed(seed))
    _note(method, steps)
    for _ in range(max(1, -(-draws // batch_size))):
        order = torch.randperm(len(part), generator=generator)[:batch_size]
        anchors, guests = method.rows(order)
        index = anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))
        batch = Batch(*part.take(index), index, len(anchors))
        noted = len(steps)
        method.loss(eye, batch)
        if len(steps) == noted:
            steps.append(Step(batch, seen=_changed(eye.seen, batch)))
        eye.seen.clear()
    return steps


def _note(method: Method, steps: list[Step]) -> None:
    """Make every part of the method note what it would train on."""
    zero = torch.zeros((), requires_grad=True)

    def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
        steps.append(Step(batch))
        return zero

    def noting(part: Mix) -> Any:
        def mixed_loss(model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
            steps.append(Step(batch, part, recipe))
            return zero

        return mixed_loss

    for part in parts(method):
        vars(part)["plain_loss"] = plain_loss
        if isinstance(part, Mix):
            vars(part)["mixed_loss"] = noting(part)


def _changed(seen: list[Any], batch: Batch) -> Tensor | None:
    """The first inputs given to the network that are not all samples of the batch as they are; None without any."""
    for x in seen:
        if isinstance(x, Tensor) and isinstance(batch.x, Tensor) and x.shape[1:] == batch.x.shape[1:]:
            x = x.detach()
            if changed_rows(x, batch):
                return x
    return None


def changed_rows(seen: Tensor, batch: Batch) -> list[int]:
    """The rows of inputs given to the network that are no samples of the batch."""
    known = {row.numpy().tobytes() for row in batch.x.detach().cpu()}
    return [i for i, row in enumerate(seen.detach().cpu()) if row.numpy().tobytes() not in known]


@dataclass(frozen=True)
class Pairs:
    """Who was mixed with whom: row p is a sample and one of its partners.

    label: (P, 2) class ids or real values, None for others. domain: (P, 2) or None. count: samples asked for; unmixed:
    how many of them were trained on as they are.
    """

    label: Tensor | None
    domain: Tensor | None
    count: int
    unmixed: int

    @staticmethod
    def of(steps: list[Step]) -> Pairs:
        labels, domains, count, unmixed = list[Tensor](), list[Tensor](), 0, 0
        for step in steps:
            count += len(step.batch)
            if step.recipe is None:
                unmixed += len(step.batch)
                continue
            partner, share = step.recipe.partner, step.recipe.share
            meets = (partner[:, 1:] != partner[:, :1]) & (share[:, 1:] > 0)
            unmixed += int((~meets.any(dim=1)).sum())
            own, column = meets.nonzero(as_tuple=True)
            pair = torch.stack((partner[own, 0], partner[own, column + 1]), dim=1)
            if step.batch.y.ndim == 1 or step.batch.y.shape[1:] == (1,):
                labels.append(step.batch.y.flatten()[pair])
            if step.batch.domain is not None:
                domains.append(step.batch.domain[pair])
        return Pairs(
            torch.cat(labels) if labels else None, torch.cat(domains) if domains else None, count, unmixed
        )  # fmt: skip


def same(pairs: Tensor) -> float:
    """The share of pairs (P, 2) of ids that are equal."""
    return (pairs[:, 0] == pairs[:, 1]).double().mean().item()


def chance(ids: Tensor) -> float:
    """The share of equal pairs when both are drawn at random from ids (N,): sum_c p_c^2."""
    return (ids.bincount().double() / len(ids)).square().sum().item()


@dataclass(frozen=True)
class Shown:
    """What one method of a comparison does. steps: empty where `why` says why it cannot be shown.

    seed, without: of the run whose training rows these are, and the domain that it holds out.
    """

    method: str
    data: Data
    steps: list[Step]
    why: str = ""
    seed: int = 0
    without: str = ""


def gallery(plan: Plan, jobs: list[Job]) -> list[Shown]:
    """Every method of a comparison, with the parameters of its first draw, on the training part of the first run that
    is tested.
    """
    first = dict[str, Job]()
    for job in jobs:
        hold = job.hold and replace(job.hold, out=job.hold.out[:1])  # where two are left out, to select, one is tested
        first.setdefault(str(job.method), replace(job, hold=hold))
    chosen = list(first.values())
    data, hold = _training_part(plan, chosen[0]), chosen[0].hold
    without = "" if hold is None else plan.source.domain_names[hold.out[0]]
    return [replace(_show(plan, job, data), seed=chosen[0].seed, without=without) for job in chosen]


def _show(plan: Plan, job: Job, data: Data) -> Shown:
    size = min(plan.protocol.budget.batch_size, len(data.train))
    draws = DRAWS if data.train.nbytes else 128
    try:
        method, network = create(job.method, job.parameters), make_network(plan, job.seed)
        steps = watch(method, network, data, batch_size=size, draws=draws)
        for step in steps[:1]:
            _ = step.mixed
        return Shown(str(job.method), data, steps)
    except (ValueError, RuntimeError) as error:
        return Shown(str(job.method), data, [], str(error))


def _training_part(plan: Plan, job: Job) -> Data:
    """The training part of a run; images in [0, 1]."""
    source, protocol = plan.source, plan.protocol
    rows = split(protocol, source, job.seed, job.hold)
    if source.kind == "image":
        protocol = replace(protocol, scale="none")
        size = 4 * len(rows.train) * source.x[:1].numel() if isinstance(source.x, Tensor) else BYTES + 1
        if size > BYTES:
            order = torch.randperm(len(rows.train), generator=torch.Generator().manual_seed(0))
            rows = rows._replace(train=rows.train[order[:DRAWS]])
    none = rows.train[:0]
    return prepare(protocol, source, rows._replace(valid=none, test=none), plan.label_noise, noise_seed(plan, job.seed))


def draws_of(mix: Mix, count: int = 400) -> Tensor:
    """(count,) draws of lam, the share of the sample itself, from a private generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([mix.ratio(1, mix.pairing.k, generator)[:, 0] for _ in range(count)])


def over_lam(
    mix: Mix, x: Tensor, lams: Sequence[float], seed: int, y: Tensor | None = None, place: str = "input"
) -> list[tuple[Tensor, Tensor]]:
    """For each lam: the mix of the K samples x (K, ...), the first with share lam, and the label shares (K,).

    The other draws of the operation, such as the place of a box, are the same for all. y: the targets of x, for
    operations that look at the samples through the network. place: of which x are the inputs or the hidden states.
    """
    count, found = len(x), []
    for lam in lams:
        share = torch.full((1, count), (1 - lam) / (count - 1))
        share[0, 0] = lam
        mix.generator = torch.Generator().manual_seed(seed)
        mixed, recipe = mix.apply(x, Recipe(torch.arange(count).unsqueeze(0), share, place=place), y)
        found.append((mixed[0], recipe.label_share[0]))
    return found
