import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.pairing import InTable
from omnimix.core.random import integers
from omnimix.train import Budget, Data, Part, TrainingError, evaluate, fit, table
from omnimix.train.quick import quick_backward, quicken

BUDGET = Budget(epochs=4, batch_size=8, lr=0.02)


def data(rows=45, task=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 30, 3, generator=draw)
    task = task or om.Regression(1)
    y = x[:, :1] * x[:, 1:2] + x[:, 2:] if task.name == "regression" else (x[:, 0] > x[:, 1]).long()
    return Data(Part(x[:rows], y[:rows]), Part(x[rows : rows + 20], y[rows : rows + 20]), None, task)


def net(outputs=1, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.1), nn.Dropout(dropout), nn.Linear(16, outputs))


class Partner(InTable):
    def draw(self, index, generator):
        return integers(45, len(index), 1, generator=generator)


class Seen(om.ERM):
    """Keeps what it trains on; if `greedy`, it draws from its own generator and from PyTorch's."""

    def __init__(self, greedy=False):
        self.taken, self.greedy = [], greedy

    def loss(self, model, batch, **streams):
        self.taken.append(batch)
        if self.greedy:
            torch.rand(3, generator=self.generator)
            torch.rand(5)
        return super().loss(model, batch)


def test_training_learns_and_reports_every_epoch():
    model, told = net(), []
    done = fit(om.ERM(), model, data(), Budget(30, 8, 0.02), seed=0, progress=lambda *a: told.append(a))
    assert [row["epoch"] for row in done.history] == list(range(1, 31))
    assert set(done.history[0]) == {"epoch", "train_loss", "valid_loss", "valid_rmse", "lr"}
    assert done.history[-1]["train_loss"] < 0.3 * done.history[0]["train_loss"]
    assert [(e, n) for e, n, _ in told] == [(e, 30) for e in range(1, 31)]
    assert told[6][2] == done.history[6]
    assert done.seconds > 0
    assert 0 < done.step_seconds < done.seconds
    assert done.peak_memory > 1e6


def test_the_model_ends_with_the_best_weights_or_with_the_last():
    model, given = net(), data()
    done = fit(om.ERM(), model, given, Budget(4, 8, 0.2), seed=1)
    losses = [row["valid_loss"] for row in done.history]
    assert done.best_epoch == losses.index(min(losses)) + 1 < 4
    assert evaluate(model, om.ERM(), given.valid, given.task)["rmse"] ** 2 == pytest.approx(min(losses), rel=1e-6)
    last = fit(om.ERM(), model, given, Budget(4, 8, 0.2, select="last"), seed=1)
    assert last.best_epoch == 4
    assert last.history[0] != done.history[0]  # it went on from the weights it was given


def test_a_metric_that_grows_is_maximised_and_the_first_of_equals_wins():
    given = data(task=om.Classification(2))
    done = fit(om.ERM(), net(2), given, Budget(15, 8, 0.02, metric="accuracy"), seed=0)
    scores = [row["valid_accuracy"] for row in done.history]
    assert done.best_epoch == scores.index(max(scores)) + 1
    assert scores.count(max(scores)) > 1


def test_all_methods_see_the_same_order_and_every_row_once():
    plain, greedy, other = Seen(), Seen(greedy=True), Seen()
    fit(plain, net(), data(), BUDGET, seed=3)
    fit(greedy, net(dropout=0.5), data(), BUDGET, seed=3)
    fit(other, net(), data(), BUDGET, seed=4)
    orders = [torch.cat([b.index for b in m.taken]).view(4, 40) for m in (plain, greedy, other)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert all(len(set(epoch.tolist())) == 40 for epoch in orders[0])
    assert not torch.equal(orders[0][0], orders[0][1])
    assert torch.equal(plain.taken[5].x, data().train.x[plain.taken[5].index])


def test_the_last_smaller_batch_is_kept_on_demand():
    method = Seen()
    fit(method, net(), data(), Budget(2, 8, 0.02, drop_last=False), seed=0)
    assert [len(b) for b in method.taken] == 2 * [8, 8, 8, 8, 8, 5]
    assert sorted(torch.cat([b.index for b in method.taken[:6]]).tolist()) == list(range(45))


def test_global_random_states_are_left_alone_and_runs_repeat():
    runs = []
    for seed in (7, 8):
        model = net(dropout=0.3)
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        history = fit(Seen(greedy=True), model, data(), BUDGET, seed=5).history
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
        assert random.getstate() == states[2]
        runs.append((history, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1].values(), runs[1][1].values(), strict=True))


def test_guests_come_behind_the_anchors():
    class Pairs(om.Mix):
        def mixed_loss(self, model, batch, recipe):
            assert batch.columns == 2
            assert len(batch) == 8
            assert torch.equal(batch.x, data().train.x[batch.index])
            assert torch.equal(batch.y, data().train.y[batch.index])
            guests.append(batch.index[8:])
            return super().mixed_loss(model, batch, recipe)

    guests = []
    fit(Pairs(Partner()), net(), data(), BUDGET, seed=0)
    assert len(guests) == 20
    assert len(set(torch.cat(guests).tolist())) > 40


def test_validation_is_never_mixed():
    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.evaluated = nn.Linear(3, 1), []

        def forward(self, x):
            if not self.training:
                self.evaluated.append(x)
            return self.linear(x)

    model = Watch()
    fit(om.create("mixup"), model, data(), BUDGET, seed=0)
    assert len(model.evaluated) == 4
    assert all(torch.equal(x, data().valid.x) for x in model.evaluated)


def test_schedules():
    def rates(**settings):
        return [Budget(6, 8, 1.0, **settings).rate(e) for e in range(6)]

    assert rates() == [1.0] * 6
    assert rates(schedule="step", milestones=(2, 4)) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(schedule="cosine") == pytest.approx([1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873])
    done = fit(om.ERM(), net(), data(), Budget(3, 8, 0.1, schedule="step", milestones=(1,)), seed=0)
    assert [row["lr"] for row in done.history] == pytest.approx([0.1, 0.01, 0.01])


def test_the_rate_reaches_the_optimiser_and_gradients_are_clipped():
    moves = []

    class Moves(om.ERM):
        def step(self, model, batch, optimizer, *rest):
            before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
            loss = super().step(model, batch, optimizer, *rest)
            moves.append((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item())
            return loss

    budget = Budget(2, 9, 0.5, optimizer="sgd", momentum=0.0, clip=1e-3, schedule="step", milestones=(1,))
    fit(Moves(), net(), data(), budget, seed=0)
    assert moves == pytest.approx([5e-4] * 5 + [5e-5] * 5, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_optimisers_and_precisions(optimizer, precision):
    budget = Budget(6, 8, 0.02, optimizer, weight_decay=1e-3, precision=precision, clip=5.0)
    done = fit(om.create("mixup", alpha=0.2), net(), data(), budget, seed=0)
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"]


def test_rows_decoded_when_needed_and_trees_give_the_same_run():
    class Lazy:
        def __len__(self):
            return 45

        def take(self, rows):
            return data().train.x[rows]

    class First(nn.Sequential):
        def forward(self, x):
            return super().forward(x["x"])

    given = data()
    histories = []
    for model, change in ((net(), lambda x: x), (net(), lambda x: Lazy()), (First(*net()), lambda x: {"x": x})):
        train = Part(change(given.train.x), given.train.y)
        valid = given.valid if isinstance(train.x, Lazy) else Part(change(given.valid.x), given.valid.y)
        histories.append(fit(om.ERM(), model, Data(train, valid, None, given.task), BUDGET, seed=0).history)
    assert histories[0] == histories[1] == histories[2]


def test_augmentation_comes_before_mixing_and_only_in_training():
    x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    part, seen = Part(x, y), Seen()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    before = x.clone()
    fit(seen, model, Data(part, part, None, om.Classification(2)), Budget(2, 8, 0.01, augment=True), seed=0)
    assert torch.equal(x, before)
    assert all(b.x.shape == (8, 1, 6, 6) and not torch.equal(b.x, x[b.index]) for b in seen.taken)
    again = Seen(greedy=True)
    fit(again, model, Data(part, part, None, om.Classification(2)), Budget(2, 8, 0.01, augment=True), seed=0)
    assert all(torch.equal(a.x, b.x) for a, b in zip(seen.taken, again.taken, strict=True))
    with pytest.raises(ValueError, match="images"):
        fit(om.ERM(), net(), data(), Budget(2, 8, 0.01, augment=True), seed=0)


def test_a_loss_that_is_no_number_stops_training_with_place_and_method():
    class Breaks(om.ERM):
        def loss(self, model, batch, **streams):
            loss = super().loss(model, batch)
            return loss * float("nan") if self.steps_done == 7 else loss

    with pytest.raises(TrainingError, match="loss became nan at step 3 of epoch 2 under Breaks"):
        fit(Breaks(), net(), data(), BUDGET, seed=0)
    broken = data()
    broken.valid.x[3] = float("inf")
    with pytest.raises(TrainingError, match="validation loss is nan after epoch 1 under ERM"):
        fit(om.ERM(), net(), broken, BUDGET, seed=0)

    class Spoils(om.ERM):
        def after_epoch(self):
            with torch.no_grad():
                self.given.model[0].weight[0, 0] = float("nan")

    with pytest.raises(TrainingError, match="weight is NaN"):
        fit(Spoils(), net(), Data(data().train, None, None, om.Regression(1)), Budget(1, 8, 0.1, select="last"), seed=0)


def test_what_does_not_fit_together_is_refused_with_the_remedy():
    class Streams(om.ERM):
        streams = ("unlabeled",)

    train = data().train
    for match, method, given, budget in (
        ("extra streams unlabeled", Streams(), data(), BUDGET),
        ("drop_last=False", om.ERM(), data(), Budget(1, 64, 0.1)),
        ("select='last'", om.ERM(), Data(train, None, None, om.Regression(1)), BUDGET),
        ("metric must be one of loss, rmse", om.ERM(), data(), Budget(1, 8, 0.1, metric="accuracy")),
        ("domain", om.ERM(), data(), Budget(1, 8, 0.1, metric="worst_domain")),
    ):
        with pytest.raises(ValueError, match=match):
            fit(method, net(), given, budget, seed=0)
    for match, change in (
        ("epochs", {"epochs": 0}),
        ("batch_size", {"batch_size": 2.5}),
        ("lr", {"lr": -1.0}),
        ("optimizer must be one of", {"optimizer": "lion"}),
        ("milestones", {"schedule": "step"}),
        ("milestones", {"milestones": (3,)}),
        ("precision", {"precision": "8-true"}),
        ("clip", {"clip": 0}),
        ("multiple of devices", {"devices": 3}),
    ):
        with pytest.raises(ValueError, match=match):
            Budget(**{"epochs": 1, "batch_size": 8, "lr": 0.1, **change})
    for match, part in (
        ("y has shape", (torch.zeros(3, 2), torch.zeros(4))),
        ("least one row", (torch.zeros(0, 2),) * 2),
    ):
        with pytest.raises(ValueError, match=match):
            Part(*part)


def test_tables_hold_what_methods_ask_for():
    part = Part(torch.rand(5, 2, 3), torch.arange(5), torch.tensor([0, 0, 1, 1, 1]))
    assert set(table(part)) == {"label", "domain"}
    assert table(part, ("feature",))["feature"].shape == (5, 6)
    assert set(table(Part([torch.rand(5, 2)], torch.arange(5)), ("feature",))) == {"label"}


@pytest.mark.parametrize(
    ("kind", "own", "kept"),
    [
        (torch.optim.Adam, {}, ("step", "exp_avg", "exp_avg_sq")),
        (torch.optim.AdamW, {}, ("step", "exp_avg", "exp_avg_sq")),
        (torch.optim.SGD, {"momentum": 0.9}, ("momentum_buffer",)),
        (torch.optim.SGD, {}, ()),
    ],
)
def test_the_quick_step_is_pytorchs_own(kind, own, kept):
    results, backward = [], quick_backward()
    for quick in (False, True):
        draw = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        model, calls = nn.Linear(7, 3), []
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.03, fused=True, **own)
        if quick:
            quicken(optimizer)
        for step in range(9):
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            if step == 6:
                optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.zero_grad()
            loss = model(torch.randn(4, 7, generator=draw))[:, : 1 + step % 3].square().mean()
            backward(loss) if quick else loss.backward()
            if step == 2:
                model.bias.grad = None
            optimizer.step()
        state = optimizer.state_dict()["state"]
        results.append([*model.parameters(), *(state[i][k] for i in (0, 1) for k in kept)])
        assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_may_get_their_first_gradient_late(momentum):
    """As PyTorch's step that is not fused, which takes momentum up for each parameter when it comes."""
    results = []
    for quick in (False, True):
        a, b, c = (nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0, 3.0))
        optimizer = torch.optim.SGD([a, b, c], lr=0.1, momentum=momentum, weight_decay=0.01, fused=quick)
        if quick:
            quicken(optimizer)
            torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for used in ((a,), (a, b), (b, c), (a, b, c), (a, b, c)):
            optimizer.zero_grad()
            sum(p.square().sum() for p in used).backward()
            optimizer.step()
        results.append(torch.cat([a, b, c]).detach())
    assert torch.allclose(*results, rtol=1e-6)


def test_what_the_quick_step_does_not_know_stays_pytorchs_own():
    for kind, own in (("Adam", "maximize"), ("Adam", "amsgrad"), ("SGD", "dampening")):
        optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.ones(2))], fused=True, **{own: True})
        assert "step" not in vars(quicken(optimizer))


def test_fabrics_setting_is_put_back(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    fit(om.ERM(), net(), data(), BUDGET, seed=0)
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


@pytest.mark.slow
def test_two_processes_share_every_batch():
    """Gradients are averaged over the shares, so plain training is that of one process up to rounding."""
    histories = []
    for devices in (1, 2):
        model = net()
        budget = Budget(3, 8, 0.02, devices=devices, accelerator="cpu", optimizer="sgd", drop_last=False)
        done = fit(om.ERM(), model, data(rows=44), budget, seed=0)
        histories.append([[row["train_loss"], row["valid_loss"]] for row in done.history])
        valid = data(rows=44).valid
        assert evaluate(model, om.ERM(), valid, om.Regression(1))["rmse"] ** 2 == pytest.approx(
            min(loss for _, loss in histories[-1]), rel=1e-5
        )
    torch.testing.assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), rtol=1e-4, atol=0)
