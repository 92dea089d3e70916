"""What a comparison still has to run, without running anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data import Source
from .jobs import Job, Plan, final_jobs
from .run import make_plan
from .selection import LEAVE_ONE_OUT, choices
from .spec import Settings
from .store import Run, Store


@dataclass(frozen=True)
class Missing:
    """needed: the jobs that the rule of selection asks for, as far as they are known. have: the keys of finished ones.

    later: runs that follow once others have chosen their draw and epoch, and are not among those.
    """

    plan: Plan
    needed: list[Job]
    have: set[str]
    later: int

    @property
    def jobs(self) -> list[Job]:
        """Those that have not run."""
        return [job for job in self.needed if job.key not in self.have]


def missing(settings: Settings, out: str | Path | None = None, source: Source | None = None) -> Missing:
    """What `compare(settings, out)` would run; ValueError for settings that do not fit the data."""
    settings, plan, jobs = make_plan(settings, source)
    folder = Path("omnimix-out") / plan.source.name if out is None else Path(out)
    runs: dict[str, Run] = {}
    if (folder / "store.db").exists():
        with Store(folder / "store.db") as store:
            runs = store.runs(job.key for job in jobs)
            found = choices(plan, jobs, runs)
            finals = final_jobs(settings, plan, found)
            runs |= store.runs(job.key for job in finals)
    else:
        finals = []
    tested = len({domain for job in jobs if job.hold for domain in job.hold.out})
    rows = len({(str(job.method), job.seed) for job in jobs})
    later = tested * rows - len(finals) if plan.protocol.selection == LEAVE_ONE_OUT else 0
    return Missing(plan, [*jobs, *finals], set(runs), later)
