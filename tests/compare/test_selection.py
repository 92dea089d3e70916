import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

import omnimix.compare.jobs as jobs_module
from omnimix.compare import compare, settings
from omnimix.compare.jobs import final_jobs
from omnimix.compare.protocol import Hold, split
from omnimix.compare.run import make_plan
from omnimix.compare.selection import Cell, choices
from omnimix.compare.spec import Spec
from omnimix.compare.store import Run
from omnimix.core.task import Classification, Regression
from omnimix.data import Source

NAMES = ("north", "south", "east", "west")
RULES = {"training-domain": 4, "last": 4, "oracle": 4, "leave-one-domain-out": 6}
"""Runs of a method, a seed and a draw with four domains, before anything is selected."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("omnimix.compare.report.write", lambda *a: None)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda *a: [])


def toy(domains=4, rows=80, classes=False):
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    y, task = ((x[:, 0] > 0.5).long(), Classification(2)) if classes else (5 * x.sum(1), Regression(1))
    extra = {"class_names": ("no", "yes")} if classes else {}
    return Source("toy", x, y, task, "table", torch.arange(rows) % domains, NAMES[:domains], **extra)


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "mixup"), "seeds": (0, 1), "epochs": 3, "net": "mlp:hidden=4"}
    return settings(**{**given, "protocol": "domains", **more})


@pytest.mark.parametrize(("rule", "count"), RULES.items())
def test_a_rule_launches_just_the_runs_that_it_needs(rule, count):
    _, plan, jobs = make_plan(asked(selection=rule, tune=5), toy())
    assert len(jobs) == len({job.key for job in jobs}) == 2 * 2 * 5 * count
    outs = {job.hold.out for job in jobs}
    assert outs == (set(itertools.combinations(range(4), 2)) if count == 6 else {(0,), (1,), (2,), (3,)})
    assert all(job.hold.oracle == (rule == "oracle") for job in jobs)
    found = choices(plan, jobs, {job.key: fake(job) for job in jobs})
    assert len(found) == 2 * 2 * 4
    finals = final_jobs(asked(selection=rule, tune=5), plan, found)
    assert len(finals) == (2 * 2 * 4 if count == 6 else 0)
    assert not {job.key for job in finals} & {job.key for job in jobs}


def test_the_epoch_that_a_rule_keeps():
    kept = {rule: make_plan(asked(selection=rule), toy())[2][0].budget for rule in RULES}
    assert (kept["training-domain"].select, kept["training-domain"].metric) == ("best", "mean_domain")
    assert {kept[rule].select for rule in RULES if rule != "training-domain"} == {"last"}
    plain = make_plan(asked(protocol="default", selection="last"), toy())[2][0].budget
    assert plain.select == "last"
    assert make_plan(asked(protocol="default"), toy())[2][0].budget.select == "best"


def fake(job, curve=None, test=1.0, names=NAMES):
    """A run of three epochs; curve(other domain or None): its validation scores."""
    out = job.hold.out if job.hold else ()
    history = [{"epoch": e + 1, "valid_loss": 1.0, "valid_rmse": 1.0, "valid_mean_domain": 1.0} for e in range(3)]
    for other in out if len(out) == 2 else (None,):
        values = curve(other) if curve else [3.0, 2.0, 1.0]
        for row, value in zip(history, values, strict=True):
            row["valid_mean_domain" if other is None else f"valid_rmse@{other}"] = value
    best = min(range(3), key=lambda e: history[e]["valid_mean_domain"]) + 1 if job.budget.select == "best" else 3
    metrics = {"rmse": test, "mape": 2 * test, "worst_domain": test}
    domains = {names[d]: {"rmse": test} for d in out[:1]}
    return Run(
        data="", code="", metrics=metrics, domains=domains, history=history, best_epoch=best, seconds=1.0,
        step_seconds=0.1, peak_memory=1, device="cpu", versions={}, **job.labels,
    )  # fmt: skip


def test_leave_one_domain_out_takes_epoch_and_draw_by_the_mean_over_the_other_domains():
    given = asked(methods=("erm",), seeds=(0,), selection="leave-one-domain-out", tune=2)
    _, plan, jobs = make_plan(given, toy(3))
    # for the target 0 the runs without {0, 1} and {0, 2} count, on domain 1 and on domain 2
    curves = {
        (0, (0, 1), 1): [5, 4, 9], (0, (0, 2), 2): [5, 4, 9], (1, (0, 1), 1): [1, 6, 6], (1, (0, 2), 2): [8, 1, 6],
    }  # fmt: skip
    runs = {
        job.key: fake(job, lambda other, job=job: curves.get((job.draw.number, job.hold.out, other), [7.0, 7.0, 7.0]))
        for job in jobs
    }
    found = choices(plan, jobs, runs)[Cell(Spec("erm"), 0, 0)]
    # means of draw 0: 5, 4, 9; of draw 1: 4.5, 3.5, 6
    assert (found.draw, found.epoch, found.score) == (1, 2, 3.5)
    assert found.scores == {0: 4.0, 1: 3.5}
    (final,) = [job for job in final_jobs(given, plan, choices(plan, jobs, runs)) if job.hold.out == (0,)]
    assert (final.draw.number, final.budget.epochs, final.budget.planned, final.budget.select) == (1, 2, 3, "last")
    missing = next(job.key for job in jobs if job.draw.number == 1 and job.hold.out == (0, 2))
    without = choices(plan, jobs, {key: run for key, run in runs.items() if key != missing})
    assert without[Cell(Spec("erm"), 0, 0)].scores == {0: 4.0}  # a draw with a run missing has no score
    assert without[Cell(Spec("erm"), 0, 1)].scores.keys() == {0, 1}


def test_training_domain_takes_the_checkpoint_with_the_best_validation_and_oracle_the_last_one():
    for rule, score in (("training-domain", 1.0), ("oracle", 5.0)):
        _, plan, jobs = make_plan(asked(methods=("erm",), seeds=(0,), selection=rule), toy())
        runs = {job.key: fake(job, lambda other: [2.0, 1.0, 5.0]) for job in jobs}
        assert choices(plan, jobs, runs)[Cell(Spec("erm"), 0, 2)].score == score


def test_every_training_domain_counts_the_same_whatever_its_size(tmp_path):
    source = toy(3, 90)
    source = replace(source, domain=torch.tensor([0] * 10 + [1] * 70 + [2] * 10), digest="")
    given = asked(methods=("erm",), seeds=(0,), epochs=8, lr=0.05)
    _, plan, jobs = make_plan(given, source)
    runs = {job.key: jobs_module.execute((job,), replace(plan, together=together))[0]
            for job, together in zip(jobs, (True, False, False), strict=True)}  # fmt: skip
    unweighted_differs = False
    for job in jobs:
        run = runs[job.key]
        others = [d for d in range(3) if d not in job.hold.out]
        means = [sum(row[f"valid_rmse@{d}"] for d in others) / 2 for row in run.history]
        assert run.best_epoch == means.index(min(means)) + 1
        chosen = choices(plan, jobs, runs)[Cell(Spec("erm"), 0, job.hold.out[0])]
        assert (chosen.epoch, chosen.score) == (run.best_epoch, pytest.approx(min(means)))
        pooled = run.history[run.best_epoch - 1]["valid_rmse"]
        unweighted_differs |= abs(pooled - chosen.score) > 1e-3
    assert unweighted_differs


def test_higher_is_better_for_accuracy():
    _, plan, jobs = make_plan(asked(methods=("erm",), seeds=(0,), tune=2, protocol="default"), toy(classes=True))
    runs = {}
    for job, score in zip(jobs, (0.6, 0.9), strict=True):
        run = fake(job)
        for row in run.history:
            row["valid_accuracy"] = score
        runs[job.key] = run
    (found,) = choices(plan, jobs, runs).values()
    assert (found.draw, found.score) == (1, 0.9)


def test_a_domain_is_split_alike_whichever_is_held_out():
    source = toy(rows=83)
    plan = make_plan(asked(), source)[1]
    parts = {d: split(plan.protocol, source, 0, Hold((d,))) for d in range(4)}
    sizes = [int((source.domain == d).sum()) for d in range(4)]
    for d, (train, valid, test) in parts.items():
        rows = torch.cat((train, valid, test))
        assert len(rows.unique()) == len(rows)
        assert set(source.domain[test].tolist()) == {d}
        assert d not in source.domain[torch.cat((train, valid))]
        assert len(test) == sizes[d] - int(0.2 * sizes[d])
        assert len(valid) == sum(int(0.2 * size) for e, size in enumerate(sizes) if e != d)
    seen = [train[source.domain[train] == 3] for train, _, _ in (parts[0], parts[1])]
    assert seen[0].equal(seen[1])
    assert seen[0].equal(parts[3].test)
    oracle = split(plan.protocol, source, 0, Hold((2,), oracle=True))
    assert set(source.domain[oracle.valid].tolist()) == {2}
    assert oracle.train.equal(parts[2].train)
    assert oracle.test.equal(parts[2].test)
    pair = split(plan.protocol, source, 0, Hold((0, 1)))
    assert set(source.domain[pair.train].tolist()) == {2, 3}
    assert pair.valid.equal(torch.cat((parts[0].test, parts[1].test)).sort().values)
    assert not split(plan.protocol, source, 1, Hold((2,))).test.equal(parts[2].test)


@pytest.mark.parametrize("rule", RULES)
def test_the_table_holds_the_mean_over_held_out_domains_by_seed(tmp_path, monkeypatch, rule):
    made = Counter()

    def run(job, plan, progress):
        made[len(job.hold.out)] += 1
        return fake(job, test=[1.0, 2.0, 3.0, 6.0][job.hold.out[0]] + job.seed)

    monkeypatch.setattr(jobs_module, "_run", run)
    result = compare(asked(selection=rule), tmp_path, source=toy(), workers=1, together=False)
    assert made == ({2: 2 * 2 * 6, 1: 2 * 2 * 4} if rule == "leave-one-domain-out" else {1: 2 * 2 * 4})
    assert [(r.method, r.seed) for r in result.runs] == [("erm", 0), ("erm", 1), ("mixup", 0), ("mixup", 1)]
    assert [r.metrics["rmse"] for r in result.runs] == [3.0, 4.0, 3.0, 4.0]
    assert result.runs[0].metrics["worst_domain"] == 6.0
    rows = result.to_json()["rows"][:5]
    assert [(row["domain"], row["metrics"]["rmse"]) for row in rows] == [
        (None, 3.0), ("north", 1.0), ("south", 2.0), ("east", 3.0), ("west", 6.0),
    ]  # fmt: skip
    assert rows[1]["metrics"]["mape"] == 2.0
    assert result.domain_mean("erm", "west") == 6.5
    assert any("upper reference" in line for line in result.warnings) == (rule == "oracle")
    assert not any("every domain is in training" in line for line in result.warnings)
    before = sum(made.values())
    compare(asked(selection=rule), tmp_path, source=toy(), workers=1, together=False)
    assert sum(made.values()) == before


def test_a_seed_with_a_failed_domain_is_not_in_the_table(tmp_path, monkeypatch):
    def run(job, plan, progress):
        if (job.seed, job.hold.out) == (1, (2,)):
            return jobs_module._failed(job, plan, RuntimeError("diverged"))
        return fake(job)

    monkeypatch.setattr(jobs_module, "_run", run)
    result = compare(asked(methods=("erm",)), tmp_path, source=toy(), workers=1, together=False)
    assert [run.seed for run in result.runs] == [0]
    assert len(result.failures) == 1
    assert not result.complete


def test_leave_one_domain_out_from_training_to_table(tmp_path):
    given = asked(methods=("erm",), seeds=(0,), selection="leave-one-domain-out", epochs=4, tune=2)
    result = compare(given, tmp_path, source=toy(3), workers=1)
    assert result.complete
    (run,) = result.runs
    assert run.metrics["rmse"] == pytest.approx(sum(run.domains[name]["rmse"] for name in NAMES[:3]) / 3)
    assert [entry["domain"] for entry in result.tuning] == list(NAMES[:3])
    for entry in result.tuning:
        best = max(entry["draws"], key=lambda d: -d["score"])
        assert entry["chosen"]["draw"] == best["draw"]
        assert 1 <= entry["chosen"]["epoch"] <= 4


@pytest.mark.parametrize(
    ("given", "source", "message"),
    [
        ({}, toy(1), "needs two domains or more; toy has 1"),
        ({"selection": "leave-one-domain-out"}, toy(2), "needs three or more; toy has 2"),
        ({"selection": "best"}, toy(), "selects by training-domain, leave-one-domain-out, oracle, last; got"),
        ({"protocol": "default", "selection": "oracle"}, toy(), "--protocol domains"),
        ({}, toy(4, 18), "the domain 'east' has 4 rows"),
        (
            {"selection": "leave-one-domain-out", "evaluations": 100, "epochs": None},
            toy(),
            "give epochs, not evaluations",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, source, message):
    with pytest.raises(ValueError, match=message):
        make_plan(asked(**given), source)


def test_data_without_domains_are_refused():
    x = torch.rand(40, 2)
    with pytest.raises(ValueError, match="--domain"):
        make_plan(asked(), Source("toy", x, x.sum(1), Regression(1), "table"))
