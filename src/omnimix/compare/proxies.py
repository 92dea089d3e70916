"""Proxy runs on the engines of the comparison: one small language model a mixture and seed, a row of the store each.

A row is keyed by all that decides it (tokens, network, budget, mixture, seed, code), so a command that was stopped
finds its rows again, and continues the runs that were under way from their checkpoints.
"""

from __future__ import annotations

import csv
import hashlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..core.checks import at_least
from ..corpora import Mixture
from ..corpora.proxy import Follow, Packed, Trained, Training, train
from . import engine as engines
from .engine.base import Work
from .jobs import Outcome, versions
from .spec import fingerprint
from .store import Failure, Run, Store

ROOMS = ("core", "corpora/proxy", "networks/language_model.py", "corpora/mixture.py")
"""Whose code decides what a run gives."""
METHOD = "proxy"

Watch = Callable[[int, int, np.ndarray], AbstractContextManager[Callable[[Run | Failure], None]]]
"""Called with the number of runs to do, the number found in the store, and the share done of each while they run; as a
context manager it gives the function to call with the outcome of each run.
"""


@dataclass(frozen=True)
class ProxyJob:
    """One run. index: its place in the files of mixtures and losses."""

    index: int
    mixture: Mixture
    seed: int
    config: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Proxies(Work):
    """What the runs share."""

    data: Packed
    training: Training
    parts: tuple[str, ...]
    checkpoints: Path
    versions: dict[str, str]

    @property
    def device(self) -> str:  # type: ignore[override]
        wants = self.training.accelerator
        return wants if wants != "auto" else "gpu" if torch.cuda.is_available() else "cpu"

    def execute(self, unit: tuple[ProxyJob, ...], progress: Callable[[float], None]) -> Outcome:
        return [self._run(job, progress) for job in unit]

    def killed(self, unit: tuple[ProxyJob, ...], error: BaseException) -> Outcome:
        said = "the process of this run was killed twice, most likely for want of memory; use fewer --jobs"
        return [self._failed(job, said, f"{said}\n{error}") for job in unit]

    def packed(self) -> Proxies:
        return replace(self, checkpoints=self.checkpoints.absolute(), data=Packed(self.data.folder.absolute()))

    def _run(self, job: ProxyJob, progress: Callable[[float], None]) -> Run | Failure:
        try:
            done = train(
                self.data,
                Follow(job.mixture),
                self.training,
                seed=job.seed,
                parts=self.parts,
                checkpoint=self.checkpoints / f"{job.key}.safetensors",
                paths=1,
                progress=progress,
            )
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._failed(job, line, "".join(traceback.format_exception(error)))
        return self._row(job, done)

    def _row(self, job: ProxyJob, done: Trained) -> Run:
        known = {part: {name: _finite(v) for name, v in losses.items()} for part, losses in done.losses.items()}
        domains = {name: {part: known[part][name] for part in self.parts} for name in self.data.domains}
        return Run(
            key=job.key,
            method=METHOD,
            seed=job.seed,
            data=self.data.digest,
            code=job.config["code"],
            config=job.config,
            metrics={part: _mean(list(losses.values())) for part, losses in known.items()},
            domains=domains,
            history=[],
            best_epoch=None,
            seconds=done.seconds,
            step_seconds=done.seconds / self.training.steps,
            peak_memory=None,
            device=self.device,
            versions=self.versions,
            extras={"tokens": done.tokens, "flops": done.flops, "epochs": done.epochs},
        )

    def _failed(self, job: ProxyJob, line: str, trace: str) -> Failure:
        return Failure(job.key, METHOD, job.seed, job.config, line, trace, self.versions)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def make_jobs(
    packed: Packed, mixtures: Sequence[Mixture], training: Training, seeds: Sequence[int], parts: tuple[str, ...]
) -> list[ProxyJob]:
    """A job for every mixture and seed, mixture by mixture; ValueError for a mixture of other domains."""
    jobs: list[ProxyJob] = []
    for mixture in mixtures:
        unknown = set(mixture.domains) - set(packed.domains)
        if unknown:
            raise ValueError(f"the mixtures name {sorted(unknown)}; the documents have {', '.join(packed.domains)}")
        for seed in seeds:
            config = {
                "data": packed.digest,
                "training": asdict(training),
                "mixture": mixture.to_dict() | {"provenance": {}},
                "parts": list(parts),
                "seed": seed,
                "code": proxy_code(),
                "torch": torch.__version__.partition("+")[0],
            }
            jobs.append(ProxyJob(len(jobs) + 1, mixture, seed, config, fingerprint(config)))
    return jobs


def run_proxies(
    packed: Packed,
    mixtures: Sequence[Mixture],
    training: Training,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    parts: tuple[str, ...] = ("valid",),
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    watch: Watch = lambda todo, found, fractions: nullcontext(lambda outcome: None),
) -> tuple[list[ProxyJob], dict[str, Run], dict[str, Failure]]:
    """Train what the store in `out` does not hold; gives the jobs, and by key what ended well and what failed.

    Writes mixtures.csv, and for every part losses-PART.csv, rows in step, for `omnimix weigh fit`. workers: runs at a
    time; None: one a core, one in all on a GPU. ValueError for what does not fit together, before anything runs.
    """
    engines.check(engine, address)
    if not mixtures or not seeds:
        raise ValueError("there is nothing to run: give a mixture and a seed, or more")
    if training.devices > 1:
        raise ValueError("proxies run side by side, on one device each: devices must be 1")
    if workers is not None:
        at_least("jobs", workers, 1)
    folder = Path(out)
    work = Proxies(packed, training, parts, folder / "checkpoints", versions())
    if workers is None and address is None:
        from joblib import cpu_count

        workers = 1 if work.device == "gpu" else int(cpu_count())
    jobs = make_jobs(packed, mixtures, training, seeds, parts)
    with Store(folder / "store.db") as store:
        have = store.runs(job.key for job in jobs)
        todo = list({job.key: (job,) for job in jobs if job.key not in have}.values())
        with engines.shared_fractions(len(todo)) as fractions, watch(len(todo), len(have), fractions) as ended:
            for outcomes in engines.run(todo, work, workers, fractions, engine, address):  # type: ignore[arg-type]
                for outcome in outcomes:  # kept before anybody is told
                    store.add(outcome)
                    ended(outcome)
        runs = store.runs(job.key for job in jobs)
        failed = {key: fault for key, fault in store.failures(job.key for job in jobs).items() if key not in runs}
    write_tables(folder, packed.domains, jobs, runs, parts)
    return jobs, runs, failed


def write_tables(
    folder: Path, domains: Sequence[str], jobs: Sequence[ProxyJob], runs: Mapping[str, Run], parts: Sequence[str]
) -> None:
    """The runs as CSV files that join on "index": mixtures.csv, and losses-PART.csv, a column a domain and "mean"."""
    done = [job for job in jobs if job.key in runs]
    with open(folder / "mixtures.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["index", *domains])
        for job in done:
            overall = job.mixture.overall().weights
            table.writerow([job.index, *(f"{overall.get(name, 0.0):.12g}" for name in domains)])
    for part in parts:
        measured = [name for name in domains if all(runs[job.key].domains[name][part] is not None for job in done)]
        with open(folder / f"losses-{part}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["index", *(f"loss/{name}" for name in measured), "loss/mean"])
            for job in done:
                run = runs[job.key]
                table.writerow(
                    [job.index, *(f"{run.domains[name][part]:.9g}" for name in measured), f"{run.metrics[part]:.9g}"]
                )


@cache
def proxy_code() -> str:
    """Version and hash of the code that decides results."""
    package, total = Path(__file__).parents[1], hashlib.sha256()
    for room in ROOMS:
        place = package / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"
