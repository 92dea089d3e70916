from dataclasses import replace

import pytest
import torch

import omnimix.train
from omnimix.compare.jobs import Plan, check, device_kind, execute, make_jobs, make_network, method_code, units
from omnimix.compare.protocol import adjust, choose
from omnimix.compare.run import make_plan
from omnimix.compare.spec import Spec, settings
from omnimix.compare.store import Failure, Run
from omnimix.core import registry
from omnimix.core.method import Method
from omnimix.core.task import Classification, MultiLabel
from omnimix.data import Source, load
from omnimix.train import Fit


def planned(**given):
    asked = {"data": "airfoil", "methods": ("erm", "mixup"), "seeds": (0, 1), **given}
    return make_plan(settings(**asked))


def keys(**given):
    return {job.key for job in planned(**given)[2]}


def test_seed_by_seed_and_the_same_again():
    jobs = planned()[2]
    assert [(str(j.method), j.seed) for j in jobs] == [("erm", 0), ("mixup", 0), ("erm", 1), ("mixup", 1)]
    assert len({j.key for j in jobs}) == 4
    assert [j.key for j in planned()[2]] == [j.key for j in jobs]


def test_the_key_depends_on_all_that_decides_a_result_and_on_nothing_else():
    before = keys()
    assert keys(methods=("erm", "mixup", "c-mixup")) > before
    assert keys(baseline="mixup", methods=("mixup", "erm")) == before
    assert keys(noise_seed=5) == before  # without noise it decides nothing
    for change in ({"epochs": 7}, {"lr": 0.1}, {"batch": 8}, {"net": "mlp:hidden=8"}, {"protocol": "c-mixup"}):
        assert not keys(**change) & before
    noisy = keys(data="digits", label_noise=0.4)
    assert not noisy & keys(data="digits", label_noise=0.4, noise_seed=1)


def test_texts_of_one_method_have_one_key_and_train_once():
    for one, other in (
        ("mixup", "mixup:alpha=1"),
        ("manifold-mixup:taps=block1:alpha=2", "manifold-mixup:taps=block1"),
        ("c-mixup:place=input@pairs", "c-mixup@pairs"),
    ):
        assert keys(methods=(one,)) == keys(methods=(other,))
    assert keys(methods=("erm@2x",), epochs=10) == keys(methods=("erm",), epochs=20)
    assert not keys(methods=("c-mixup@pairs",)) & keys(methods=("c-mixup@resampling", "c-mixup"))
    assert not keys(methods=("mixup",)) & keys(methods=("mixup:alpha=2",))
    # where the protocol says otherwise, the method's own default is no default
    assert not keys(methods=("mixup",), protocol="c-mixup") & keys(methods=("mixup:alpha=1",), protocol="c-mixup")
    assert keys(methods=("mixup",), protocol="c-mixup") == keys(methods=("mixup:alpha=2",), protocol="c-mixup")
    _, plan, jobs = planned(methods=("mixup", "mixup:alpha=1"))
    assert [job.seed for unit in units(jobs, plan, 1) for job in unit] == [0, 1]


def test_the_key_depends_on_task_official_rows_device_torch_and_weights(tmp_path, monkeypatch):
    x, y = torch.rand(60, 1, 8, 8), (torch.arange(60) % 2).long()
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")

    def key(task=Classification(2), net="small-cnn", train=40):  # noqa: B008
        official = {"train": torch.arange(train), "test": torch.arange(train, 60)}
        source = Source("toy", x, y, task, "image", official=official)
        asked = settings(data="toy", methods=("erm",), seeds=(0,))
        protocol = adjust(choose("default", source), net=net)
        return make_jobs(asked, Plan(source, protocol, 0.0, 0, {}))[0].key

    before = [key(), key(net=f"timm:resnet18:weights={weights}")]
    assert before == [key(), key(net=f"timm:resnet18:weights={weights}")]
    weights.write_bytes(b"two")
    after = [key(net=f"timm:resnet18:weights={weights}"), key(Classification(5)), key(MultiLabel(2)), key(train=50)]
    on_gpu = not torch.cuda.is_available()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: on_gpu)
        after.append(key())
    monkeypatch.setattr(torch, "__version__", "1.2.3+cpu")
    assert len({*before, *after, key()}) == len(before) + len(after) + 1


def test_tables_of_numbers_run_on_the_cpu_wherever_they_are(monkeypatch):
    airfoil, digits = load("airfoil"), load("digits")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_kind(airfoil, choose("default", airfoil)) == "cpu"
    assert device_kind(digits, choose("default", digits)) == "gpu"


@pytest.mark.parametrize("wrong", ["manifold-mixup:taps=nowhere", "c-mixup:place=nowhere"])
def test_a_mistyped_place_is_refused_before_anything_runs(wrong):
    with pytest.raises(ValueError, match=f"{wrong}: tap 'nowhere' is not a module of MLP; there are: .*'block1'"):
        planned(methods=("erm", wrong))
    planned(methods=(wrong.replace("nowhere", "block1"),))


def test_parameters_of_user_protocol_and_method_in_this_order():
    methods = ("mixup", "mixup:alpha=3", "manifold-mixup", "c-mixup")
    jobs = planned(protocol="c-mixup", methods=methods, seeds=(0,))[2]
    assert [job.parameters for job in jobs] == [
        {"alpha": 2},
        {"alpha": 3},
        {"alpha": 2, "taps": ("block1",)},
        {"alpha": 2, "bandwidth": 1.75, "place": "block1"},
    ]
    assert planned(methods=("mixup",))[2][0].parameters == {}


def test_one_seed_gives_all_methods_the_same_weights():
    plan = planned()[1]
    first, again, other = (make_network(plan, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_unknown_networks_and_options_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no network 'mpl'; did you mean 'mlp'"):
        planned(net="mpl")
    with pytest.raises(ValueError, match="no option 'hiden'; did you mean 'hidden'"):
        planned(net="mlp:hiden=3")
    assert [
        m.shape[0] for n, m in make_network(planned(net="mlp:hidden=8")[1], 0).state_dict().items() if "weight" in n
    ] == [8, 1]


def test_methods_that_do_not_fit_the_data_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="c-mixup is for regression; digits is classification"):
        planned(data="digits", methods=("c-mixup",))
    with pytest.raises(ValueError, match="cutmix needs image inputs; airfoil is a table"):
        planned(methods=("cutmix",))
    with pytest.raises(ValueError, match="lisa needs the domain"):
        planned(data="wine", methods=("lisa",))
    with pytest.raises(ValueError, match="label noise replaces class labels"):
        planned(label_noise=0.4)
    check(Spec.parse("cutmix"), {}, load("digits"))


def test_the_usual_methods_of_a_task():
    assert planned(methods=())[0].methods == ("erm", "mixup", "manifold-mixup", "c-mixup")
    assert "cutmix" in planned(data="digits", methods=())[0].methods
    assert "cutmix" not in planned(data="wine", methods=())[0].methods


def stub(monkeypatch, **changes):
    """`fit` that only reports what it was given."""
    seen = {}

    def fit(method, model, data, budget, *, seed, checkpoint, progress):
        seen.update(method=method, data=data, budget=budget, seed=seed)
        progress(1, 4, {})
        return Fit([{"epoch": 1, "train_loss": 1.0}], 1, 2.0, 0.5, 100)

    monkeypatch.setattr(omnimix.train, "fit", fit)
    found = {"rmse": 1.0, "mape": float("nan"), **changes}
    monkeypatch.setattr("omnimix.train.metrics.scores", lambda *a, **k: found)
    monkeypatch.setattr("omnimix.train.together.can_train_together", lambda *a: False)
    return seen


def test_a_run_holds_what_training_gave(monkeypatch):
    seen = stub(monkeypatch)
    _, plan, jobs = planned(epochs=9)
    shares = []
    run = execute((jobs[1],), plan, shares.append)[0]
    assert isinstance(run, Run)
    assert (run.method, run.seed, run.key, run.data) == ("mixup", 0, jobs[1].key, plan.source.digest)
    assert run.metrics == {"rmse": 1.0, "mape": None}
    assert (run.seconds, run.step_seconds, run.peak_memory, run.best_epoch) == (2.0, 0.5, 100, 1)
    assert run.versions["torch"] == torch.__version__
    assert shares == [0.25]
    assert (seen["seed"], seen["budget"].epochs, len(seen["data"].train)) == (0, 9, 902)


def test_domains_get_rows_of_their_own(monkeypatch):
    stub(monkeypatch, **{"rmse@0": 1.0, "rmse@1": 2.0, "worst_domain": 2.0})
    source = load("airfoil")
    source = replace(source, domain=torch.arange(len(source)) % 2, domain_names=("north", "south"), digest="")
    plan, jobs = make_plan(settings(data="airfoil", methods=("erm",), seeds=(0,)), source)[1:]
    run = execute((jobs[0],), plan)[0]
    assert run.domains == {"north": {"rmse": 1.0}, "south": {"rmse": 2.0}}
    assert run.metrics == {"rmse": 1.0, "mape": None, "worst_domain": 2.0}


def test_a_broken_run_is_a_failure_with_traceback_and_configuration(monkeypatch):
    stub(monkeypatch, rmse=float("inf"))
    _, plan, jobs = planned()
    fault = execute((jobs[0],), plan)[0]
    assert isinstance(fault, Failure)
    assert fault.error == "ValueError: the test rmse is inf"
    assert "Traceback" in fault.traceback
    assert fault.config == jobs[0].config


def test_the_code_of_a_plug_in_is_part_of_its_key():
    @registry.register("test-plugin-code", paper="none")
    class Plugin(Method):
        """Plain."""

    try:
        assert method_code("test-plugin-code").startswith(method_code("erm") + "+")
    finally:
        registry._methods.pop("test-plugin-code")


def test_the_split_of_a_seed_is_the_same_for_all_methods(monkeypatch):
    seen = stub(monkeypatch, accuracy=1.0)
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    source = Source("toy", x, torch.arange(60) % 3, Classification(3), "table", class_names=("a", "b", "c"))
    plan, jobs = make_plan(settings(data="toy", methods=("erm", "mixup"), seeds=(0,), label_noise=0.5), source)[1:]
    parts = []
    for job in jobs:
        assert isinstance(execute((job,), plan)[0], Run)
        parts.append(seen["data"])
    assert torch.equal(parts[0].train.x, parts[1].train.x)
    assert torch.equal(parts[0].train.y, parts[1].train.y)
    assert make_jobs(settings(data="toy", methods=("erm",), seeds=(0,), label_noise=0.5), plan)[0].key == jobs[0].key


def test_a_row_of_twice_the_compute_trains_for_twice_the_epochs():
    jobs = planned(methods=("erm", "regmixup"), epochs=30, equal_compute=True, seeds=(0,))[2]
    assert [(str(job.method), job.budget.epochs) for job in jobs] == [("erm", 30), ("regmixup", 30), ("erm@2x", 60)]
    assert len({job.key for job in jobs}) == 3


def test_evaluations_are_shared_out_by_cost_and_steps():
    jobs = planned(methods=("erm", "regmixup", "c-mixup@pairs"), evaluations=1000, seeds=(0,))[2]
    # 902 rows in batches of 32 are 29 steps: 1000 / 29 = 34 epochs, and 1000 / 58 = 17 where a step costs two
    assert [job.budget.epochs for job in jobs] == [34, 17, 17]
    # 21 inner trainings of 5 steps on 32 samples are 105 of the 1000
    learned = "regmix-regression:iterations=10:inner_steps=5"
    assert planned(methods=(learned,), evaluations=1000, seeds=(0,))[2][0].budget.epochs == 30
    with pytest.raises(ValueError, match="which takes 29 gradient evaluations after 21000 before the first step"):
        planned(methods=("regmix-regression",), evaluations=20000)
    # c-mixup's protocol leaves the last batch out: 62 steps of 16 rows
    assert planned(protocol="c-mixup", evaluations=1000, seeds=(0,))[2][0].budget.epochs == 16
    with pytest.raises(ValueError, match="evaluations = 50 do not last for an epoch of regmixup, which takes 58"):
        planned(methods=("erm", "regmixup"), evaluations=50)


def test_learning_whom_to_mix_counts_in_equal_compute():
    methods = ("erm", "regmix-regression:inner_steps=5:iterations=10", "regmix-regression:k=3")
    # 105 steps ahead, and 10 epochs of 29
    assert planned(methods=methods, epochs=10, equal_compute=True)[0].methods == (*methods, "erm@1.36x")


def test_milestones_move_with_the_epochs():
    _, plan, _ = planned(epochs=30)
    budget = replace(plan.protocol.budget, schedule="step", milestones=(10, 20))
    changed = replace(plan, protocol=replace(plan.protocol, budget=budget))
    (job,) = make_jobs(settings(data="airfoil", methods=("erm@2x",), seeds=(0,)), changed)
    assert (job.budget.epochs, job.budget.milestones) == (60, (20, 40))
