import math

import pytest
import torch

import omnimix.compare.jobs as jobs_module
from omnimix.compare import compare, settings
from omnimix.compare.protocol import choose
from omnimix.compare.run import make_plan
from omnimix.compare.spec import Spec
from omnimix.compare.store import Store
from omnimix.compare.tune import LR, draw, sample
from omnimix.core import registry
from omnimix.core.search import Choice, Log, Uniform
from omnimix.core.task import Regression
from omnimix.data import Source, load

METHODS = ("erm", "mixup", "c-mixup")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("omnimix.compare.report.write", lambda *a: None)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda *a: [])


def toy(rows=60):
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    return Source("toy", x, 5 * x.sum(1), Regression(1), "table")


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "mixup"), "seeds": (0, 1), "epochs": 2, "net": "mlp:hidden=4", "tune": 3}
    return settings(**{**given, **more})


def drawn(spec, number=1, seed=0, **more):
    given = {"keep_lr": False, "label_sd": lambda: 10.0, **more}
    return draw(Spec.parse(spec), number, seed, choose("default", load("airfoil")), **given)


def test_every_method_has_equally_many_draws_and_the_first_is_its_default():
    _, _, jobs = make_plan(asked(methods=METHODS, tune=4), toy())
    assert len(jobs) == len({job.key for job in jobs}) == 3 * 2 * 4
    untuned = make_plan(asked(methods=METHODS, tune=0), toy())[2]
    assert [job.key for job in jobs if job.draw.number == 0] == [job.key for job in untuned]
    for method in METHODS:  # erm too has something to tune
        own = [job for job in jobs if job.method.name == method and job.seed == 0]
        assert len({job.budget.lr for job in own}) == len({job.budget.weight_decay for job in own}) == 4
    assert {job.config["parameters"].get("alpha") for job in jobs if job.method.name == "erm"} == {None}


def test_draws_stay_as_they_are_when_a_parameter_is_added():
    register({})
    before = [drawn("test-tuned", number, seed) for number in (1, 2) for seed in (0, 1)]
    register({"b": Log(1, 10), "c": Choice(1, 2, 3)})
    after = [drawn("test-tuned", number, seed) for number in (1, 2) for seed in (0, 1)]
    registry._methods.pop("test-tuned")
    assert [d.parameters["a"] for d in after] == [d.parameters["a"] for d in before]
    assert [d.budget for d in after] == [d.budget for d in before]
    assert len({d.parameters["a"] for d in before}) == 4
    assert {"b", "c"} < set(after[0].parameters)


def register(more):
    def test_tuned(a=0.5, b=1.0, c=1):
        return registry.create("erm")

    registry._methods.pop("test-tuned", None)
    return registry.register("test-tuned", paper="none", search={"a": Uniform(0, 1), **more})(test_tuned)


def test_draws_depend_on_seed_method_parameter_and_number_alone():
    one = drawn("mixup")
    assert drawn("mixup") == one
    assert drawn("mixup:per_sample=true") == one
    others = [drawn("mixup", 2), drawn("mixup", 1, 1), drawn("regmixup")]
    assert len({d.parameters["alpha"] for d in [one, *others]}) == 4
    assert len({d.budget["lr"] for d in [one, *others]}) == 4


def test_what_the_user_gives_is_kept():
    assert set(drawn("mixup:alpha=2").parameters) == set()
    assert set(drawn("mixup").parameters) == {"alpha"}
    assert set(drawn("erm", keep_lr=True).budget) == {"weight_decay"}
    jobs = make_plan(asked(lr=0.02), toy())[2]
    assert {job.budget.lr for job in jobs} == {0.02}


def test_units_and_bounds():
    rates = [drawn("erm", number).budget["lr"] for number in range(1, 40)]
    assert 1e-3 * LR.low <= min(rates) < 2.5e-4
    assert 2e-3 < max(rates) <= 1e-3 * LR.high
    widths = [drawn("c-mixup", number).parameters["bandwidth"] for number in range(1, 40)]
    assert 0.2 <= min(widths) < 0.6 < 6 < max(widths) <= 20  # 0.02 to 2 standard deviations of 10
    assert {drawn("c-mixup", number).parameters["place"] for number in range(1, 40)} == {"input", "hidden"}


def test_label_units_are_of_the_training_labels():
    source = toy()
    plan, jobs = make_plan(asked(methods=("c-mixup",), seeds=(0,)), source)[1:]
    train = jobs_module.split(plan.protocol, source, 0).train
    spread = source.y[train].double().std(unbiased=False).item()
    fraction = drawn("c-mixup", label_sd=lambda: 1.0).parameters["bandwidth"]
    assert jobs[1].parameters["bandwidth"] == pytest.approx(fraction * spread, rel=1e-3)


def test_samples_follow_their_distribution():
    values = [sample(Log(0.01, 100), seed) for seed in range(400)]
    assert sum(value < 1 for value in values) == pytest.approx(200, abs=50)
    assert sum(math.log10(value) < -1 for value in values) == pytest.approx(100, abs=40)
    assert {sample(Choice("a", None, 2), seed) for seed in range(40)} == {"a", None, 2}


@pytest.mark.parametrize("wrong", [lambda: Log(0, 1), lambda: Uniform(2, 1), lambda: Choice(1), lambda: Log(1, 2, "m")])
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=r"low|choice|unit"):
        wrong()


def test_a_range_of_no_parameter_is_refused():
    with pytest.raises(ValueError, match="'beta'"):
        registry.register("test-range", paper="none", search={"beta": Log(1, 2)})(lambda alpha=1: None)


def test_every_declared_range_makes_a_method():
    for name in registry.methods():
        for number in range(1, 6):
            parameters = drawn(name, number).parameters
            assert registry.create(name, **parameters)


def stubbed(monkeypatch, score):
    """`_run` that trains nothing; score(job): (validation rmse, test rmse)."""
    made = []

    def run(job, plan, progress):
        made.append(job)
        try:
            valid, test = score(job)
        except RuntimeError as error:
            return jobs_module._failed(job, plan, error)
        history = [{"epoch": 1, "train_loss": 1.0, "valid_loss": valid**2, "valid_rmse": valid, "lr": job.budget.lr}]
        return jobs_module.Run(
            data=plan.source.digest, code="x", metrics={"rmse": test}, domains={}, history=history, best_epoch=1,
            seconds=1.0, step_seconds=0.1, peak_memory=1, device="cpu", versions={}, **job.labels,
        )  # fmt: skip

    monkeypatch.setattr(jobs_module, "_run", run)
    return made


def test_validation_chooses_and_the_test_is_not_looked_at(tmp_path, monkeypatch):
    def score(job):  # the best draw of seed 0 is 2, of seed 1 it is 1; by the test it would be 0
        valid = [3.0, 2.0, 1.0] if job.seed == 0 else [3.0, 1.0, 2.0]
        return valid[job.draw.number], 10.0 + job.draw.number

    stubbed(monkeypatch, score)
    result = compare(asked(), tmp_path, source=toy(), workers=1, together=False)
    assert [(r.method, r.seed, r.metrics["rmse"]) for r in result.runs] == [
        ("erm", 0, 12.0), ("erm", 1, 11.0), ("mixup", 0, 12.0), ("mixup", 1, 11.0),
    ]  # fmt: skip
    told = result.to_json()
    assert len(told["rows"]) == 4
    first = told["tuning"][0]
    assert (first["method"], first["seed"], first["domain"]) == ("erm", 0, None)
    assert first["chosen"]["draw"] == 2
    assert first["chosen"]["training"]["lr"] == drawn("erm", 2).budget["lr"]
    assert [d["score"] for d in first["draws"]] == [3.0, 2.0, 1.0]
    assert "12" not in str(first["draws"])  # no test score
    assert any("3 draws" in line for line in result.warnings)


def test_equal_scores_go_to_the_first_draw_and_a_draw_that_failed_is_told(tmp_path, monkeypatch):
    def score(job):
        if job.draw.number == 2 and job.method.name == "mixup":
            raise RuntimeError("diverged")
        return 1.0, float(job.draw.number)

    stubbed(monkeypatch, score)
    result = compare(asked(seeds=(0,)), tmp_path, source=toy(), workers=1, together=False)
    assert [run.metrics["rmse"] for run in result.runs] == [0.0, 0.0]
    assert [fault.error for fault in result.failures] == ["RuntimeError: diverged"]
    assert result.to_json()["tuning"][1]["draws"][2]["score"] is None


def test_a_killed_tuning_repeats_nothing(tmp_path, monkeypatch):
    def interrupt(self, entry, add=Store.add):
        if len(self) == 5:
            raise KeyboardInterrupt
        return add(self, entry)

    made = stubbed(monkeypatch, lambda job: (1.0 / (1 + job.draw.number), float(job.draw.number)))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare(asked(), tmp_path, source=toy(), workers=1, together=False)
    before = len(made)
    done = compare(asked(), tmp_path, source=toy(), workers=1, together=False)
    assert len(made) - before == 2 * 2 * 3 - 5
    assert [run.metrics["rmse"] for run in done.runs] == [2.0] * 4
    made.clear()
    compare(asked(tune=4), tmp_path, source=toy(), workers=1, together=False)
    assert {job.draw.number for job in made} == {3}  # more draws use those that are there
    compare(asked(tune=0), tmp_path, source=toy(), workers=1, together=False)
    assert len(made) == 4


def test_two_texts_of_one_method_share_their_runs_and_keep_their_names(tmp_path, monkeypatch):
    made = stubbed(monkeypatch, lambda job: (1.0, 2.0))
    first = compare(asked(methods=("erm", "mixup"), tune=0), tmp_path, source=toy(), workers=1, together=False)
    assert len(made) == 4
    methods = ("erm", "mixup:alpha=1", "mixup")
    again = compare(asked(methods=methods, tune=0), tmp_path, source=toy(), workers=1, together=False)
    assert len(made) == 4
    assert [(r.method, r.seed) for r in again.runs] == [(name, seed) for name in methods for seed in (0, 1)]
    assert {run.key for run in again.runs} == {run.key for run in first.runs}
    tuned = compare(asked(methods=methods), tmp_path, source=toy(), workers=1, together=False)
    assert len(made) == 4 + 3 * 2 * 2  # alpha is drawn for one of the texts, and given in the other
    assert tuned.complete
    fresh = tmp_path / "fresh"
    compare(asked(methods=methods, tune=0), fresh, source=toy(), workers=1, together=False)
    assert len(made) == 16 + 4


def test_a_draw_really_trains_with_its_rate(tmp_path):
    result = compare(asked(methods=("erm",), seeds=(0,), tune=2), tmp_path, source=toy(), workers=1)
    (entry,) = result.tuning
    assert len({d["score"] for d in entry["draws"]}) == 2
    run = result.runs[0]
    rate = entry["chosen"]["training"].get("lr", 1e-3)
    assert run.history[0]["lr"] == rate
    assert run.config["protocol"]["budget"]["lr"] == rate
