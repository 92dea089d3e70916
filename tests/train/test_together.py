import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.method import Mix
from omnimix.core.objective import LabelPolicy, MixedLoss
from omnimix.networks import create
from omnimix.networks.stacked import Stack, stackable
from omnimix.train import Budget, Data, Part, TrainingError, fit
from omnimix.train import together as module
from omnimix.train.together import can_train_together, fit_together, same_shapes

BUDGET = Budget(epochs=3, batch_size=8, lr=0.01)
TASKS = {"regression": om.Regression(1), "classification": om.Classification(3), "multilabel": om.MultiLabel(3)}


def data_of(seed, task="regression", rows=37):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 20, 4, generator=generator)
    y = {"regression": x.sum(1) + x[:, 0] ** 2, "classification": x[:, :3].argmax(1)}.get(task, (x[:, :3] > 0).float())
    return Data(Part(x[:rows], y[:rows]), Part(x[rows:-8], y[rows:-8]), Part(x[-8:], y[-8:]), TASKS[task])


def run_of(name, seed, task="regression", hidden=(16, 8), **options):
    model = create("mlp", (4,), TASKS[task].outputs, seed=seed, hidden=hidden)
    return om.create(name, **options), model, data_of(seed, task)


def together(seeds, budget=BUDGET, **of):
    runs = [run_of(seed=seed, **of) for seed in seeds]
    done = fit_together(*map(list, zip(*runs, strict=True)), budget, seeds=seeds)
    return runs, done


def weights(run):
    return torch.cat([p.detach().flatten() for p in run[1].parameters()])


METHODS = [
    {"name": "erm"},
    {"name": "mixup"},
    {"name": "mixup", "alpha": 0.2, "per_sample": True},
    {"name": "manifold-mixup"},
    {"name": "c-mixup"},
    {"name": "c-mixup", "place": "block1", "bandwidth": 0.2},
    {"name": "c-mixup", "batch": True},
    {"name": "c-mixup", "place": "flat"},
    {"name": "manifold-mixup", "taps": ("flat", "block2")},
    {"name": "midpoint-mixup"},
    {"name": "early-stopped-mixup", "stop": 0.5},
    {"name": "regmix-regression", "k": 3},
    {"name": "mixup", "task": "classification"},
    {"name": "manifold-mixup", "task": "classification"},
    {"name": "manifold-mixup", "task": "classification", "loss": "bce_on_softmax"},
    {"name": "early-stopped-mixup", "task": "classification", "label_ratio": 0.7},
    {"name": "selective-mixup", "task": "classification"},
]


@pytest.mark.parametrize("of", METHODS, ids=lambda of: "-".join(map(str, of.values())))
@pytest.mark.parametrize("drop_last", [True, False])
def test_each_run_is_what_fit_gives_it_alone(of, drop_last):
    budget = Budget(epochs=3, batch_size=8, lr=0.01, drop_last=drop_last)
    runs, done = together((3, 5, 6), budget, **of)
    for seed, run, found in zip((3, 5, 6), runs, done, strict=True):
        alone = run_of(seed=seed, **of)
        expected = fit(*alone, budget, seed=seed)
        torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=1e-5)
        assert found.best_epoch == expected.best_epoch
        for mine, theirs in zip(found.history, expected.history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


SHAPES = [
    ({"name": "manifold-mixup"}, {}),
    ({"name": "c-mixup", "place": "block1"}, {}),
    ({"name": "mixup", "per_sample": True, "hidden": (5, 3)}, {"batch_size": 7}),
    ({"name": "manifold-mixup", "hidden": (17,)}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}),
    ({"name": "mixup", "task": "classification", "hidden": (7, 9)}, {"optimizer": "adamw", "clip": 0.1}),
    ({"name": "manifold-mixup", "task": "classification", "loss": "bce_on_softmax", "hidden": (6,)}, {"batch_size": 5}),
    ({"name": "mixup", "task": "multilabel", "hidden": (6,)}, {"batch_size": 5}),
]


@pytest.mark.parametrize(("of", "options"), SHAPES, ids=str)
def test_a_run_is_the_same_bit_for_bit_whatever_runs_beside_it(of, options):
    budget = Budget(**{"epochs": 6, "batch_size": 8, "lr": 0.01, "drop_last": False, **options})
    runs, done = together((0, 1, 2, 3), budget, **of)
    for some in ((1,), (3, 1), (1, 2, 0)):
        fewer, found = together(some, budget, **of)
        place = some.index(1)
        assert torch.equal(weights(fewer[place]), weights(runs[1]))
        assert found[place].history == done[1].history


def test_what_is_declared_by_row_is_all_that_is_trained_together():
    data, model = data_of(0), create("mlp", (4,), 1, seed=0)

    def possible(method, model=model, data=data, **budget):
        return can_train_together(method, model, data, Budget(epochs=1, batch_size=8, lr=0.1, **budget))

    class OtherLoss(MixedLoss):
        def __call__(self, output, y, recipe, task):
            return super().__call__(output, y, recipe, task) + output.mean()

    class OtherMean(MixedLoss):
        def mean(self, output, y, recipe, task):
            return super().mean(output, y, recipe, task) + output.mean()

    class Policy(LabelPolicy):
        def __call__(self, recipe, context):
            return recipe

    class OtherStep(Mix):
        def step(self, *args, **kw):
            return super().step(*args, **kw)

    assert possible(om.create("mixup"))
    assert not possible(Mix(objective=OtherLoss()))
    assert not possible(Mix(objective=OtherMean()))
    assert not possible(Mix(labels=Policy()))
    assert not possible(OtherStep())
    assert not possible(om.create("regmixup"))
    assert not possible(om.create("mixup"), precision="bf16-mixed")
    assert not possible(om.create("mixup"), accelerator="gpu")
    assert not possible(om.create("mixup"), nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1)))
    images = Data(Part(torch.rand(9, 1, 2, 2), torch.rand(9)), None, None, om.Regression(1))
    assert not possible(om.create("mixup"), data=images)


def test_a_stack_computes_what_its_networks_do_and_gives_their_weights_back():
    networks = [create("mlp", (4,), 1, seed=seed) for seed in range(3)]
    stack, x = Stack(networks), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([network(rows) for network, rows in zip(networks, x, strict=True)])
    torch.testing.assert_close(stack(x), expected)
    for run, network in enumerate(networks):
        found = stack.of(run)
        assert found.keys() == network.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    act = nn.ReLU()
    assert not stackable(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act))
    assert not stackable(nn.Linear(2, 2))
    assert not stackable(nn.Sequential(nn.Linear(2, 2).requires_grad_(False)))
    assert not stackable(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not stackable(create("small-cnn", (1, 8, 8), 2))


def test_data_of_other_shapes_is_refused():
    runs = [run_of("erm", 0), run_of("erm", 1)]
    data = [data_of(0), data_of(1, rows=38)]
    assert not same_shapes(data)
    with pytest.raises(ValueError, match="agree in shape"):
        fit_together([r[0] for r in runs], [r[1] for r in runs], data, BUDGET, seeds=(0, 1))


def test_a_run_that_breaks_down_is_named_and_disturbs_no_other():
    runs = [run_of("mixup", seed) for seed in (0, 1)]
    broken = copy.deepcopy(runs[0][2])
    broken.train.y[:] = 1e30
    done = fit_together([r[0] for r in runs], [r[1] for r in runs], [broken, runs[1][2]], BUDGET, seeds=(0, 1))
    assert isinstance(done[0], TrainingError)
    assert "the loss became inf at step 1 of epoch 1" in str(done[0])
    alone, other = run_of("mixup", 1), together((1,), name="mixup")
    assert torch.equal(weights(runs[1]), weights(other[0][0]))
    fit(*alone, BUDGET, seed=1)
    torch.testing.assert_close(weights(runs[1]), weights(alone), rtol=1e-4, atol=1e-5)


def test_clipping_is_by_run():
    budget = Budget(epochs=2, batch_size=8, lr=0.01, optimizer="sgd", clip=0.05, weight_decay=0.01)
    runs, _ = together((0, 1), budget, name="mixup")
    for seed, run in enumerate(runs):
        alone = run_of("mixup", seed)
        fit(*alone, budget, seed=seed)
        torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=1e-6)


def stop_at(epoch):
    def stop(done, total):
        if done == epoch:
            raise KeyboardInterrupt

    return stop


def with_checkpoints(folder, seeds, name="manifold-mixup", budget=BUDGET, every=0, **more):
    runs = [run_of(name, seed) for seed in seeds]
    paths = [folder / f"{seed}.safetensors" for seed in seeds]
    given = list(map(list, zip(*runs, strict=True)))
    return runs, fit_together(*given, budget, seeds=seeds, checkpoints=paths, checkpoint_every=every, **more)


OPTIMIZERS = [{}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd", "momentum": 0.0}]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_runs_go_on_in_any_grouping_bit_for_bit(tmp_path, monkeypatch, options):
    budget = Budget(epochs=4, batch_size=8, lr=0.01, select="best", **options)
    whole, expected = together((0, 1, 2, 3), budget, name="manifold-mixup")
    with pytest.raises(KeyboardInterrupt):
        with_checkpoints(tmp_path, (0, 1, 2), budget=budget, progress=stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        with_checkpoints(tmp_path, (3,), budget=budget, progress=stop_at(2))
    assert len(list(tmp_path.iterdir())) == 4
    epochs, told = [], []
    monkeypatch.setattr(module._Together, "_epoch", _spy(module._Together._epoch, epochs))
    for seeds in ((3, 1), (2, 0)):  # 3 has come less far than 1
        runs, done = with_checkpoints(tmp_path, seeds, budget=budget, every=99, progress=lambda *a: told.append(a))
        for seed, run, found in zip(seeds, runs, done, strict=True):
            assert found.history == expected[seed].history
            assert found.best_epoch == expected[seed].best_epoch
            assert torch.equal(weights(run), weights(whole[seed]))
    # Each was saved one epoch before it was stopped: the file is written before progress is told.
    assert epochs == [2, 3, 3, 3]
    assert told == [(3, 8), (4, 8), (8, 8), (4, 4)]


def test_a_finished_run_is_not_trained_again_before_its_result_is_stored(tmp_path, monkeypatch):
    _, first = with_checkpoints(tmp_path, (0, 1))
    expected = together((1,), name="manifold-mixup")[0]
    monkeypatch.setattr(module._Together, "_epoch", None)
    runs, again = with_checkpoints(tmp_path, (1,))
    assert again[0].history == first[1].history
    assert torch.equal(weights(runs[0]), weights(expected[0]))


def test_a_run_that_trained_with_others_goes_on_alone_and_the_other_way_round(tmp_path):
    budget = Budget(epochs=4, batch_size=8, lr=0.01, optimizer="adamw", weight_decay=0.1)
    alone = run_of("mixup", 1)
    expected = fit(*alone, budget, seed=1)
    with pytest.raises(KeyboardInterrupt):
        with_checkpoints(tmp_path, (0, 1), "mixup", budget, progress=stop_at(2))
    run, path, seen = run_of("mixup", 1), tmp_path / "1.safetensors", []
    fit(*run, budget, seed=1, checkpoint=path, progress=lambda done, *_: seen.append(done))
    assert seen == [3, 4]
    torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=1e-5)

    path.unlink()

    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*run_of("mixup", 1), budget, seed=1, checkpoint=path, checkpoint_every=0, progress=stop)
    runs, done = with_checkpoints(tmp_path, (1,), "mixup", budget)
    torch.testing.assert_close(weights(runs[0]), weights(alone), rtol=1e-4, atol=1e-5)
    assert [row["epoch"] for row in done[0].history] == [row["epoch"] for row in expected.history]


def test_an_undefined_metric_of_one_run_is_its_error_alone():
    runs = [run_of("erm", seed) for seed in (0, 1)]
    flat = copy.deepcopy(runs[0][2])
    flat.valid.y[:] = 1.0  # no variance: R^2 is undefined
    budget = Budget(epochs=2, batch_size=8, lr=0.01, metric="r2")
    with pytest.raises(ValueError, match="undefined") as alone:
        fit(*run_of("erm", 0)[:2], flat, budget, seed=0)
    done = fit_together([r[0] for r in runs], [r[1] for r in runs], [flat, runs[1][2]], budget, seeds=(0, 1))
    assert type(done[0]) is ValueError
    assert str(done[0]) == str(alone.value)
    assert len(done[1].history) == 2


def other_method(runs):
    runs[1] = (om.create("c-mixup"), *runs[1][1:])


def other_activation(runs):
    runs[1] = (runs[1][0], create("mlp", (4,), 1, seed=1, hidden=(16, 8), activation="relu"), runs[1][2])


@pytest.mark.parametrize(("change", "name"), [(other_method, "methods"), (other_activation, "networks")])
def test_runs_that_are_not_set_up_alike_are_refused(change, name):
    runs = [run_of("mixup", seed) for seed in (0, 1)]
    change(runs)
    with pytest.raises(ValueError, match=f"{name} must be set up alike"):
        fit_together(*map(list, zip(*runs, strict=True)), BUDGET, seeds=(0, 1))


def _spy(function, seen):
    def spied(self, epoch):
        seen.append(epoch)
        return function(self, epoch)

    return spied


RATES = [(0.01, 0.0), (0.002, 0.0), (0.01, 0.1), (0.01, 0.0)]
DRAWS = [
    ("mixup", {}, [{"alpha": 0.1}, {"alpha": 1.0}, {"alpha": 8.0}, {"alpha": 0.1}]),
    ("c-mixup", {}, [{"bandwidth": 0.1}, {"bandwidth": 1.0}, {"alpha": 0.5}, {"alpha": 2.0}]),
    ("manifold-mixup", {}, [{"taps": ("input",)}, {"taps": ("block1",)}, {"alpha": 0.5}, {}]),
    ("early-stopped-mixup", {"clip": 0.5}, [{"stop": 0.3}, {"stop": 0.6}, {}, {"alpha": 0.2}]),
    ("erm", {"optimizer": "sgd", "schedule": "cosine"}, [{}] * 4),
]


@pytest.mark.parametrize(("name", "how", "options"), DRAWS, ids=[name for name, *_ in DRAWS])
def test_draws_of_hyperparameters_train_together(name, how, options, tmp_path):
    """Each by its own rates, pairing and ratio; they go on from their files in another grouping."""
    budgets = [replace(BUDGET, lr=lr, weight_decay=decay, **how) for lr, decay in RATES]
    seeds, paths = (3, 4, 5, 6), [tmp_path / f"{place}.safetensors" for place in range(4)]

    def train(places, epochs=None, **more):
        runs = [run_of(name, seeds[place], **options[place]) for place in places]
        done = fit_together(
            *map(list, zip(*runs, strict=True)),
            [budgets[place] for place in places],
            seeds=[seeds[place] for place in places],
            **more,
        )
        return runs, done

    runs, done = train(range(4))
    for place, (run, found) in enumerate(zip(runs, done, strict=True)):
        alone = run_of(name, seeds[place], **options[place])
        expected = fit(*alone, budgets[place], seed=seeds[place])
        torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=1e-5)
        assert found.history[-1] == pytest.approx(expected.history[-1], rel=1e-4, abs=1e-5)
    files = {"checkpoints": paths, "checkpoint_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train(range(4), **files, progress=_stop)
    for places in ((0, 2), (3, 1)):
        again, _ = train(places, checkpoints=[paths[place] for place in places])
        for place, run in zip(places, again, strict=True):
            assert weights(run).equal(weights(runs[place]))


def _stop(done, total):
    if done == 2:
        raise KeyboardInterrupt


def test_budgets_may_differ_in_rates_only():
    runs = [run_of("mixup", seed) for seed in (0, 1)]
    given = list(map(list, zip(*runs, strict=True)))
    with pytest.raises(ValueError, match="budgets must be set up alike"):
        fit_together(*given, [BUDGET, replace(BUDGET, batch_size=4)], seeds=(0, 1))
