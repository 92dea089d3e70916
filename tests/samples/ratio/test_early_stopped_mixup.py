import copy
import itertools

import pytest
import torch

import omnimix as om
from omnimix.core.ratio import Constant
from omnimix.data.feature_patches import common_rare, orthonormal
from omnimix.networks.patch_cnn import PatchCNN, alignment
from omnimix.samples.ratio import EarlyStopped


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(seed=0):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed)) * 0.3)
    return model


def train(method, steps=10, optimizer=None, watch=lambda step, method, optimizer: None):
    model = net()
    optimizer = (optimizer or torch.optim.Adam)(model.parameters(), lr=0.01)
    method.setup(model, om.Classification(3), steps=steps, generator=seeded(1))
    order, losses = seeded(2), []
    for step in range(steps):
        x = torch.randn(12, 6, generator=order)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        index, _ = method.rows(torch.arange(12))
        watch(step, method, optimizer)
        losses.append(float(method.step(model, om.Batch(x[index], y[index]), optimizer)))
        method.after_step()
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_stop_zero_is_plain_training_and_stop_one_is_mixup_bit_for_bit():
    for ours, theirs in ((EarlyStopped(0.0), om.ERM()), (EarlyStopped(1.0), om.create("mixup"))):
        (a, weights), (b, others) = train(ours), train(theirs)
        assert a == b
        assert torch.equal(weights, others)


def planned(method, epochs=3, batches=4):
    """Losses with the rows of whole epochs asked for at once, and the generator's state after each epoch."""
    model = net()
    method.setup(model, om.Classification(3), steps=epochs * batches, generator=seeded(1))
    x, y = torch.randn(24, 6, generator=seeded(3)), torch.arange(24) % 3
    losses, states = [], []
    for _ in range(epochs):
        for rows, guests in method.plan(torch.arange(24).split(6)):
            assert guests is None
            losses.append(float(method.loss(model, om.Batch(x[rows], y[rows])).detach()))
            method.after_step()
        states.append(method.generator.get_state())
    return losses, states


def test_epochs_planned_at_once_mix_up_to_the_switch_and_draw_no_more():
    (full, _), (plain, _) = planned(om.create("mixup")), planned(om.ERM())
    assert planned(EarlyStopped(1.0))[0] == full
    assert planned(EarlyStopped(0.0))[0] == plain
    losses, states = planned(EarlyStopped(0.5))
    assert losses[:4] == full[:4]
    assert losses[6:] == plain[6:]
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])


def test_it_is_mixup_before_the_switch_and_plain_after_it():
    model = net()
    method, mixup = EarlyStopped(0.4), om.create("mixup")
    for each in (method, mixup):
        each.setup(model, om.Classification(3), steps=5, generator=seeded(1))
    x, y = torch.randn(12, 6, generator=seeded(3)), torch.arange(12) % 3
    plain = mixup.plain_loss(model, om.Batch(x, y))
    for step in range(5):
        assert method.mixing == (step < 2)
        expected = mixup.loss(model, (x, y)) if step < 2 else plain
        assert torch.equal(method.loss(model, (x, y)), expected)
        method.after_step()


def test_the_generator_rests_after_the_switch():
    states = []
    train(EarlyStopped(0.5), watch=lambda step, method, _: states.append(method.generator.get_state()))
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(states)]
    assert moved == [True] * 5 + [False] * 4


@pytest.mark.parametrize("kind", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
def test_the_switch_leaves_the_optimiser_alone(kind):
    def state(optimizer):
        return copy.deepcopy(list(optimizer.state_dict()["state"].values()))

    def run(stop):
        seen = []
        train(EarlyStopped(stop), 6, kind, lambda step, _, optimizer: seen.append(state(optimizer)))
        return seen[3], seen[4]

    (before, after), (full, _) = run(0.5), run(1.0)
    assert len(before) == 4
    for a, b, c in zip(before, full, after, strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a if a[k] is not None)
        if "step" in a:
            assert c["step"] == a["step"] + 1 == 4


def test_any_method_can_be_stopped_and_partners_are_loaded_only_while_it_mixes():
    class Guests(om.RandomPairing):
        def rows(self, index, generator):
            return index.flip(0).unsqueeze(1)

    method = EarlyStopped(0.5, method=om.Mix(Guests()))
    method.setup(net(), om.Classification(3), steps=2, generator=seeded())
    assert method.rows(torch.arange(4))[1] is not None
    method.after_step()
    assert method.rows(torch.arange(4))[1] is None


def test_the_inner_method_gets_its_streams_and_the_end_of_each_epoch_it_mixed():
    class Inner(om.ERM):
        streams = ("extra",)
        epochs = 0

        def after_epoch(self):
            self.epochs += 1

    method = EarlyStopped(0.5, method=Inner())
    assert method.streams == ("extra",)
    assert EarlyStopped().streams == ()
    method.setup(net(), om.Classification(3), steps=8, generator=seeded())
    for _ in range(4):
        method.after_step()
        method.after_step()
        method.after_epoch()
    assert method.inner.epochs == 2


def test_guests_that_were_loaded_early_are_left_out_of_the_plain_loss():
    model = net()
    method = EarlyStopped(0.0).setup(model, om.Classification(3), steps=2, generator=seeded())
    x, y = torch.randn(8, 6, generator=seeded()), torch.arange(8) % 3
    expected = method.plain_loss(model, om.Batch(x[:4], y[:4]))
    assert torch.equal(method.loss(model, om.Batch(x, y, anchors=4)), expected)


def test_label_ratio_reaches_the_loss():
    model = net()
    x, y = torch.randn(12, 6, generator=seeded(3)), torch.arange(12) % 3
    method = EarlyStopped(1.0, label_ratio=0.9).setup(model, om.Classification(3), steps=1, generator=seeded())
    mix = om.Mix().setup(model, om.Classification(3), generator=seeded())
    recipe = mix.recipe(om.Batch(x, y))
    mixed = mix.mix(om.Batch(x, y), recipe)
    high = 0.9 if recipe.lam[0] >= 0.5 else 0.1
    losses = [torch.nn.functional.cross_entropy(model(mixed.x), y[recipe.partner[:, k]]) for k in (0, 1)]
    assert torch.allclose(method.loss(model, (x, y)), high * losses[0] + (1 - high) * losses[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopped(1.2), "stop"),
        (lambda: EarlyStopped(alpha=-1), "alpha"),
        (lambda: EarlyStopped(alpha=0.2, method=om.ERM()), "method"),
        (lambda: EarlyStopped().setup(net(), om.Classification(3)), "steps"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def rare_accuracy(seed, method):
    """Accuracy on rare and on common test points, and alignment with the rare features, after 1500 full-batch steps."""
    draw = seeded(seed)
    features = orthonormal(2, 2, 800, draw)
    data, test = common_rare(200, features, draw), common_rare(2000, features, draw, rare=0.5)
    model = PatchCNN(800, 2, 6, "quadratic", std=0.01, generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method.setup(model, om.Classification(2), steps=1500, generator=draw)
    batch = om.Batch(data.x, data.y)
    for _ in range(1500):
        method.step(model, batch, optimizer)
        method.after_step()
    with torch.no_grad():
        right = (model(test.x).argmax(1) == test.y).float()
        learned = alignment(model.weight, features[:, 1]).diagonal().min()
    return right[test.view == 1].mean().item(), right[test.view == 0].mean().item(), learned.item()


@pytest.mark.slow
def test_mixup_learns_the_rare_feature_that_plain_training_does_not():
    def arm(make):
        return torch.tensor([rare_accuracy(seed, make()) for seed in (0, 1, 2)])

    plain, mixed = arm(om.ERM), arm(lambda: EarlyStopped(0.9, method=om.Mix(ratio=Constant(0.6))))
    assert plain[:, 0].mean() < 0.8  # a single seed with more rare points than usual can come out above
    assert mixed[:, 0].min() > 0.95
    assert bool((mixed[:, 2] > 2 * plain[:, 2]).all())
    assert min(plain[:, 1].min(), mixed[:, 1].min()) > 0.99
