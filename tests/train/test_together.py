import copy

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
TASKS = {"regression": om.Regression(1), "classification": om.Classification(3)}


def data_of(seed, task="regression", rows=37):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 20, 4, generator=generator)
    y = x.sum(1) + x[:, 0] ** 2 if task == "regression" else x[:, :3].argmax(1)
    return Data(Part(x[:rows], y[:rows]), Part(x[rows:-8], y[rows:-8]), Part(x[-8:], y[-8:]), TASKS[task])


def run_of(name, seed, task="regression", outputs=None, **options):
    model = create("mlp", (4,), outputs or TASKS[task].outputs, seed=seed, hidden=(16, 8))
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


@pytest.mark.parametrize("of", [{"name": "manifold-mixup"}, {"name": "c-mixup", "place": "block1"}], ids=str)
def test_a_run_is_the_same_bit_for_bit_whatever_runs_beside_it(of):
    runs, done = together((0, 1, 2, 3), **of)
    for some in ((1,), (3, 1), (1, 2, 0)):
        fewer, found = together(some, **of)
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


def test_it_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "runs.safetensors"
    whole, expected = together((0, 1), name="manifold-mixup")

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    def train(**more):
        runs = [run_of("manifold-mixup", seed) for seed in (0, 1)]
        given = list(map(list, zip(*runs, strict=True)))
        return runs, fit_together(*given, BUDGET, seeds=(0, 1), checkpoint=path, checkpoint_every=0, **more)

    with pytest.raises(KeyboardInterrupt):
        train(progress=stop)
    assert path.exists()
    epochs = []
    monkeypatch.setattr(module._Together, "_epoch", _spy(module._Together._epoch, epochs))
    runs, done = train()
    assert epochs == [2]
    assert not path.exists()
    for run, mine, theirs, other in zip(runs, done, expected, whole, strict=True):
        assert mine.history == theirs.history
        assert torch.equal(weights(run), weights(other))


def _spy(function, seen):
    def spied(self, epoch):
        seen.append(epoch)
        return function(self, epoch)

    return spied
