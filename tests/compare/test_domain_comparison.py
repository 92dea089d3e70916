"""The protocol over domains, on small made-up images: what is shared, what is launched, and what a kill costs."""

import itertools
import json
import os
import signal
import sqlite3
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import omnimix.compare.jobs as jobs_module
from omnimix.cli import main
from omnimix.compare import compare, settings
from omnimix.compare.jobs import execute, make_network
from omnimix.compare.missing import missing
from omnimix.compare.protocol import Hold, prepare, split
from omnimix.compare.run import make_plan
from omnimix.core.task import Classification
from omnimix.data import Source
from omnimix.data.subset import capped
from omnimix.train.loop import _Run, fit
from omnimix.train.parts import table

NAMES = ("clipart", "photo", "sketch")


def source(rows=90, official=False):
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 2
    x = torch.rand(rows, 1, 8, 8, generator=draws) + y.view(-1, 1, 1, 1)
    parts = {"train": torch.arange(0, rows - 15), "valid": torch.arange(rows - 15, rows)} if official else None
    return Source(
        "toy", x, y, Classification(2), "image", torch.arange(rows) // 2 % 3, NAMES, ("no", "yes"), official=parts
    )


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "coral"), "seeds": (0, 1), "epochs": 2, "batch": 12}
    return settings(**{**given, "net": "small-cnn:width=4", "protocol": "domains", **more})


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("omnimix.compare.report.write", lambda *a: None)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda *a: [])


@pytest.fixture
def launched(monkeypatch):
    """The jobs that run."""
    found, run = [], jobs_module._run

    def note(job, plan, progress):
        found.append(job)
        return run(job, plan, progress)

    monkeypatch.setattr(jobs_module, "_run", note)
    return found


def test_a_trial_shares_its_data_exactly(monkeypatch):
    """All methods of a trial see the same tensors and batches; another trial has another split of the same images."""
    seen = {}

    def note(method, model, data, budget, *, seed, **rest):
        run = _Run.__new__(_Run)
        run.budget, run.method, run.data, run.seed, run.world = budget, method, data, seed, 1
        order = run._batches(0)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        key = (type(method).__name__, seed, note.hold)
        seen[key] = (data.train.x, data.train.y, data.valid.x, data.test.x, torch.stack(order), weights)
        raise ValueError("seen")

    monkeypatch.setattr("omnimix.train.fit", note)
    _, plan, jobs = make_plan(asked(), capped(source(), 20))
    for job in jobs:
        note.hold = job.hold.out
        assert execute((job,), plan)[0].error == "ValueError: seen"
    assert len(seen) == 2 * 2 * 3
    names = sorted({name for name, *_ in seen})
    for trial, hold in itertools.product((0, 1), ((0,), (1,), (2,))):
        first, second = (seen[name, trial, hold] for name in names)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        other = seen[names[0], 1 - trial, hold]
        assert not torch.equal(first[0], other[0])
    domains = plan.source.domain
    for rows in split(plan.protocol, plan.source, 0, Hold((1,)))[:1]:
        assert set(domains[rows].tolist()) == {0, 2}


def test_every_batch_has_as_many_rows_of_each_training_domain():
    uneven = replace(source(), domain=torch.arange(90) % 2 * (torch.arange(90) % 3), digest="")
    _, plan, jobs = make_plan(asked(methods=("erm",)), uneven)
    job = jobs[0]
    rows = split(plan.protocol, plan.source, 0, job.hold)
    data = prepare(plan.protocol, plan.source, rows)
    run = _Run.__new__(_Run)
    run.budget, run.method, run.data, run.seed, run.world = job.budget, jobs_module.create(job.method), data, 0, 1
    for batch in run._batches(0):
        assert torch.bincount(data.train.domain[batch])[[1, 2]].tolist() == [6, 6]


def test_batches_of_their_own_come_before_those_of_the_protocol():
    from omnimix.domains.generalize import XDED

    method = XDED(per_class=6)
    _, plan, jobs = make_plan(asked(methods=("xded:per_class=6",)), source())
    data = prepare(plan.protocol, plan.source, split(plan.protocol, plan.source, 0, jobs[0].hold))
    run = _Run.__new__(_Run)
    run.budget, run.method, run.data, run.seed, run.world = jobs[0].budget, method, data, 0, 1
    method.setup(make_network(plan, 0), plan.source.task, table(data.train))
    for batch in run._batches(0):
        cells = data.train.y[batch] * 3 + data.train.domain[batch]
        assert torch.bincount(cells, minlength=6).tolist() == [0, 3, 3, 0, 3, 3]


def test_every_method_over_domains_can_be_compared():
    """A step of each before anything trains; what would break only in training is for their own tests."""
    from omnimix.core import registry

    names = list(registry.methods(task="classification", level="domains"))
    _, _, jobs = make_plan(asked(methods=("erm", *names), seeds=(0,)), source())
    assert len(jobs) == 3 * (len(names) + 1)
    assert len(names) >= 20


def test_evaluation_does_not_see_the_augmentation_of_training(monkeypatch):
    """Validation and test inputs are the images themselves, whatever training does to its own."""
    _, plan, jobs = make_plan(asked(methods=("erm",)), source())
    plan = replace(plan, protocol=replace(plan.protocol, budget=replace(plan.protocol.budget, augment=True)))
    given = jobs_module._given(jobs[0], plan)
    seen = {"train": [], "valid": []}

    def watch(module, inputs):
        seen["train" if module.training else "valid"].append(inputs[0].clone())

    given.model.register_forward_pre_hook(watch)
    fit(given.method, given.model, given.data, replace(jobs[0].budget, augment=True), seed=0)
    own = given.data.train.x
    moved = [x for batch in seen["train"] for x in batch if not (own == x).flatten(1).all(1).any()]
    assert len(moved) > 10
    assert len(seen["valid"]) == 2
    assert all(torch.equal(x, given.data.valid.x) for x in seen["valid"])


def test_the_publishers_split_of_a_domain():
    whole = source(official=True)
    _, plan, jobs = make_plan(asked(protocol="domains-official"), whole)
    train, valid, test = split(plan.protocol, whole, 0, Hold((1,)))
    official = {part: set(rows.tolist()) for part, rows in whole.official.items()}
    own = set(torch.nonzero(whole.domain == 1).flatten().tolist())
    assert set(train.tolist()) == official["train"] - own
    assert set(valid.tolist()) == official["valid"] - own
    assert set(test.tolist()) == own
    other = split(plan.protocol, whole, 5, Hold((1,)))
    assert all(torch.equal(a, b) for a, b in zip(other, (train, valid, test), strict=True))
    _, valid, test = split(plan.protocol, whole, 0, Hold((1,), oracle=True))
    assert set(valid.tolist()) == official["valid"] & own
    assert set(test.tolist()) == official["train"] & own
    plain = make_plan(asked(), whole)[2]
    assert not {job.key for job in jobs} & {job.key for job in plain}
    with pytest.raises(ValueError, match=r"publisher's training and validation rows.*it has none"):
        make_plan(asked(protocol="domains-official"), source())
    tested = replace(whole, official={**whole.official, "test": torch.arange(3)})
    with pytest.raises(ValueError, match="test rows of its own"):
        make_plan(asked(protocol="domains-official"), tested)


def test_frozen_batch_norm_keeps_its_statistics_and_is_part_of_the_key(tmp_path):
    _, plan, jobs = make_plan(asked(methods=("erm",), seeds=(0,), batch_norm="frozen"), source())
    given = jobs_module._given(jobs[0], plan)
    layers = [layer for layer in given.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    start = [layer.running_mean.clone() for layer in layers], [layer.weight.clone() for layer in layers]
    fit(given.method, given.model, given.data, jobs[0].budget, seed=0)
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(layers, start[0], strict=True))
    assert not any(torch.equal(layer.weight, weight) for layer, weight in zip(layers, start[1], strict=True))
    plain = make_plan(asked(methods=("erm",), seeds=(0,)), source())[2]
    assert not {job.key for job in jobs} & {job.key for job in plain}
    with pytest.raises(ValueError, match="batch_norm"):
        asked(batch_norm="none")


def test_local_weights_are_part_of_the_key(tmp_path):
    pytest.importorskip("timm")
    from safetensors.torch import save_file

    from omnimix.networks import create

    images = source()
    images = replace(images, x=images.x.expand(-1, 3, -1, -1).repeat(1, 1, 4, 4), digest="")
    keys = []
    for seed in (0, 1):
        model = create("timm:resnet18", (3, 32, 32), 2, seed=seed)
        file = tmp_path / "weights.safetensors"
        save_file(model.state_dict(), file)
        given = asked(methods=("erm",), seeds=(0,), net=f"timm:resnet18:weights={file}", batch_norm="frozen")
        _, plan, jobs = make_plan(given, images)
        assert torch.equal(make_network(plan, 7).conv1.weight, model.conv1.weight)
        keys.append({job.key for job in jobs})
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("rule", ["training-domain", "oracle", "leave-one-domain-out"])
def test_asking_for_one_rule_launches_no_run_of_another(tmp_path, launched, rule):
    given = asked(selection=rule, methods=("erm",), seeds=(0,))
    result = compare(given, tmp_path, source=source(), workers=1)
    assert result.complete
    outs = [job.hold.out for job in launched]
    pairs = [(0, 1), (0, 2), (1, 2)] if rule == "leave-one-domain-out" else []
    assert sorted(outs, key=lambda out: (-len(out), out)) == [*pairs, (0,), (1,), (2,)]
    assert {job.hold.oracle for job in launched} == {rule == "oracle"}
    assert result.rules == {}  # the store holds runs of no other rule
    launched.clear()
    again = compare(given, tmp_path, source=source(), workers=1)
    assert launched == []
    assert [run.metrics for run in again.runs] == [run.metrics for run in result.runs]


def test_what_is_missing_is_told_before_and_after(tmp_path, launched):
    given = asked(selection="leave-one-domain-out", methods=("erm",), seeds=(0,))
    found = missing(given, tmp_path, source())
    assert (len(found.needed), len(found.jobs), found.later) == (3, 3, 3)
    assert not (tmp_path / "store.db").exists()
    assert launched == []
    compare(given, tmp_path, source=source(), workers=1)
    found = missing(given, tmp_path, source())
    assert (len(found.needed), len(found.jobs), found.later) == (6, 0, 0)
    wider = missing(asked(selection="leave-one-domain-out", methods=("erm",), seeds=(0, 1)), tmp_path, source())
    assert (len(wider.jobs), wider.later) == (3, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that was forked")
def test_killed_and_started_again_it_loses_nothing(tmp_path, launched):
    given = asked(selection="leave-one-domain-out", tune=2, seeds=(0,))
    child = os.fork()
    if child == 0:
        try:
            compare(given, tmp_path / "killed", source=source(), workers=1)
        finally:
            os._exit(0)
    before = set()
    end = time.monotonic() + 120
    while len(before) < 3 and time.monotonic() < end:
        time.sleep(0.01)
        before = stored(tmp_path / "killed" / "store.db")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = stored(tmp_path / "killed" / "store.db")
    assert 3 <= len(before) < 2 * 2 * 3 + 2 * 3
    resumed = compare(given, tmp_path / "killed", source=source(), workers=1)
    assert before < stored(tmp_path / "killed" / "store.db")
    assert {key for key, _ in before}.isdisjoint(job.key for job in launched)
    undisturbed = compare(given, tmp_path / "calm", source=source(), workers=1)
    assert resumed.complete
    found, wanted = ([(run.metrics, run.domains) for run in result.runs] for result in (resumed, undisturbed))
    assert found == wanted
    assert resumed.tuning == undisturbed.tuning


def stored(path):
    """(key, when it finished) of the runs in the store."""
    try:
        with sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True) as store:
            return set(store.execute("SELECT key, finished FROM runs"))
    except sqlite3.OperationalError:  # it is being made
        return set()


def test_the_command_of_the_protocol(tmp_path, monkeypatch, capsys):
    """Folders of images, all names of the options, several rules in one call."""
    image = pytest.importorskip("PIL.Image")
    for (d, domain), (c, label), number in itertools.product(enumerate(NAMES), enumerate(("dog", "horse")), range(8)):
        folder = tmp_path / "images" / domain / label
        folder.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (12, 12), (120 * c + 9 * number, 60 * d, 7 * number)).save(folder / f"{number}.png")
    arguments = [
        "compare", "--data", f"domainbed:{tmp_path / 'images'}", "--domain-protocol", "leave-one-out", "--select",
        "training-domain,oracle", "--draws", "2", "--trials", "1", "--methods", "erm,coral", "--epochs", "2", "--batch",
        "4", "--size", "8", "--rows", "14", "--net", "small-cnn:width=4", "--jobs", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["omnimix", *arguments, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    code, out, err = call("--dry-run")
    assert code == 0, err
    for rule in ("training-domain", "oracle"):
        assert f"selection by {rule}: 12 runs are needed, 0 are in the store, 12 are missing" in out
    assert "sketch" in out
    code, out, err = call("--json")
    assert code == 0, err
    told = json.loads(out)
    assert {line["rule"] for line in told["rules"]} == {"training-domain", "oracle"}
    assert told["selection"] == "training-domain"
    assert all(line["gap"] is not None for line in told["rules"] if line["rule"] == "oracle")
    assert set(told["targets"][0]["domains"]) == set(NAMES)
    assert len(told["stability"]) == 2
    assert told["configuration"]["data"]["rows"] == 42
    assert "accuracy minus erm by held-out domain" in err
    err = " ".join(err.split())
    assert "ranks when the draws of hyperparameters are drawn again" in err
    code, out, err = call("--dry-run")
    assert "12 are in the store, 0 are missing" in out
    assert call("--protocol", "domains")[0] == 2
