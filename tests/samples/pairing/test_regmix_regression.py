"""RegMix: the limiting cases, the policy gradient, and what is learned on functions of known shape."""

import math

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.samples.pairing.inner_training import InnerTraining
from omnimix.samples.pairing.policy import Policy, reinforce, sample_rows
from omnimix.samples.pairing.regmix_regression import RegMix, actions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def net(inputs=1, width=64, seed=0, dropout=0.0):
    layers = [nn.Linear(inputs, width), nn.LeakyReLU(0.1), nn.Linear(width, width), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, 1))
    source = generator(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=source)
                layer.bias.uniform_(-bound, bound, generator=source)
    return model


def table(rows, function, seed, noise=0.0):
    x = torch.rand(rows, 1, generator=generator(seed)) * 2 - 1
    return om.Table(feature=x, label=function(x) + noise * torch.randn(rows, 1, generator=generator(seed + 1)))


def ready(method, train, valid=None, model=None, seed=0):
    return method.setup(model or net(), om.Regression(1), train, validation=valid, generator=generator(seed))


def batch(method, train, index):
    anchors, guests = method.rows(index)
    rows = torch.cat((anchors, guests.T.reshape(-1)))
    return om.Batch(train["feature"][rows], train["label"][rows], index=rows, anchors=len(anchors))


def square(x):
    return x.square()


def test_the_numbers_of_neighbours_to_choose_from():
    assert actions(100).tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 99]
    assert actions(65).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert actions(2).tolist() == [0, 1]
    assert actions(1).tolist() == [0]


def test_k_zero_is_plain_training():
    train, model = table(20, square, 1), net()
    method = ready(RegMix(k=0), train, model=model)
    found = batch(method, train, torch.arange(12))
    expected = nn.functional.mse_loss(model(train["feature"][:12]), train["label"][:12])
    torch.testing.assert_close(method.loss(model, found), expected)


def test_k_all_others_is_mixup_with_uniform_partners():
    train = table(10, square, 1)
    method = ready(RegMix(k=9), train)
    guests = method.rows(torch.arange(10).repeat_interleave(9000))[1].view(10, 9000)
    for i in range(10):
        count = guests[i].bincount(minlength=10)
        assert count[i] == 0
        assert count.sum() == 9000
        assert ((count[torch.arange(10) != i] - 1000).abs() < 5 * 1000**0.5).all()


def label_error(method, train, function, times=4):
    found = batch(method, train, torch.arange(len(train["label"])).repeat(times))
    mixed = method.mix(found, method.recipe(found))
    return mixed.soft_target() - function(mixed.x), mixed


@pytest.mark.parametrize("k", [0, 1, 5, 24])
def test_a_linear_function_has_no_label_error_for_any_k(k):
    train = om.Table(feature=torch.randn(25, 3, generator=generator(2)).double(), label=torch.zeros(25, 1).double())
    weight = torch.tensor([[1.0], [-2.0], [0.5]]).double()
    train["label"] = train["feature"] @ weight
    error, _ = label_error(ready(RegMix(k=k), train, model=net(3)), train, lambda x: x @ weight)
    assert error.abs().max() < 1e-6


def test_the_label_error_on_a_square_is_that_of_its_curvature():
    x = torch.randn(25, 1, generator=generator(2)).double()
    train = om.Table(feature=x, label=square(x))
    error, mixed = label_error(ready(RegMix(k=24), train), train, square)
    own, other = (mixed.y[mixed.recipe.partner[:, c]] for c in (0, 1))
    assert len(error) == 100
    place = torch.cat([x.repeat(4, 1), x[ready_rows(train)]])[mixed.recipe.partner]
    lam = mixed.recipe.share[:, :1].double()
    expected = lam * (1 - lam) * (place[:, 0] - place[:, 1]).square()
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(square(place[:, 0]), own)
    torch.testing.assert_close(square(place[:, 1]), other)


def ready_rows(train):
    """The guests that the same generator gives again."""
    return ready(RegMix(k=24), train).rows(torch.arange(25).repeat(4))[1].squeeze(1)


def test_gradient_of_the_policy_by_hand():
    logits = torch.zeros(1, 2, requires_grad=True)
    reinforce(logits, torch.tensor([0]), 1.0).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5]]))


def test_gradient_of_the_entropy_bonus_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)
    reinforce(logits, torch.tensor([0]), 0.0, entropy=1.0).backward()
    expected = 3 / 16 * math.log(3.0)  # -dH/dlogit_0 = p0 (log p0 + H) with p = (3/4, 1/4)
    torch.testing.assert_close(logits.grad, torch.tensor([[expected, -expected]]))


def test_the_policy_finds_the_better_of_two_arms():
    z = torch.randn(30, 2, generator=generator(3))
    policy = Policy(2, 2, generator(4))
    for _ in range(500):
        action = policy.sample(z)
        policy.update(z, action, loss=float((action == 0).double().mean()))
    assert policy.probabilities(z)[:, 1].min() > 0.95


def test_a_constant_loss_leaves_the_policy_where_it_is():
    z = torch.randn(30, 2, generator=generator(3))
    policy = Policy(2, 2, generator(4))
    before = policy.probabilities(z).mean(0)
    for _ in range(500):
        policy.update(z, policy.sample(z), loss=3.7)
    torch.testing.assert_close(policy.probabilities(z).mean(0), before, atol=0.01, rtol=0)


def test_the_baseline_knows_nothing_of_the_current_loss():
    z, action = torch.zeros(1, 1), torch.tensor([0])
    policy = Policy(1, 2, generator(), entropy=0.0)
    policy.update(z, action, loss=1.0)
    start = policy.probabilities(z)
    policy.update(z, action, loss=2.0)
    assert policy.baseline == pytest.approx(1.05)
    assert policy.probabilities(z)[0, 0] < start[0, 0]


def test_rows_are_sampled_from_their_own_distribution():
    p = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    found = sample_rows(p.repeat(20_000, 1), generator(5)).view(20_000, 2)
    assert (found[:, 0] == 1).all()
    torch.testing.assert_close(found[:, 1].bincount() / 20_000, p[1], atol=0.015, rtol=0)


def sampled_k(method):
    method.rows(torch.arange(len(method.neighbours.nearest)))
    return method.neighbours.nearest.double()


def test_learned_k_is_larger_where_the_function_is_flat():
    def function(x):
        return torch.where(x < 0, 0.0, 2 * torch.sin(3 * math.pi * x))

    train, valid = table(100, function, 31, noise=0.2), table(200, function, 33, noise=0.2)
    method = ready(RegMix(iterations=150, decide="sample"), train, valid, net(seed=8), seed=3)
    k = torch.stack([sampled_k(method) for _ in range(200)])
    flat = train["feature"].squeeze(1) < 0
    assert k[:, flat].mean() > 1.1 * k[:, ~flat].mean()
    assert k[:, ~flat].mean() < 18  # a random choice gives 25


def test_one_k_for_all_is_small_on_a_curved_function():
    train, valid = table(40, lambda x: torch.sin(4 * x), 1), table(40, lambda x: torch.sin(4 * x), 3)
    method = ready(RegMix(k="global", iterations=40), train, valid)
    method.rows(torch.arange(4))
    assert len(method.neighbours.nearest.unique()) == 1
    assert int(method.neighbours.nearest[0]) <= 4


def test_the_network_and_the_global_generators_stay_untouched():
    model = net(dropout=0.2)
    weights, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    method = ready(RegMix(iterations=2), table(30, square, 1), table(30, square, 3), model)
    method.rows(torch.arange(4))
    assert all(map(torch.equal, weights, model.parameters()))
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_generators_learn_equal_k():
    train, valid = table(30, square, 1), table(30, square, 3)
    first, second = (ready(RegMix(iterations=3), train, valid, net(dropout=0.2)) for _ in range(2))
    assert torch.equal(first.rows(torch.arange(30))[1], second.rows(torch.arange(30))[1])
    assert torch.equal(first.neighbours.nearest, second.neighbours.nearest)


@pytest.mark.parametrize("decide", ["argmax", "sample"])
def test_a_resumed_run_does_not_learn_again(monkeypatch, decide):
    train, valid = table(30, square, 1), table(30, square, 3)
    method = ready(RegMix(iterations=3, decide=decide), train, valid)
    method.rows(torch.arange(5))
    state = method.state_dict()
    resumed = ready(RegMix(iterations=3, decide=decide), train, valid, seed=8)
    monkeypatch.setattr(InnerTraining, "learn", lambda *_: pytest.fail("learned again"))
    resumed.load_state_dict(state)
    for _ in range(3):
        assert torch.equal(resumed.rows(torch.arange(30))[1], method.rows(torch.arange(30))[1])


def test_learning_starts_from_the_weights_at_setup():
    train, valid, model = table(30, square, 1), table(30, square, 3), net()
    late, early = (ready(RegMix(iterations=3), train, valid, model) for _ in range(2))
    early.rows(torch.arange(4))
    with torch.no_grad():
        model[0].weight.add_(5.0)
    late.rows(torch.arange(4))
    assert torch.equal(late.neighbours.nearest, early.neighbours.nearest)


def test_what_is_missing_is_named():
    train = table(10, square, 1)
    with pytest.raises(ValueError, match="chosen on validation samples"):
        ready(RegMix(), train)
    with pytest.raises(ValueError, match="chosen on validation samples"):
        ready(RegMix(k="global"), train, om.Table(label=train["label"]))
    with pytest.raises(ValueError, match="'feature'"):
        ready(RegMix(k=3), om.Table(label=train["label"]))
    with pytest.raises(ValueError, match=r"nearest must lie in 0\.\.9"):
        ready(RegMix(k=10), train)
    with pytest.raises(ValueError, match="k must be one of 'learned', 'global'"):
        RegMix(k="best")
    with pytest.raises(ValueError, match="decide must be one of"):
        RegMix(decide="mean")


def test_a_diverging_inner_training_is_reported():
    method = ready(RegMix(iterations=2, lr=1e30), table(30, square, 1), table(30, square, 3))
    with pytest.raises(ValueError, match="diverged at lr"):
        method.rows(torch.arange(4))
