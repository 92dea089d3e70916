"""Jobs: one run each of a method and a seed, keyed by all that decides the result, and how to execute one.

For one seed all methods get the same split, label noise and initial weights, whatever else runs beside them.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import platform
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__
from ..core import registry
from ..core.method import Method
from ..data.source import Source, digest
from ..train.budget import Budget
from ..train.parts import Data, Part
from .arguments import fit_sequences
from .protocol import Hold, Protocol, official_rows, prepare, split
from .selection import LEAVE_ONE_OUT, Cell, Chosen, holds, rule_budget
from .spec import Settings, Spec, canonical, cost, create, decisive, fingerprint
from .store import Failure, Run
from .tune import Draw, draw

if TYPE_CHECKING:
    from ..train import Fit

TOGETHER = 16
"""The most runs that train together."""
BYTES = 2**28
"""The most data that they may hold."""
ROOMS = ("core", "samples", "domains", "models", "data", "networks", "train")
"""Whose code decides what a run gives; with `FILES` beside this one."""
FILES = ("arguments.py", "jobs.py", "protocol.py", "selection.py", "spec.py", "tune.py")


@dataclass(frozen=True)
class Plan:
    """What the jobs of a comparison share."""

    source: Source
    protocol: Protocol
    label_noise: float
    noise_seed: int
    versions: dict[str, str]
    checkpoints: Path | None = None
    together: bool = True
    """Train the seeds of a method in one vectorised process where that is possible."""
    plugins: tuple[registry.Info, ...] = ()
    """Methods from outside this package, which processes may not find by themselves (those of a script)."""


@dataclass(frozen=True)
class Job:
    """One run. config: all that decides its result, as JSON; key: its hash. budget: the protocol's, with what the
    method, the draw of hyperparameters and the rule of selection change. hold: where domains are held out.
    """

    method: Spec
    parameters: Mapping[str, Any]
    seed: int
    config: dict[str, Any]
    key: str
    budget: Budget
    draw: Draw = field(default_factory=Draw)
    hold: Hold | None = None

    @property
    def labels(self) -> dict[str, Any]:
        return {"key": self.key, "method": str(self.method), "seed": self.seed, "config": self.config}


Unit = tuple[Job, ...]
"""What a process does at a time: one run, or several that train together."""
Outcome = list[Run | Failure]
"""What the runs of a unit gave, in their order."""


def make_jobs(settings: Settings, plan: Plan) -> list[Job]:
    """The jobs that nothing has to be known for, seed by seed, so that a comparison cut short holds whole pairs."""
    make = _Maker(settings, plan)
    return [
        make(spec, seed, number, hold)
        for seed in settings.seeds
        for spec in settings.specs
        for number in range(max(1, settings.tune))
        for hold in holds(plan.protocol, plan.source)
    ]


def final_jobs(settings: Settings, plan: Plan, found: Mapping[Cell, Chosen]) -> list[Job]:
    """The jobs that follow from what others chose: those that are tested after leave-one-domain-out."""
    if plan.protocol.selection != LEAVE_ONE_OUT:
        return []
    make = _Maker(settings, plan)
    return [
        make(cell.method, cell.seed, choice.draw, Hold((cell.domain,)), choice.epoch)
        for cell, choice in found.items()
        if cell.domain is not None
    ]


class _Maker:
    """Makes the jobs of a comparison."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        source, protocol = plan.source, plan.protocol
        official = sorted((official_rows(protocol, source) or {}).items())
        self.settings, self.plan = settings, plan
        self.shared = {
            "data": source.digest,
            "task": repr(source.task),
            "official": {name: digest(rows) for name, rows in official},
            "weights": _weights(protocol),
            "device": device_kind(source, protocol),
            "torch": torch.__version__.partition("+")[0],
            "label_noise": plan.label_noise,
            "noise_seed": plan.noise_seed if plan.label_noise else 0,
        }
        self.train = cache(lambda seed, hold: split(protocol, source, seed, hold).train)

    def __call__(self, spec: Spec, seed: int, number: int, hold: Hold | None, epochs: int | None = None) -> Job:
        """epochs: after how many to stop, where that was chosen before."""
        protocol, source = self.plan.protocol, self.plan.source
        keep_lr = self.settings.lr is not None
        drawn = draw(spec, number, seed, protocol, keep_lr=keep_lr, label_sd=lambda: self._label_sd(seed, hold))
        parameters = {**spec.resolved(protocol.methods.get(spec.name, {})), **drawn.parameters}
        budget = replace(self._budget(spec, parameters, seed, hold), **drawn.budget)
        budget = rule_budget(budget, protocol, epochs)
        name, given = decisive(spec, parameters)
        config = {
            **self.shared,
            "protocol": replace(protocol, budget=budget).describe(),
            "held_out": hold
            and {
                "out": [source.domain_names[domain] for domain in hold.out],
                "oracle": hold.oracle,
                "domains": list(source.domain_names),
            },
            "method": name,
            "parameters": given,
            "seed": seed,
            "code": method_code(spec.name),
        }
        return Job(spec, parameters, seed, config, fingerprint(config), budget, drawn, hold)

    def _budget(self, spec: Spec, parameters: Mapping[str, Any], seed: int, hold: Hold | None) -> Budget:
        """For as long as the method trains; ValueError if the evaluations do not last for an epoch."""
        budget, evaluations = self.plan.protocol.budget, self.settings.evaluations
        times = spec.times
        if evaluations is not None:
            method = create(spec, parameters)
            an_epoch = cost(spec, method) * steps(len(self.train(seed, hold)), budget)
            ahead = method.samples_ahead / budget.batch_size
            epochs = int((evaluations - ahead) / an_epoch)
            if epochs < 1:
                raise ValueError(
                    f"evaluations = {evaluations} do not last for an epoch of {spec}, which takes {an_epoch:g} "
                    f"gradient evaluations" + (f" after {ahead:g} before the first step" if ahead else "")
                )
            times = epochs / budget.epochs
        if times == 1:
            return budget
        milestones = tuple(max(1, round(milestone * times)) for milestone in budget.milestones)
        return replace(budget, epochs=max(1, round(budget.epochs * times)), milestones=milestones)

    def _label_sd(self, seed: int, hold: Hold | None) -> float:
        """Of the training labels; for vector labels, their root mean square distance from the mean."""
        rows = self.train(seed, hold)
        y = self.plan.source.y[rows].double().reshape(len(rows), -1)
        return (y - y.mean(0)).square().sum(1).mean().sqrt().item()


def steps(rows: int, budget: Budget) -> int:
    """Of an epoch over so many rows."""
    full, rest = divmod(rows, budget.batch_size)
    return full + int(rest > 0 and not budget.drop_last)


def device_kind(source: Source, protocol: Protocol) -> str:
    """What `accelerator="auto"` comes to on this machine: "cpu" or "gpu"."""
    wants = protocol.budget.accelerator
    if wants != "auto":
        return wants
    return "gpu" if source.kind == "image" and torch.cuda.is_available() else "cpu"


def _weights(protocol: Protocol) -> str | None:
    """The hash of the file that the network's weights come from; a file that is not there is told by the network."""
    name = dict(Spec.parse(protocol.network).parameters).get("weights")
    if name is None or not Path(str(name)).is_file():
        return None
    return hashlib.sha256(Path(str(name)).read_bytes()).hexdigest()


def check(spec: Spec, parameters: Mapping[str, Any], source: Source) -> None:
    """ValueError if the method cannot be made, or not be used on these data."""
    card = registry.info(spec.name)
    method = create(spec, parameters)
    if source.task.name not in card.tasks:
        raise ValueError(f"{spec.name} is for {' and '.join(card.tasks)}; {source.name} is {source.task.name}")
    if "any" not in card.inputs and source.kind not in card.inputs:
        raise ValueError(f"{spec.name} needs {' or '.join(card.inputs)} inputs; {source.name} is a {source.kind}")
    if "domain" in method.needs and source.domain is None:
        raise ValueError(f"{spec.name} needs the domain of every sample; say which column it is (--domain)")


def parts(method: Method) -> Iterator[Method]:
    """The method and those that it is made of."""
    yield method
    for value in vars(method).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Method):
                yield from parts(part)


def make_network(plan: Plan, seed: int) -> nn.Module:
    """The protocol's network with the initial weights of a seed; ValueError for a name or option that is not known."""
    from ..networks import NETWORKS
    from ..networks import create as create_network

    network, source = Spec.parse(plan.protocol.network), plan.source
    options = dict(network.parameters)
    if network.name in NETWORKS:
        options = fit_sequences(NETWORKS[network.name], options)
    try:
        made = create_network(network.name, source.input_shape, source.task.outputs, seed=seed, **options)
    except TypeError as error:
        raise ValueError(f"{network}: {error}") from error
    if plan.protocol.batch_norm == "frozen":
        for layer in made.modules():  # the loop leaves layers as they are where the network is in training mode
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
    return made


def units(jobs: Sequence[Job], plan: Plan, workers: int) -> list[Unit]:
    """What processes do at a time: a method's seeds and draws in one vectorised training where that is possible."""
    from ..train.together import but_for_rates, shared

    groups: dict[Any, list[Job]] = {}
    jobs = list({job.key: job for job in jobs}.values())  # of two texts of one method, one run
    alike: dict[str, str] = {}
    for job in jobs:
        said = f"{job.method} {canonical(job.config['parameters'])}"
        if said not in alike:
            alike[said] = repr(shared(create(job.method, job.parameters)))
        groups.setdefault((str(job.method), alike[said], but_for_rates(job.budget), job.hold), []).append(job)
    pieces = -(-workers // max(1, len(groups)))  # enough for every worker
    found: list[Unit] = []
    for group in groups.values():
        size = max(1, min(_together(group[0], plan), -(-len(group) // pieces)))
        found += [tuple(group[start : start + size]) for start in range(0, len(group), size)]
    return sorted(found, key=lambda unit: jobs.index(unit[0]))


def _together(job: Job, plan: Plan) -> int:
    """How many runs like this one may train together; 0: none."""
    from ..train.together import can_train_together

    x = plan.source.x
    if not plan.together or not isinstance(x, torch.Tensor) or plan.source.kind != "table":
        return 0
    part = Part(plan.source.take(torch.arange(2)), plan.source.y[:2])
    data = Data(part, None, None, plan.source.task)
    fit = can_train_together(create(job.method, job.parameters), make_network(plan, job.seed), data, job.budget)
    return max(1, min(TOGETHER, BYTES // x.nbytes)) if fit else 0


def execute(unit: Unit, plan: Plan, progress: Callable[[float], None] | None = None) -> Outcome:
    """Run the jobs of a unit; whatever goes wrong in one is returned, not raised.

    progress: called with the share that is done.
    """
    if _together(unit[0], plan):
        try:
            return _run_together(unit, plan, progress)
        except Exception as error:
            if len(unit) == 1:
                return [_failed(unit[0], plan, error)]
            return _apart(unit, plan, progress)
    return [_run(job, plan, progress) for job in unit]


def _apart(unit: Unit, plan: Plan, progress: Callable[[float], None] | None) -> Outcome:
    """The outcomes of runs that cannot train together, one after the other."""
    found: Outcome = []
    for number, job in enumerate(unit):

        def tell(share: float, number: int = number) -> None:
            if progress is not None:
                progress((number + share) / len(unit))

        found += execute((job,), plan, tell)
    return found


def failure(job: Job, plan: Plan, error: str, trace: str) -> Failure:
    return Failure(error=error, traceback=trace, versions=plan.versions, **job.labels)


def killed(unit: Unit, plan: Plan, error: BaseException) -> Outcome:
    """The outcome of a unit whose process died twice."""
    said = "the process of this run was killed twice, most likely for want of memory; use fewer --jobs"
    return [failure(job, plan, said, f"{said}\n{error}") for job in unit]


@dataclass(frozen=True)
class _Given:
    """What one run trains."""

    method: Method
    model: nn.Module
    data: Data


def noise_seed(plan: Plan, seed: int) -> int:
    """The seed of the label noise of the runs of a seed."""
    return int(fingerprint([plan.noise_seed, seed])[:15], 16)


def _given(job: Job, plan: Plan) -> _Given:
    source, protocol = plan.source, plan.protocol
    rows = split(protocol, source, job.seed, job.hold)
    data = prepare(protocol, source, rows, plan.label_noise, noise_seed(plan, job.seed))
    return _Given(create(job.method, job.parameters), make_network(plan, job.seed), data)


def _run(job: Job, plan: Plan, progress: Callable[[float], None] | None) -> Run | Failure:
    from ..train import fit

    checkpoint = plan.checkpoints and plan.checkpoints / f"{job.key}.safetensors"

    def tell(done: int, total: int, _: dict[str, float]) -> None:
        if progress is not None:
            progress(done / total)

    try:
        given = _given(job, plan)
        shown = tell if job.budget.devices == 1 else None  # several train in processes of their own
        done = fit(
            given.method, given.model, given.data, job.budget, seed=job.seed, checkpoint=checkpoint, progress=shown
        )
        return _scored(job, plan, given, done)
    except Exception as error:
        return _failed(job, plan, error)


def _run_together(unit: Unit, plan: Plan, progress: Callable[[float], None] | None) -> Outcome:
    from ..train.together import fit_together, same_shapes

    givens = [_given(job, plan) for job in unit]
    if not same_shapes([given.data for given in givens]):
        return _apart(unit, plan, progress)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done / total)

    trained = fit_together(
        [given.method for given in givens],
        [given.model for given in givens],
        [given.data for given in givens],
        [job.budget for job in unit],
        seeds=[job.seed for job in unit],
        checkpoints=[plan.checkpoints / f"{job.key}.safetensors" for job in unit] if plan.checkpoints else None,
        progress=tell,
    )
    rates = len({(job.budget.lr, job.budget.weight_decay) for job in unit})
    of = {"together": str(len(unit))} | ({"rates": str(rates)} if rates > 1 else {})
    return [_outcome(job, plan, given, done, of) for job, given, done in zip(unit, givens, trained, strict=True)]


def _outcome(job: Job, plan: Plan, given: _Given, done: Fit | Exception, versions: dict[str, str]) -> Run | Failure:
    """What became of one of the runs that trained together. versions: what to add to its own."""
    if isinstance(done, Exception):
        return _failed(job, plan, done)
    try:
        run = _scored(job, plan, given, done)
    except Exception as error:
        return _failed(job, plan, error)
    return replace(run, versions={**run.versions, **versions})


def _failed(job: Job, plan: Plan, error: Exception) -> Failure:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return failure(job, plan, line, "".join(traceback.format_exception(error)))


def _scored(job: Job, plan: Plan, given: _Given, done: Fit) -> Run:
    """The row of a run that was trained."""
    from ..train.evaluate import predict
    from ..train.metrics import headline, scores
    from ..train.sketch import sketch

    source, data, model = plan.source, given.data, given.model
    assert data.test is not None
    prediction, y = predict(model, given.method, data.test, source.task, target_scale=data.target_scale)
    found = scores(source.task, prediction, y, None if data.test.domain is None else data.test.domain.cpu())
    main = headline(source.task)
    if not math.isfinite(found[main]):
        raise ValueError(f"the test {main} is {found[main]}")
    metrics = {name: value if math.isfinite(value) else None for name, value in found.items() if "@" not in name}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Run(
        data=source.digest,
        code=job.config["code"],
        metrics=metrics,
        domains={
            source.domain_names[int(name.split("@")[1])]: {main: value}
            for name, value in found.items()
            if "@" in name and math.isfinite(value)
        },
        history=done.history,
        best_epoch=done.best_epoch,
        seconds=done.seconds,
        step_seconds=done.step_seconds,
        peak_memory=done.peak_memory,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        versions=plan.versions,
        extras={"test": sketch(source.task, prediction, y)},
        **job.labels,
    )


@cache
def code_digest() -> str:
    """Version and hash of the code that decides results, so that rows of other code are not taken for ours."""
    package, total = Path(__file__).parents[1], hashlib.sha256()
    files = [path for room in ROOMS for path in sorted((package / room).rglob("*.py"))]
    for path in [*files, *(Path(__file__).with_name(name) for name in FILES)]:
        total.update(path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


@cache
def method_code(name: str) -> str:
    """`code_digest`, and for a plug-in the hash of the file that defines it."""
    factory = registry.info(name).factory
    if is_ours(name):
        return code_digest()
    try:
        own = hashlib.sha256(inspect.getsource(inspect.getmodule(factory) or factory).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        own = "unknown"
    return f"{code_digest()}+{own}"


def is_ours(name: str) -> bool:
    """Whether a method is part of this package."""
    return registry.info(name).package == __name__.partition(".")[0]


def versions() -> dict[str, str]:
    """What a result was made with."""
    found = {"omnimix": __version__, "torch": torch.__version__, "python": platform.python_version()}
    found |= {"numpy": version("numpy"), "machine": f"{platform.system()} {platform.machine()}"}
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str | None:
    """The git commit of a development checkout of omnimix, marked + if files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "jobs.py") is None:
        return None
    commit = git("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--", "..") else "")
