"""SWAD: the card's loss sequence, the authors' window on drawn ones, means by hand, resuming, and the loop."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.swad import LossValley, Mean
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def window(losses, **settings):
    """Which intervals are averaged: each is a unit vector."""
    valley = LossValley(**settings)
    for vector, loss in zip(torch.eye(len(losses)), losses, strict=True):
        valley.add(loss, Mean({"w": vector}, 1))
    weights = valley.result().values["w"]
    found = torch.nonzero(weights).flatten().tolist()
    assert torch.allclose(weights[found], torch.tensor(1.0 / len(found)))
    return found, valley.over


def test_the_cards_losses():
    assert window([5, 4, 3, 3.1, 3.2, 9, 9, 9, 9, 9, 9]) == ([2, 3, 4], True)
    assert window([5, 4, 3, 3.1, 3.2, 9, 9, 9, 9, 9, 9, 1]) == ([2, 3, 4], True)  # what is over stays over
    assert window([5, 4, 3, 3.1, 3.2, 9, 9, 9, 9, 9, 1]) == (list(range(2, 11)), False)
    assert window([5, 4, 3, 3.1, 3.2, 9, 9]) == ([2, 3, 4], False)
    assert window([5, 4, 3, 2, 1]) == ([4], False)  # never settled
    assert window([1, 2, 9], ratio=0.0) == ([0, 1], False)  # all up to the mean of 4
    assert window([3, 2, 1, 4, 4], patience=1, tolerance=2) == ([0, 1, 2], True)


@pytest.mark.parametrize(
    ("losses", "first", "last"),  # converge_step and end_step of the authors' LossValley
    [
        ([1.9, 1.4, 1.1, 0.9, 0.8, 0.7, 0.75, 0.9, 0.8, 0.95, 1.2, 1.1, 1.3, 1.0, 1.1, 1.2, 1.4, 0.6], 5, 17),
        ([2, 1.5, 1.2, 1.0, 0.9, 0.95, 0.7, 0.8, 0.9, 0.85, 1.0, 1.1, 0.9, 1.3, 1.4], 6, 12),
    ],
)
def test_window_of_the_authors_code(losses, first, last):
    assert window(losses)[0] == list(range(first, last + 1))


def test_a_mean_weighs_steps():
    mean = Mean()
    for value, count in ((1.0, 1), (4.0, 2), (10.0, 1)):
        mean.add({"w": torch.tensor([value])}, count)
    assert mean.values["w"].item() == pytest.approx((1 + 8 + 10) / 4)
    half = Mean()
    half.add({"w": torch.ones(1, dtype=torch.float16)})
    assert half.values["w"].dtype == torch.float32


def net(norm=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4) if norm else nn.ReLU(), nn.Linear(4, 3))


X, Y = torch.randn(12, 2, generator=draw()), torch.arange(12) % 3


def run(losses, steps=2, lr=0.5, model=None, method=None, interrupt=None):
    """Train for `steps` steps before each of the validation losses; returns network, method and weights by step."""
    model = model or net()
    method = om.create("swad").setup(model, om.Classification(3), generator=draw())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen = []
    for number, loss in enumerate(losses):
        if number == interrupt:
            state = method.state_dict()
            method = om.create("swad").setup(model, om.Classification(3), generator=draw(9))
            method.load_state_dict(state)
        for _ in range(steps):
            method.step(model, om.Batch(X, Y), optimizer)
            method.after_step()
            seen.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        method.after_validation(loss)
    return model, method, torch.stack(seen) if seen else None


LOSSES = (5, 4, 3, 3.1, 3.2, 9, 9, 9, 9, 9, 9)


@pytest.mark.parametrize("interrupt", [None, 1, 3, 4, 7])
def test_the_network_gets_the_mean_of_the_steps_in_the_window(interrupt):
    model, method, seen = run(LOSSES, interrupt=interrupt)
    weight = model[0].weight
    method.after_training(model, iter(()))
    assert model[0].weight is weight
    now = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(now, seen[4:10].mean(0), atol=1e-6)
    assert not torch.allclose(now, seen[-1], atol=1e-3)


def test_constant_weights_stay():
    start = net()
    model, method, _ = run(LOSSES, lr=0.0)
    method.after_training(model, iter(()))
    assert all(map(torch.equal, model.parameters(), start.parameters()))


def test_never_settled_gives_the_last_interval():
    model, method, seen = run((5, 4, 3, 2, 1))
    method.after_training(model, iter(()))
    assert torch.allclose(torch.cat([p.detach().flatten() for p in model.parameters()]), seen[-2:].mean(0), atol=1e-6)


def test_batch_norm_statistics_fit_the_mean_weights():
    batches = [om.Batch(X[i : i + 6], Y[i : i + 6]) for i in (0, 6)]
    model, method, _ = run(LOSSES, model=net(norm=True).train())
    method.after_training(model, batches)
    with torch.no_grad():
        assert torch.allclose(model[1].running_mean, model[0](X).mean(0), atol=1e-5)
    frozen = net(norm=True).train()
    frozen[1].eval()
    model, method, _ = run(LOSSES, model=frozen)
    method.after_training(model, batches)
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_without_validation_it_says_so():
    model, method, _ = run(())
    with pytest.raises(ValueError, match="after_validation"):
        method.after_training(model, iter(()))
    budget = Budget(epochs=2, batch_size=4, lr=0.05, select="last")
    with pytest.raises(ValueError, match="follows the validation loss"):
        fit(om.create("swad"), net(), Data(Part(X, Y), None, None, om.Classification(3)), budget, seed=0)


@pytest.mark.parametrize("select", ["last", "best"])
def test_in_the_loop_interrupted_or_not(select, tmp_path):
    data = Data(Part(X, Y), Part(X.flip(0), Y.flip(0)), None, om.Classification(3))
    budget = Budget(epochs=9, batch_size=4, lr=0.05, select=select)
    plain, whole, resumed = net(True), net(True), net(True)
    fit(om.ERM(), plain, data, budget, seed=0)
    fit(om.create("swad"), whole, data, budget, seed=0)
    assert not torch.allclose(plain[0].weight, whole[0].weight)

    class Stop(Exception):
        pass

    def stop(done, *_):
        if done == 5:
            raise Stop

    settings = {"seed": 0, "checkpoint": tmp_path / "run", "checkpoint_every": 0.0}
    with pytest.raises(Stop):
        fit(om.create("swad"), net(True), data, budget, progress=stop, **settings)
    fit(om.create("swad"), resumed, data, budget, **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_contract():
    assert len(check_method("swad")) >= 10


def test_refusals():
    for name, value in (("patience", 0), ("tolerance", 0), ("ratio", -0.1)):
        with pytest.raises(ValueError, match=name):
            om.create("swad", **{name: value})
