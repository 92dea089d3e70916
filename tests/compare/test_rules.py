import csv
import io
import json
from dataclasses import replace

import pytest
import torch

import omnimix.compare.jobs as jobs_module
from omnimix.compare import compare, settings
from omnimix.compare.pictures import gallery
from omnimix.compare.report import page
from omnimix.compare.run import make_plan
from omnimix.compare.store import Run
from omnimix.core.task import Classification, Regression
from omnimix.data import Source

NAMES = ("north", "south", "east")
GAIN = {"training-domain": 0.0, "last": 0.5, "leave-one-domain-out": 1.0, "oracle": -0.25}
"""What a rule adds to the scores here."""


def toy(classes=False):
    x = torch.rand(67, 3, generator=torch.Generator().manual_seed(0))
    domain = torch.arange(67) % 3
    domain[60:] = 0
    y, task = ((x[:, 0] > 0.5).long(), Classification(2)) if classes else (5 * x.sum(1), Regression(1))
    return Source("toy", x, y, task, "table", domain, NAMES, class_names=("no", "yes") if classes else ())


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "mixup"), "seeds": (0, 1), "epochs": 2, "net": "mlp:hidden=4"}
    return settings(**{**given, "protocol": "domains", **more})


@pytest.fixture
def ruled(tmp_path, monkeypatch):
    """`ruled(rule, ...)`: the result of a comparison of made-up runs, in one store."""
    monkeypatch.setattr("omnimix.compare.report.write", lambda *a: None)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda *a: [])

    def fake(job, plan, progress):
        budget, hold = job.budget, job.hold
        rule = plan.protocol.selection
        if (str(job.method), job.seed, rule) == ("mixup", 1, "oracle"):
            return jobs_module._failed(job, plan, RuntimeError("diverged"))
        value = 1.0 + job.seed + (0.0 if hold is None else hold.out[0]) + GAIN.get(rule, 0.0)
        score = 5.0 - job.draw.number
        row = {"epoch": 1, "train_loss": 1.0, "valid_loss": 1.0, "valid_rmse": score, "valid_mean_domain": score}
        row |= {f"valid_rmse@{domain}": score for domain in range(3)} | {"valid_worst_domain": score}
        history = [dict(row, epoch=epoch) for epoch in range(1, budget.epochs + 1)]
        metrics = {"rmse": value, "worst_domain": value} if hold else {"rmse": value}
        more = {"data": plan.source.digest, "code": job.config["code"], "metrics": metrics, "domains": {}}
        return Run(**job.labels, **more, history=history, best_epoch=1, seconds=1.0, step_seconds=0.1,
                   peak_memory=None, device="cpu", versions={})  # fmt: skip

    def run(rule, **more):
        monkeypatch.setattr(jobs_module, "_run", fake)
        return compare(asked(selection=rule, **more), tmp_path, source=toy(), workers=1, together=False)

    return run


def test_rules_that_ran_stand_side_by_side(ruled):
    alone = ruled("training-domain")
    assert alone.rules == {}
    ruled("leave-one-domain-out")
    ruled("oracle")
    made = ruled("training-domain")
    assert set(made.rules) == {"leave-one-domain-out", "oracle"}
    lines = {(line.method, line.rule): line for line in made.side_by_side}
    assert [rule for _, rule in lines][:3] == ["training-domain", "leave-one-domain-out", "oracle"]
    own, oracle = lines["erm", "training-domain"], lines["erm", "oracle"]
    assert own.domains == {"north": 1.5, "south": 2.5, "east": 3.5}  # over seeds 0 and 1
    assert (own.n, own.mean, own.worst, own.gap) == (2, 2.5, 3.5, None)
    assert (oracle.mean, oracle.gap) == (2.25, -0.25)
    failed = lines["mixup", "oracle"]  # of its two seeds one failed: the gap is over the other
    assert (failed.n, failed.mean, failed.gap) == (1, 1.75, -0.25)
    assert made.domain_mean("erm", "south") == 2.5


def test_the_files_show_them(ruled):
    ruled("oracle", tune=2)
    made = ruled("training-domain", tune=2)
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    north = [row for row in rows if (row["method"], row["seed"], row["domain"]) == ("erm", "0", "north")]
    assert [(row["selection"], row["held_out"], row["draw"], row["rmse"]) for row in north] == [
        ("training-domain", "north", "1", "1.0"), ("oracle", "north", "1", "0.75"),
    ]  # fmt: skip
    assert "lr=" in north[0]["parameters"]
    text = made.to_latex()
    assert r"erm & oracle & $1.25$ & $2.25$ & $3.25$ & $3.25$ & $2.25$ & $-0.25$ \\" in text
    assert r"($n = 1$)" in text
    assert "upper reference" in text
    assert r"\label{tab:toy-draws}" in text
    assert "mixup & 1 & east & 1 & 1 & alpha=" in text
    html = page(made)
    for said in ("By held-out domain", "oracle (upper reference)", "Minus training-domain", "Which draws were chosen",
                 "Without south", "of 2 draws"):  # fmt: skip
        assert said in html, said
    told = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert told["selection"] == "training-domain"
    assert {line["rule"] for line in told["rules"]} == {"training-domain", "oracle"}


def test_failures_say_draw_and_held_out_domain(ruled):
    made = ruled("oracle", tune=2)
    row = [row for row in made.rows() if row["status"] == "failed"][-1]
    assert (row["method"], row["seed"], row["draw"], row["held_out"]) == ("mixup", 1, 1, ["east"])
    assert "mixup,1,,east,oracle,0.0,1," in made.to_csv()
    assert "mixup, seed 1, draw 1, without east: RuntimeError: diverged" in page(made)
    assert "an upper reference" in page(made)


def test_folds_have_their_own_sizes(ruled):
    made = ruled("training-domain")
    assert made.data["folds"] == {"north": [32, 8, 22], "south": [38, 9, 16], "east": [38, 9, 16]}
    assert "32 training, 8 validation, 22 test rows" in page(made)
    assert made.data["split"] == [32, 8, 22]


def test_rules_of_random_splits_are_compared_too(ruled):
    ruled("last", protocol="default")
    made = ruled("validation", protocol="default")
    gaps = {(line.method, line.rule): line.gap for line in made.side_by_side}
    assert gaps["erm", "last"] == 0.5
    assert "By rule of selection" in page(made)


def test_pictures_are_of_a_fold_that_is_tested():
    _, plan, jobs = make_plan(asked(selection="leave-one-domain-out"), toy())
    assert len(jobs[0].hold.out) == 2
    erm, mixup = gallery(plan, jobs)
    assert (erm.without, mixup.without, mixup.seed) == ("north", "north", 0)
    assert set(mixup.data.train.domain.tolist()) == {1, 2}
    _, plan, jobs = make_plan(asked(protocol="default"), toy())
    assert gallery(plan, jobs)[0].without == ""


def test_label_noise_and_rule_are_in_every_file(make_result):
    made = make_result({"erm": (2.0, 2.2), "mixup": (3.0, 3.3)})
    made = replace(made, settings=made.settings.model_copy(update={"label_noise": 0.4}))
    assert r"40\,\% of the training and validation labels are random" in made.to_latex()
    assert "Selection by validation" in made.to_latex()
    assert {row["label_noise"] for row in csv.DictReader(io.StringIO(made.to_csv()))} == {"0.4"}
    assert "Label noise" in page(made)
