import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import omnimix.compare.jobs as jobs_module
from omnimix.compare import compare, settings
from omnimix.compare.report import page
from omnimix.compare.run import make_plan
from omnimix.compare.selection import choices, standing
from omnimix.compare.stability import stability
from omnimix.compare.store import Run
from omnimix.compare.targets import t_interval
from omnimix.core.task import Regression
from omnimix.data import Source

SCORES = {"erm": [3.0, 3.5, 2.5], "mixup": [2.0, 3.0, 2.5]}
"""Test RMSE by seed, of the first domain; the others are 1, 2, 3 more."""


def toy():
    x = torch.rand(80, 3, generator=torch.Generator().manual_seed(0))
    return Source(
        "toy", x, 5 * x.sum(1), Regression(1), "table", torch.arange(80) % 4, ("north", "south", "east", "west")
    )


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "mixup"), "epochs": 3, "net": "mlp:hidden=4", "protocol": "domains"}
    return settings(**{**given, **more})


def test_the_interval_of_student():
    values = [0.5, 1.0, -0.2]
    wanted = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(wanted)
    assert t_interval([1.0]) is None


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`made(...)`: the result of runs that never were."""

    def fake(job, plan, progress):
        domain = job.hold.out[0]
        value = SCORES[str(job.method)][job.seed] + domain - (job.draw.number if str(job.method) == "mixup" else 0)
        score = 5.0 - job.draw.number
        row = {"train_loss": 1.0, "valid_loss": 1.0, "valid_rmse": score, "valid_mean_domain": score}
        row |= {f"valid_rmse@{domain}": score for domain in range(4)}
        history = [dict(row, epoch=epoch) for epoch in range(1, job.budget.epochs + 1)]
        name = plan.source.domain_names[domain]
        return Run(**job.labels, data="", code="", metrics={"rmse": value, "worst_domain": value},
                   domains={name: {"rmse": value}}, history=history, best_epoch=1, seconds=1.0, step_seconds=0.1,
                   peak_memory=None, device="cpu", versions={})  # fmt: skip

    monkeypatch.setattr(jobs_module, "_run", fake)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda *a: [])

    def run(**more):
        monkeypatch.setattr("omnimix.compare.report.write", lambda *a: None)
        return compare(asked(seeds=(0, 1, 2), **more), tmp_path, source=toy(), workers=1, together=False)

    return run


def test_differences_by_target_are_paired_by_seed(made):
    result = made()
    (line,) = result.targets
    assert line.method == "mixup"
    gaps = [-1.0, -0.5, 0.0]
    for gap in line.domains.values():
        assert (gap.n, gap.mean) == (3, pytest.approx(-0.5))
        assert gap.ci95 == pytest.approx(t_interval(gaps))
    assert line.pairs.n == 12
    assert line.pairs.mean == pytest.approx(-0.5)
    low, high = line.pairs.ci95
    assert -1 < low < -0.5 < high < 0
    found = result.to_json()
    assert found["targets"][0]["domains"]["north"]["mean"] == pytest.approx(-0.5)
    shown = page(result)
    assert "by held-out domain" in shown
    assert "(n = 12)" in shown
    assert "How stable" not in shown


def test_the_order_of_methods_is_told_over_the_draws(made):
    result = made(tune=4)
    lines = {line.method: line for line in result.stability}
    # erm is 3, 3.5, 2.5 whatever the draw; mixup is better than it whatever is drawn but draw 0 of all seeds
    assert lines["mixup"].first > 0.99
    assert lines["mixup"].rank < lines["erm"].rank
    assert lines["mixup"].low == 1
    assert "How stable" in page(result)


def test_no_order_is_told_where_other_draws_have_no_test_score(made):
    assert made(tune=3, selection="leave-one-domain-out").stability == []
    assert made().stability == []


def test_stability_chooses_as_the_rule_does():
    """With all draws in, what it chooses is what the table shows."""
    given = asked(methods=("erm", "mixup"), seeds=(0,), tune=3)
    _, plan, jobs = make_plan(given, toy())
    valid, test = [3.0, 1.0, 2.0], [10.0, 20.0, 30.0]

    def fake(job):
        better = 15.0 if str(job.method) == "mixup" else 0.0
        row = {"epoch": 1, "valid_loss": 1.0, "valid_mean_domain": valid[job.draw.number]}
        return Run(**job.labels, data="", code="", metrics={"rmse": test[job.draw.number] + better}, domains={},
                   history=[row], best_epoch=1, seconds=1.0, step_seconds=1.0, peak_memory=None, device="cpu",
                   versions={})  # fmt: skip

    runs = {job.key: fake(job) for job in jobs}
    chosen = choices(plan, jobs, runs)
    assert {job.draw.number for job in standing(plan, jobs, chosen).values()} == {1}
    lines = {line.method: line for line in stability(plan, jobs, runs)}

    def value(draws):
        return test[min(draws, key=lambda draw: valid[draw])]

    every = [value(draws) for draws in itertools.product(range(3), repeat=3)]
    ahead = sum(own + 15 < other for own in every for other in every) / len(every) ** 2
    assert lines["mixup"].first == pytest.approx(ahead, abs=4 * math.sqrt(0.25 / 1000))


def test_settings_are_those_of_the_profile_unless_they_are_given():
    from omnimix.compare.profile import PROFILES, with_profile

    found = with_profile("quick", {"data": "pacs:x", "epochs": 2, "rows": None})
    assert found["epochs"] == 2
    assert found["rows"] == PROFILES["quick"]["rows"]
    assert settings(**found).protocol == "domains"
    assert "size" not in with_profile("quick", {"data": "leaves.csv"})
    assert with_profile(None, {"data": "x", "tune": None}) == {"data": "x"}
    with pytest.raises(ValueError, match="over domains"):
        with_profile("quick", {"data": "x", "protocol": "default"})
    with pytest.raises(ValueError, match="profile must be one of 'full', 'quick'"):
        with_profile("fast", {"data": "x"})


def test_predictors_that_look_at_the_test_batch_are_marked(made):
    result = replace(made(), transductive=("mixup",))
    assert result.label("mixup") == "mixup (transductive)"
    assert result.label("erm") == "erm"
    assert any("mixup: transductive" in line for line in result.warnings)
    assert "mixup (transductive)" in page(result)
