"""A comparison from its settings to its report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core import registry
from ..core.checks import at_least
from ..data import Source, load
from . import engine as engines
from .arguments import to_json
from .jobs import (
    TOGETHER,
    Job,
    Outcome,
    Plan,
    Unit,
    check,
    code_digest,
    device_kind,
    final_jobs,
    is_ours,
    make_jobs,
    steps,
    units,
    versions,
)  # fmt: skip
from .protocol import DOMAIN_RULES, RULES, Hold, adjust, choose, official_rows, split, tested_domains
from .rehearsal import rehearse
from .result import Result
from .rules import ORACLE, Ruled
from .selection import LEAVE_ONE_OUT, choices, table_runs, tuning
from .spec import Settings, create, parse_specs
from .stability import stability
from .store import Failure, Run, Store

USUAL = {
    "classification": ("erm", "mixup", "manifold-mixup", "regmixup"),
    "multilabel": ("erm", "mixup", "manifold-mixup"),
    "regression": ("erm", "mixup", "manifold-mixup", "c-mixup"),
}
"""What is compared where no methods are named, by task."""
USUAL_IMAGES = ("cutmix", "fmix")
USUAL_DOMAINS = ("erm", "mixup", "group-dro", "coral", "fish")
"""Where domains are held out, whatever the task."""

Watch = Callable[[Plan, list[Unit], int, np.ndarray], AbstractContextManager[Callable[[Run | Failure], None]]]
"""Called with the plan, the units to run, the number of runs found in the store, and the share done of each unit while
they run; as a context manager it gives the function to call with the outcome of each run."""


def _silent(plan: Plan, units: list[Unit], found: int, fractions: np.ndarray) -> Any:
    return nullcontext(lambda outcome: None)


def compare(
    settings: Settings,
    out: str | Path | None = None,
    *,
    source: Source | None = None,
    store_file: str | Path | None = None,
    workers: int | None = None,
    watch: Watch = _silent,
    engine: str = "local",
    address: str | None = None,
    together: bool = True,
) -> Result:
    """Run what the store in `out` does not hold yet, and write the report there.

    out: a folder, None for omnimix-out/NAME. source: the data, where they are not to be loaded from `settings.data`.
    store_file: None for store.db in `out`.
    workers: processes; None takes one a core, or one in all on a GPU. engine: "local" processes, or "ray": on the
    cluster at `address` (there, workers = None takes all of it), or on one that is started here for the call.
    together: train the seeds of a method in one vectorised process where that is possible (see `train.together`).
    ValueError for settings that do not fit the data, before anything runs. An interrupt leaves a store from which the
    same call continues.
    """
    engines.check(engine, address)
    settings, plan, jobs = make_plan(settings, source)
    folder = Path("omnimix-out") / plan.source.name if out is None else Path(out)
    plan = replace(plan, checkpoints=folder / "checkpoints", together=together)
    if workers is not None:
        at_least("jobs", workers, 1)
    elif address is None:
        workers = default_workers(plan)
    compute = partial(engines.run, workers=workers, engine=engine, address=address)
    with Store(store_file or folder / "store.db") as store:
        _run_missing(jobs, plan, store, workers or TOGETHER, compute, watch)
        further = final_jobs(settings, plan, choices(plan, jobs, store.runs(job.key for job in jobs)))
        if further:
            _run_missing(further, plan, store, workers or TOGETHER, compute, watch)
        result = collect(settings, plan, [*jobs, *further], store, folder)
    from .pictures import gallery
    from .report import write

    try:
        write(result, gallery(plan, jobs))
    except OSError as error:
        raise ValueError(
            f"{folder}: the report cannot be written ({error}); every result is kept in {result.store}, and the same "
            "command writes it once there is room and permission"
        ) from error
    return result


def _run_missing(
    jobs: list[Job],
    plan: Plan,
    store: Store,
    workers: int,
    compute: Callable[..., Iterator[Outcome]],
    watch: Watch,
) -> None:
    """Run the jobs that the store does not hold."""
    have = store.runs(job.key for job in jobs)
    _tidy(plan, have)
    todo = units([job for job in jobs if job.key not in have], plan, workers)
    with engines.shared_fractions(len(todo)) as fractions, watch(plan, todo, len(have), fractions) as ended:
        for outcomes in compute(todo, plan, fractions=fractions):
            for outcome in outcomes:  # kept before anybody is told
                store.add(outcome)
            _tidy(plan, [outcome.key for outcome in outcomes if isinstance(outcome, Run)])
            for outcome in outcomes:
                ended(outcome)


def _tidy(plan: Plan, keys: Collection[str]) -> None:
    """Remove the checkpoints of runs that are stored, and what is left of writing one when the process was killed."""
    with suppress(OSError):  # there are none, or the folder is not ours to change
        for file in plan.checkpoints.iterdir() if plan.checkpoints else ():
            if file.name.partition(".")[0] in keys:
                file.unlink(missing_ok=True)


def make_plan(settings: Settings, source: Source | None = None) -> tuple[Settings, Plan, list[Job]]:
    """The settings with all rows, the data and protocol, and the jobs to begin with; ValueError for what does not fit
    together.
    """
    for spec in parse_specs(settings.methods) if settings.methods else ():
        create(spec)
    if source is None:
        source = load(
            settings.data,
            target=settings.target,
            task=settings.task,
            drop=settings.drop,
            domain=settings.domain,
            resize=settings.size,
            rows=settings.rows,
            data_seed=settings.data_seed,
        )
    protocol = choose(settings.protocol, source)
    usual = USUAL[source.task.name] + (USUAL_IMAGES if source.kind == "image" else ())
    settings = settings.with_methods(USUAL_DOMAINS if protocol.by_domain else usual)
    _ = settings.baseline_spec
    protocol = adjust(
        protocol,
        net=settings.net,
        epochs=settings.epochs,
        batch=settings.batch,
        lr=settings.lr,
        devices=settings.devices,
        selection=settings.selection,
        batch_norm=settings.batch_norm,
    )
    if settings.evaluations is not None and protocol.selection == LEAVE_ONE_OUT:
        raise ValueError(
            f"with selection = {LEAVE_ONE_OUT!r} runs on different numbers of rows must choose a common epoch: give "
            "epochs, not evaluations"
        )
    budget, first = protocol.budget, len(split(protocol, source, settings.seeds[0]).train)
    settings = settings.expanded(protocol.methods, budget.epochs * budget.batch_size * max(1, steps(first, budget)))
    if settings.label_noise and source.task.name != "classification":
        raise ValueError(f"label noise replaces class labels; {source.name} is {source.task.name}")
    foreign = dict.fromkeys(spec.name for spec in settings.specs if not is_ours(spec.name))
    plugins = tuple(registry.info(name) for name in foreign)
    plan = Plan(source, protocol, settings.label_noise, settings.noise_seed, versions(), plugins=plugins)
    jobs = make_jobs(settings, plan)
    different = {str((job.method, sorted(job.parameters.items()))): job for job in jobs}.values()
    for job in different:
        check(job.method, job.parameters, source)
    rows = min(len(split(protocol, source, job.seed, job.hold).train) for job in jobs if job.seed == jobs[0].seed)
    if protocol.budget.drop_last and rows < protocol.budget.batch_size:
        raise ValueError(
            f"batch = {protocol.budget.batch_size} is more than the {rows} training rows; use a smaller one"
        )
    rehearse(list({job.method: job for job in reversed(jobs)}.values()), plan)
    return settings, plan, jobs


def default_workers(plan: Plan) -> int:
    """One run a core, or as many as their devices take; one in all where GPUs do the work."""
    from joblib import cpu_count

    if device_kind(plan.source, plan.protocol) == "gpu":
        return 1
    return max(1, int(cpu_count()) // plan.protocol.budget.devices)


def collect(settings: Settings, plan: Plan, jobs: list[Job], store: Store, folder: Path) -> Result:
    """What the store holds of these jobs."""
    from ..train.metrics import headline

    keys = [job.key for job in jobs]
    runs = store.runs(keys)
    chosen = choices(plan, jobs, runs)
    failures = {key: fault for key, fault in store.failures(keys).items() if key not in runs}
    order = sorted(jobs, key=lambda job: (settings.specs.index(job.method), settings.seeds.index(job.seed)))
    source = plan.source
    sizes = [len(part) for part in split(plan.protocol, source, settings.seeds[0])]
    main = headline(source.task)
    shown = table_runs(plan, order, chosen, runs)
    others = _other_rules(settings, plan, store)
    return Result(
        settings=settings,
        data={
            "name": source.name,
            "rows": len(source),
            "inputs": " x ".join(map(str, source.input_shape)),
            "task": source.task.name + (f" of {source.task.outputs} classes" if source.class_names else ""),
            "target": ", ".join(source.target_names),
            "features": list(source.feature_names),
            "classes": list(source.class_names),
            "domains": list(source.domain_names),
            "random_split": not plan.protocol.by_domain and official_rows(plan.protocol, source) is None,
            "split": sizes,
            "folds": _folds(settings, plan),
            "notes": list(source.notes),
            "digest": source.digest,
        },
        protocol={
            **to_json(plan.protocol.describe()),
            "source": plan.protocol.source,
            "selection": plan.protocol.selection,
        },
        parameters={str(job.method): to_json(job.parameters) for job in order if not job.draw.number},
        primary=main,
        runs=shown,
        rules={rule: found for rule, found in others.items() if _keys(found.runs) != _keys(shown)},
        failed_draws={job.key: job.draw.number for job in order if job.key in failures},
        tuning=[]
        if settings.tune <= 1 and plan.protocol.selection != LEAVE_ONE_OUT
        else to_json(tuning(plan, order, chosen, runs)),
        failures=[replace(failures[job.key], method=str(job.method)) for job in order if job.key in failures],
        stability=stability(plan, jobs, runs) if settings.tune > 1 else [],
        transductive=tuple(str(spec) for spec in settings.specs if create(spec).transductive),
        pending=len(set(keys) - set(runs) - set(failures)),
        foreign=store.foreign(source.digest, code_digest()),
        store=store.path,
        folder=folder,
    )


def _keys(runs: list[Run]) -> list[str]:
    return [run.key for run in runs]


def _folds(settings: Settings, plan: Plan) -> dict[str, list[int]]:
    """Training, validation and test rows of the first seed by the domain that is held out; {} where none is."""
    protocol, source = plan.protocol, plan.source
    if not protocol.by_domain:
        return {}
    holds = {domain: Hold((domain,), protocol.selection == ORACLE) for domain in tested_domains(source)}
    return {
        source.domain_names[domain]: [len(part) for part in split(protocol, source, settings.seeds[0], hold)]
        for domain, hold in holds.items()
    }


def _other_rules(settings: Settings, plan: Plan, store: Store) -> dict[str, Ruled]:
    """What the other rules of selection choose among the runs that the store holds; no rule of which it holds none."""
    found = {}
    for rule in DOMAIN_RULES if plan.protocol.by_domain else RULES:
        other = replace(plan, protocol=replace(plan.protocol, selection=rule))
        first = settings.model_copy(update={"seeds": settings.seeds[:1], "tune": 0})
        if rule == plan.protocol.selection or not _held(first, other, store)[1]:
            continue  # without the cost of all jobs where a few tell
        jobs, runs = _held(settings, other, store)
        chosen = choices(other, jobs, runs)
        jobs += final_jobs(settings, other, chosen)
        runs = store.runs(job.key for job in jobs)
        jobs.sort(key=lambda job: (settings.specs.index(job.method), settings.seeds.index(job.seed)))
        shown = table_runs(other, jobs, chosen, runs)
        tuned = settings.tune > 1 or rule == LEAVE_ONE_OUT
        if shown:
            found[rule] = Ruled(shown, to_json(tuning(other, jobs, chosen, runs)) if tuned else [])
    return found


def _held(settings: Settings, plan: Plan, store: Store) -> tuple[list[Job], dict[str, Run]]:
    """The jobs to begin with, and what the store holds of them; nothing for a rule that these data do not allow."""
    try:
        jobs = make_jobs(settings, plan)
    except ValueError:
        return [], {}
    return jobs, store.runs(job.key for job in jobs)
