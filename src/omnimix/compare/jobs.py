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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__
from ..core import registry
from ..core.method import Method, Mix, Setup
from ..core.task import Task
from ..data.source import Source, digest
from .protocol import Protocol, prepare, split
from .spec import Settings, Spec, create, fingerprint, fit_sequences, write_value
from .store import Failure, Run

if TYPE_CHECKING:
    from ..train import Fit
    from ..train.parts import Data

ROOMS = ("core", "samples", "domains", "models", "data", "networks", "train")
"""Whose code decides what a run gives; with `FILES` beside this one."""
FILES = ("jobs.py", "protocol.py", "spec.py")


@dataclass(frozen=True)
class Plan:
    """What the jobs of a comparison share."""

    source: Source
    protocol: Protocol
    label_noise: float
    noise_seed: int
    versions: dict[str, str]
    checkpoints: Path | None = None
    plugins: tuple[registry.Info, ...] = ()
    """Methods from outside this package, which processes may not find by themselves (those of a script)."""


@dataclass(frozen=True)
class Job:
    """One run. config: all that decides its result, as JSON; key: its hash."""

    method: Spec
    parameters: Mapping[str, Any]
    seed: int
    config: dict[str, Any]
    key: str

    @property
    def labels(self) -> dict[str, Any]:
        return {"key": self.key, "method": str(self.method), "seed": self.seed, "config": self.config}


Unit = tuple[Job, ...]
"""What a process does at a time: one run, or several that train together."""
Outcome = list[Run | Failure]
"""What the runs of a unit gave, in their order."""


def make_jobs(settings: Settings, plan: Plan) -> list[Job]:
    """All jobs, seed by seed, so that a comparison that is cut short holds whole pairs."""
    source, protocol = plan.source, plan.protocol
    official = sorted(source.official.items()) if source.official and protocol.official else []
    shared = {
        "data": source.digest,
        "task": repr(source.task),
        "official": {name: digest(rows) for name, rows in official},
        "protocol": protocol.describe(),
        "weights": _weights(protocol),
        "device": device_kind(source, protocol),
        "torch": torch.__version__.partition("+")[0],
        "label_noise": plan.label_noise,
        "noise_seed": plan.noise_seed if plan.label_noise else 0,
    }
    jobs = []
    for seed in settings.seeds:
        for spec in settings.specs:
            parameters = spec.resolved(plan.protocol.methods.get(spec.name, {}))
            config = {
                **shared,
                "method": str(spec),
                "parameters": {name: write_value(value) for name, value in parameters.items()},
                "seed": seed,
                "code": method_code(spec.name),
            }
            jobs.append(Job(spec, parameters, seed, config, fingerprint(config)))
    return jobs


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


def check_places(spec: Spec, parameters: Mapping[str, Any], network: nn.Module, task: Task) -> None:
    """ValueError if the method mixes at a place that the network does not have."""
    for method in _parts(create(spec, parameters)):
        if isinstance(method, Mix):
            try:
                method.resolve_places(Setup(network, task))
            except ValueError as error:
                raise ValueError(f"{spec}: {error}") from error


def _parts(method: Method) -> Iterator[Method]:
    """The method and those that it is made of."""
    yield method
    for value in vars(method).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Method):
                yield from _parts(part)


def make_network(plan: Plan, seed: int) -> nn.Module:
    """The protocol's network with the initial weights of a seed; ValueError for a name or option that is not known."""
    from ..networks import NETWORKS
    from ..networks import create as create_network

    network, source = Spec.parse(plan.protocol.network), plan.source
    options = dict(network.parameters)
    if network.name in NETWORKS:
        options = fit_sequences(NETWORKS[network.name], options)
    try:
        return create_network(network.name, source.input_shape, source.task.outputs, seed=seed, **options)
    except TypeError as error:
        raise ValueError(f"{network}: {error}") from error


def execute(unit: Unit, plan: Plan, progress: Callable[[float], None] | None = None) -> Outcome:
    """Run the jobs of a unit; whatever goes wrong in one is returned, not raised.

    progress: called with the share that is done.
    """
    try:
        (job,) = unit
        return [_run(job, plan, progress)]
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return [failure(job, plan, line, traceback.format_exc()) for job in unit]


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


def _given(job: Job, plan: Plan) -> _Given:
    source, protocol = plan.source, plan.protocol
    noise_seed = int(fingerprint([plan.noise_seed, job.seed])[:15], 16)
    data = prepare(protocol, source, split(protocol, source, job.seed), plan.label_noise, noise_seed)
    return _Given(create(job.method, job.parameters), make_network(plan, job.seed), data)


def _run(job: Job, plan: Plan, progress: Callable[[float], None] | None) -> Run:
    from ..train import fit

    given = _given(job, plan)
    checkpoint = plan.checkpoints and plan.checkpoints / f"{job.key}.safetensors"

    def tell(done: int, total: int, _: dict[str, float]) -> None:
        if progress is not None:
            progress(done / total)

    budget = plan.protocol.budget
    done = fit(given.method, given.model, given.data, budget, seed=job.seed, checkpoint=checkpoint, progress=tell)
    run = _scored(job, plan, given, done)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return run


def _scored(job: Job, plan: Plan, given: _Given, done: Fit) -> Run:
    """The row of a run that was trained."""
    from ..train import evaluate
    from ..train.metrics import headline

    source, data, model = plan.source, given.data, given.model
    assert data.test is not None
    found = evaluate(model, given.method, data.test, source.task, target_scale=data.target_scale)
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
