import os
from pathlib import Path

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.pairing import InTable
from omnimix.core.ratio import Constant
from omnimix.train import Budget, Data, Part, TrainingError, fit

pytestmark = pytest.mark.slow  # processes that import PyTorch take seconds to start


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The processes that are started import what is defined here."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


def data(rows=44):
    x = torch.randn(rows + 20, 3, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] * x[:, 1:2]
    return Data(Part(x[:rows], y[:rows]), Part(x[rows:], y[rows:]), None, om.Regression(1))


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.1), nn.Dropout(dropout), nn.Linear(8, 1))


class Next(InTable):
    """The partner of every row is the one behind it, whichever process it is in."""

    def draw(self, index, generator):
        return ((index + 1) % 44).unsqueeze(1)


class Stops:
    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, done, total, row):
        if done == self.epoch:
            raise RuntimeError("the lights went out")


class Lonely(om.ERM):
    """Fails in the second process only."""

    def loss(self, model, batch, **streams):
        if os.environ.get("LOCAL_RANK") == "1":
            raise RuntimeError("something is wrong in one process")
        return super().loss(model, batch)


def outcome(budget, method=None, dropout=0.0, **more):
    model = net(dropout)
    done = fit(method or om.Mix(Next(), ratio=Constant(0.3)), model, data(), budget, seed=2, **more)
    return done.history, done.best_epoch, [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return a[:2] == b[:2] and all(torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))


def budget(devices=2, **more):
    return Budget(4, 8, 0.05, clip=1.0, drop_last=False, accelerator="cpu", devices=devices, **more)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_where_the_mixing_is_fixed_and_resume_exactly(strategy, tmp_path):
    """Gradients are averaged over the shares of a batch, so they are those of one process up to rounding."""
    one, two = outcome(budget(1)), outcome(budget(strategy=strategy))
    for a, b in zip(one[0], two[0], strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert two[1] == one[1]
    for a, b in zip(one[2], two[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    path = tmp_path / "state"
    with pytest.raises(TrainingError, match="the lights went out"):
        outcome(budget(strategy=strategy), checkpoint=path, checkpoint_every=0, progress=Stops(2))
    assert path.exists()
    assert same(outcome(budget(strategy=strategy), checkpoint=path, checkpoint_every=0), two)


def test_every_process_draws_on_where_it_stopped(tmp_path):
    mixing = {"dropout": 0.3, "checkpoint_every": 0}
    whole = outcome(budget(), om.create("mixup", alpha=0.4), **mixing)
    with pytest.raises(TrainingError, match="the lights went out"):
        outcome(budget(), om.create("mixup", alpha=0.4), **mixing, checkpoint=tmp_path / "a", progress=Stops(3))
    assert same(outcome(budget(), om.create("mixup", alpha=0.4), **mixing, checkpoint=tmp_path / "a"), whole)


def test_an_error_in_one_process_ends_all_with_its_message():
    with pytest.raises(TrainingError, match=r"process 1 .*RuntimeError: something is wrong in one process"):
        outcome(budget(), Lonely())


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="several devices, got devices = 1"):
        budget(1, strategy="fsdp")
    with pytest.raises(ValueError, match="strategy must be one of"):
        budget(strategy="deepspeed")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU here"):
            fit(om.ERM(), net(), data(), Budget(1, 8, 0.1, accelerator="gpu"), seed=0)


def test_methods_with_modules_of_their_own_are_refused_on_several_devices():
    x, y, domain = torch.rand(8, 4), torch.arange(8) % 2, torch.arange(8) // 4
    part = Part(x, y, domain)
    with pytest.raises(ValueError, match="devices=1"):
        fit(
            om.create("dann"), nn.Linear(4, 2), Data(part, None, part, om.Classification(2)),
            Budget(1, 4, 0.1, devices=2, accelerator="cpu", select="last"), seed=0,
        )  # fmt: skip
