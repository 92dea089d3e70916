"""Hand values, limits and moments of mixout, and what wrapping leaves alone; decay toward the start."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from omnimix.models.regularize.mixout import Mixout, mixout, mixout_mask, mixout_penalty
from omnimix.models.regularize.start_decay import StartDecay
from omnimix.networks.language_model import LanguageModel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*size, seed=0):
    return torch.randn(*size, generator=generator(seed))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.GELU(), nn.Linear(7, 3))


def moved(model):
    """`model` after its weights left the anchors."""
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight += 0.1 * rand(*weight.shape, seed=50 + i)
    return model


X, Y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.0])
W, U = torch.ones(1, 2), torch.tensor([[0.0, 2.0]])


def half_squared(weight):
    return 0.5 * (X @ weight[0] - Y).square().mean()


def test_the_four_masks_by_hand_and_their_mean():
    masks = [torch.tensor([mask], dtype=torch.float32) for mask in itertools.product((1, 0), repeat=2)]
    losses = {tuple(m[0].int().tolist()): float(half_squared(mixout(W, U, m, 0.5))) for m in masks}
    assert sorted(losses.values()) == pytest.approx([0.25, 9.25, 18.25, 55.25])
    assert losses[0, 0] == pytest.approx(float(half_squared(2 * 0.5 * U)))
    curvature = X.square().mean(0)
    expected = half_squared(W) + mixout_penalty(W, U, 0.5, curvature)
    assert float(expected) == pytest.approx(20.75)
    assert sum(losses.values()) / 4 == pytest.approx(20.75)
    assert float(half_squared(W) + mixout_penalty(W, U, 0.9, curvature)) == pytest.approx(80.75)
    kept = {m: 0.1 ** (2 - sum(m)) for m in itertools.product((0, 1), repeat=2)}
    chance = {m: 0.9 ** (2 - sum(m)) * 0.1 ** sum(m) for m in kept}
    mean = sum(q * half_squared(mixout(W, U, torch.tensor([m]).float(), 0.9)) for m, q in chance.items())
    assert float(mean) == pytest.approx(80.75, rel=1e-5)


def test_anchor_zero_is_dropout_of_the_input_and_so_is_its_gradient():
    weight, x, mask = rand(4, 6).requires_grad_(), rand(3, 6, seed=1), mixout_mask((4, 6), 0.3, generator=generator(2))
    mixed = x @ mixout(weight, torch.zeros(4, 6), mask, 0.3).T
    dropped = (x * mask / 0.7) @ weight.T
    torch.testing.assert_close(mixed, dropped)
    a, b = (torch.autograd.grad(out.square().sum(), weight)[0] for out in (mixed, dropped))
    torch.testing.assert_close(a, b)


def test_mean_and_variance_over_masks():
    n, p, w, u = 100_000, 0.7, 1.5, 0.25
    mask = mixout_mask((n, 1), p, per="element", generator=generator())
    draws = mixout(torch.full((n, 1), w), torch.full((n, 1), u), mask, p)
    variance = (w - u) ** 2 * p / (1 - p)
    assert abs(float(draws.mean()) - w) < 4 * (variance / n) ** 0.5
    assert float(draws.var()) == pytest.approx(variance, rel=0.02)


def test_masks_are_per_input_unit_or_per_element():
    column = mixout_mask((50, 20), 0.5, generator=generator())
    assert column.shape == (1, 20)
    assert mixout_mask((8, 6, 3, 3), 0.5, generator=generator()).shape == (1, 6, 1, 1)
    assert mixout_mask((8, 6, 3), 0.5, axis=0, generator=generator()).shape == (8, 1, 1)
    single = mixout_mask((50, 20), 0.5, per="element", generator=generator())
    assert (single != single[:1]).any()
    assert torch.equal(single, mixout_mask((50, 20), 0.5, per="element", generator=generator()))


def test_limits_of_p():
    w, u = rand(4, 3).requires_grad_(), rand(4, 3, seed=1)
    mask = mixout_mask((4, 3), 0.5, generator=generator())
    assert mixout(w, u, mask, 0.0) is w
    taken = mixout(w, u, mixout_mask((4, 3), 1.0, generator=generator()), 1.0)
    assert torch.equal(taken, u)
    assert not torch.autograd.grad(taken.sum(), w)[0].any()
    assert torch.equal(mixout(w, w.detach(), mask, 0.9), w)


def test_recorded_reference_values():
    # bloodwass/mixout 18f377d, p = .5, with the mask that it drew
    w = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    u, mask = torch.tensor([[0.5, 0.0, -1.0], [2.0, 2.0, 2.0]]), torch.tensor(REFERENCE_MASK)
    mixed = mixout(w, u, mask, 0.5, reference=True)
    torch.testing.assert_close(mixed, torch.tensor(REFERENCE_FORWARD))
    assert torch.equal(torch.autograd.grad(mixed.sum(), w)[0], torch.tensor(REFERENCE_GRADIENT))
    true = mixout(w, u, mask, 0.5)
    torch.testing.assert_close(torch.autograd.grad(true.sum(), w)[0], 2 * torch.tensor(REFERENCE_GRADIENT))


REFERENCE_MASK = [[0.0, 1.0, 0.0]]
REFERENCE_FORWARD = [[0.5, 4.0, -1.0], [2.0, 8.0, 2.0]]
REFERENCE_GRADIENT = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


def test_half_precision_is_computed_in_32_bits():
    w, u = torch.full((1, 1), 60000.0).half(), torch.full((1, 1), 59968.0).half()
    assert float(mixout(w, u, torch.ones(1, 1), 0.9)) == float(torch.tensor(59968 + 10 * 32.0).half())
    assert mixout(w, u, torch.ones(1, 1), 0.9).dtype == torch.float16


def test_evaluation_is_the_plain_module_and_training_mixes():
    plain = moved(net()).eval()
    wrapped = Mixout(moved(net()), 0.8, anchor=net().state_dict(), generator=generator()).eval()
    x = rand(6, 5)
    assert torch.equal(wrapped(x), plain(x))
    wrapped.train()
    first, second = wrapped(x), wrapped(x)
    assert not torch.equal(first, second)
    assert wrapped.module[1].p == 0
    assert wrapped.remove()[1].p == 0.5
    still = Mixout(net(), 0.8)
    assert torch.equal(still(x), net().eval()(x))  # w = u


def test_bias_is_never_mixed_and_the_rows_share_the_mask():
    wrapped = moved(Mixout(net(), 0.5, generator=generator()))
    wrapped.redraw()
    layer = wrapped.module[0]
    part = layer.parametrizations.weight
    ratio = (layer.weight - part[0].anchor) / (part.original - part[0].anchor)
    torch.testing.assert_close(ratio, (2 * part[0].mask).expand(7, 5), atol=1e-4, rtol=1e-4)
    assert not hasattr(layer, "parametrizations") or "bias" not in layer.parametrizations


def test_an_optimiser_made_before_trains_the_weights_and_anchors_stay():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = Mixout(model, 0.5, generator=generator())
    start = [b.clone() for b in wrapped.buffers()]
    for i in range(10):
        optimizer.zero_grad()
        (wrapped(rand(4, 5, seed=i)) - 1).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(start, wrapped.buffers(), strict=True))
    trained = wrapped.eval()(rand(4, 5))
    back = wrapped.remove()
    assert back is model
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in net().named_parameters()]
    assert torch.equal(back(rand(4, 5)), trained)
    assert not torch.equal(trained, net().eval()(rand(4, 5)))
    held = {id(w) for group in optimizer.param_groups for w in group["params"]}
    assert {id(w) for w in back.parameters()} == held


def test_state_round_trip_goes_on_with_the_same_masks():
    first = moved(Mixout(net(), 0.5, generator=generator(3)))
    x = rand(4, 5)
    first(x)
    second = Mixout(net(1), 0.5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    twin = copy.deepcopy(first)
    assert torch.equal(first(x), twin(x))
    assert {b.dtype for b in first.double().buffers()} == {torch.float64}
    assert not any("anchor" in name for name in Mixout(net(), save_anchor=False).state_dict())


def test_recomputation_under_checkpointing_reuses_the_mask():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    plain, checked = moved(Mixout(net(), 0.5, generator=generator())), Mixout(Checked(), 0.5, generator=generator())
    moved(checked)
    outer = moved(Mixout(net(), 0.5, generator=generator()))
    x = rand(4, 5)
    losses = [f(x).square().sum() for f in (plain, checked)]
    losses.append(checkpoint(outer, x, use_reentrant=False).square().sum())
    assert losses[0] == losses[1] == losses[2]
    for loss in losses:
        loss.backward()
    for a, b, c in zip(plain.parameters(), checked.parameters(), outer.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert torch.equal(a.grad, c.grad)


def test_tied_weights_share_one_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    wrapped = moved(Mixout(Tied(), 0.5, weights="a.weight", generator=generator()))
    wrapped(rand(2, 4))
    assert torch.equal(wrapped.module.a.weight, wrapped.module.b.weight)
    assert not torch.equal(wrapped.module.a.weight, wrapped.module.a.parametrizations.weight.original)
    assert wrapped.remove().a.weight is wrapped.module.b.weight


def test_raw_parameters_and_transposed_layers():
    attention = moved(Mixout(nn.MultiheadAttention(8, 2), 0.5, weights=["in_proj_weight"], generator=generator()))
    x = rand(3, 2, 8)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    table = Mixout(nn.Sequential(nn.Embedding(10, 4)), 0.5, weights="*")
    table.redraw()
    assert table.module[0].parametrizations.weight[0].mask.shape == (10, 1)  # a row is an input
    up = Mixout(nn.ConvTranspose1d(4, 6, 3), 0.5, weights="weight")
    up.redraw()
    assert up.module.parametrizations.weight[0].mask.shape == (4, 1, 1)


def test_anchors_given_by_a_checkpoint():
    base = net(1).state_dict()
    wrapped = Mixout(net(), 1.0, anchor=base)
    expected = net()
    with torch.no_grad():
        expected[0].weight.copy_(base["0.weight"])
        expected[3].weight.copy_(base["3.weight"])
    torch.testing.assert_close(wrapped(rand(2, 5)), expected.eval()(rand(2, 5)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 1.5}, "p must be"),
        ({"per": "row"}, "per must be"),
        ({"weights": "nope"}, "no parameter is called 'nope'"),
        ({"weights": "0.*"}, "two axes"),
        ({"anchor": "end"}, "anchor must be"),
        ({"anchor": {}}, "anchor has no tensor for '0.weight'"),
        ({"anchor": {"0.weight": torch.zeros(2), "3.weight": torch.zeros(3, 7)}}, "has shape"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(ValueError, match=said):
        Mixout(net(), **settings)


def test_refusals_of_the_functions_and_of_modules_without_linear_layers():
    with pytest.raises(ValueError, match="shape"):
        mixout(torch.zeros(2, 2), torch.zeros(2, 1), torch.ones(1, 2), 0.5)
    with pytest.raises(ValueError, match="infinite"):
        mixout_penalty(W, U, 1.0)
    with pytest.raises(ValueError, match=r"without nn\.Linear"):
        Mixout(nn.Conv1d(2, 2, 1))


def test_decay_to_the_start_shrinks_the_distance_exactly():
    weight, head = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([{"params": [weight], "lr": 0.1}, {"params": [head]}], lr=0.1)
    decay = StartDecay(optimizer, 2.0, exclude=[head])
    with torch.no_grad():
        weight += torch.tensor([0.5, 4.0])
        head += 1
    for _ in range(3):
        weight.grad, head.grad = torch.zeros(2), torch.zeros(2)
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 4.0]) * 0.8**3)
    assert torch.equal(head.data, torch.full((2,), 2.0))
    other = StartDecay(torch.optim.SGD([weight, head], lr=0.1), 2.0)
    other.load_state_dict(decay.state_dict())
    assert torch.equal(other.start[0], torch.tensor([1.0, -2.0]))
    decay.remove()
    before = weight.detach().clone()
    optimizer.step()
    assert torch.equal(weight, before)


def test_decay_to_the_start_refuses_a_second_decay():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"weight_decay=0\.01; set it to 0"):
        StartDecay(torch.optim.AdamW([weight]))
    with pytest.raises(ValueError, match="start must hold"):
        StartDecay(torch.optim.SGD([weight]), start=[torch.ones(3)])


def test_a_head_tied_to_the_embedding_shares_its_mask_by_default():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        language_model = LanguageModel(13, width=8, layers=1, heads=2)
    base = {k: v.clone() for k, v in language_model.state_dict().items() if k != "head.weight"}  # as files have it
    wrapped = moved(Mixout(language_model, 0.5, anchor=base, generator=generator()))
    wrapped.redraw()
    assert torch.equal(wrapped.module.embed.weight, wrapped.module.head.weight)
    part = wrapped.module.head.parametrizations.weight
    assert part[0].mask.shape == (1, 8)
    assert torch.equal(part[0].anchor, base["embed.weight"])
    assert not torch.equal(wrapped.module.head.weight, part.original)


def test_dropout_is_off_where_no_layer_does_it():
    """Attention reads a number, or the rate of a layer that it does not call."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.map = nn.Dropout(0.5), nn.Linear(5, 5)

        def forward(self, x):
            return nn.functional.dropout(self.map(x), self.drop.p, self.training)

    x = rand(3, 2, 8)
    wrapped = Mixout(nn.MultiheadAttention(8, 2, dropout=0.5), 0.5)
    assert torch.equal(wrapped(x, x, x)[0], wrapped(x, x, x)[0])  # w = u
    assert wrapped.remove().dropout == 0.5
    wrapped = Mixout(Reads(), 0.5)
    assert torch.equal(wrapped(rand(3, 5)), wrapped(rand(3, 5)))
    kept = Mixout(Reads(), 0.5, keep_dropout=True)
    assert not torch.equal(kept(rand(3, 5)), kept(rand(3, 5)))


def test_decay_to_the_start_follows_the_weights_and_not_their_places():
    a, b, c = (nn.Parameter(torch.full((2,), float(i))) for i in range(3))
    optimizer = torch.optim.SGD([a, b, c], lr=0.1)
    StartDecay(optimizer, 1.0)
    late = nn.Parameter(torch.ones(3))
    optimizer.param_groups[0]["params"] = [a, c]
    optimizer.add_param_group({"params": [late]})
    with torch.no_grad():
        c.add_(1)
        late.add_(1)
    for weight in (a, c, late):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(c.data, torch.full((2,), 2.9))
    assert torch.equal(late.data, torch.full((3,), 2.0))
