import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.networks import create
from omnimix.samples.operation import Aligned, AlignMixup, assignment


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(rows=4, channels=16, size=(4, 4), scale=1.0, seed=0):
    return scale * torch.randn(rows, channels, *size, generator=draw(seed))


def mix(a, b, lam, onto, marginals="balanced"):
    """Pairs (a_i, b_i) mixed."""
    count = len(a)
    partner = torch.stack((torch.arange(count), torch.arange(count) + count), dim=1)
    given = Recipe(partner, torch.tensor([[lam, 1 - lam]]).expand(count, 2), place="tap")
    mixed, done = Aligned(marginals=marginals, onto=onto)(torch.cat((a, b)), given, Context(draw()))
    assert done is given
    return mixed


@pytest.mark.parametrize(("step", "same"), [(1.0, 1 / (1 + math.exp(-10))), (0.1, 0.5249792)])
def test_two_cells(step, same):
    a = torch.tensor([[[0.0, step]]])
    expected = torch.tensor([[[same, 1 - same], [1 - same, same]]])
    torch.testing.assert_close(assignment(a, a, marginals="reference"), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("marginals", ["balanced", "reference"])
def test_a_permuted_map_is_put_back(marginals):
    a, order = torch.eye(16).view(1, 16, 4, 4) - 0.5, torch.randperm(16, generator=draw(1))
    b = a.flatten(2)[:, :, order].view_as(a)
    weights = assignment(a, b, marginals=marginals)
    torch.testing.assert_close(weights[0], F.one_hot(order, 16).float().T, atol=1e-3, rtol=0)
    for lam in (0.0, 0.4):
        torch.testing.assert_close(mix(a, b, lam, "own", marginals), a, atol=1e-2, rtol=0)
        torch.testing.assert_close(mix(a, b, lam, "partner", marginals), b, atol=1e-2, rtol=0)


@pytest.mark.parametrize("marginals", ["balanced", "reference"])
def test_constant_maps_and_limits_of_the_share(marginals):
    a = torch.ones(1, 3, 2, 5)
    b = torch.randn(1, 3, 2, 5, generator=draw())
    weights = assignment(a, 2 * a, marginals=marginals)
    torch.testing.assert_close(weights, torch.full((1, 10, 10), 0.1), atol=1e-6, rtol=0)
    torch.testing.assert_close(mix(a, a, 0.3, "own", marginals), a)
    moved = (b.flatten(2) @ assignment(a, b, marginals=marginals).transpose(1, 2)).view_as(b)
    torch.testing.assert_close(mix(a, b, 0.0, "own", marginals), moved)
    torch.testing.assert_close(mix(a, b, 1.0, "own", marginals), a)
    torch.testing.assert_close(mix(a, b, 0.0, "partner", marginals), b)
    onto = (a.flatten(2) @ assignment(a, b, marginals=marginals)).view_as(a)
    torch.testing.assert_close(mix(a, b, 1.0, "partner", marginals), onto)


@pytest.mark.parametrize("size", [(12,), (3, 5), (2, 3, 3)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_balanced_rows_and_columns_sum_to_one_at_any_scale(size, scale):
    weights = assignment(maps(size=size, scale=scale), maps(size=size, scale=scale, seed=1))
    for axis in (1, 2):
        sums = weights.sum(dim=axis)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-3, rtol=0)


def test_the_assignment_is_that_of_the_authors_code():
    """Recorded from `SinkhornDistance` of shashankvkt/AlignMixup_CVPR22 @ ec01a68, times the number of cells."""
    n = torch.arange(120, dtype=torch.float64)
    a = 1.5 * ((n * 12.9898).sin() * 43758.5453).frac().abs().float().view(2, 5, 3, 4)
    b = 0.9 * a.flip(1).roll(1, 3)
    weights = assignment(a, b, marginals="reference")
    assert weights[0, 0, :4].tolist() == pytest.approx([1e-6, 0.915469, 0.0, 0.0], abs=2e-6)
    assert weights[1, 7, :4].tolist() == pytest.approx([0.001345, 0.0, 2e-6, 0.0], abs=2e-6)
    place = torch.arange(288, dtype=torch.float64)
    weigh = ((place * 12.9898).sin() * 43758.5453).frac().abs().float().view(2, 12, 12).flip(1)
    assert float((weights * weigh).sum()) == pytest.approx(10.647057, abs=2e-5)


def test_reference_marginals_are_right_in_columns_only():
    weights = assignment(maps(channels=64), maps(channels=64, seed=1), marginals="reference")
    ones = torch.ones(4, 16)
    torch.testing.assert_close(weights.sum(dim=1), ones, atol=1e-3, rtol=0)
    assert (weights.sum(dim=2) - 1).abs().max() > 0.1
    assert assignment(maps(scale=100.0), maps(scale=100.0, seed=1), marginals="reference").isfinite().all()


def test_the_transport_is_the_cheapest_for_a_small_eps():
    a, b = maps(1, 2, (4,)), maps(1, 2, (4,), seed=3)
    cost = (a.flatten(2).unsqueeze(3) - b.flatten(2).unsqueeze(2)).square().sum(dim=1)[0]
    best = min(
        torch.stack([cost[i, p] for i, p in enumerate(order)]).sum() for order in itertools.permutations(range(4))
    )
    found = (assignment(a, b, eps=0.01)[0] * cost).sum()
    torch.testing.assert_close(found, best, atol=1e-2, rtol=0)


def test_no_gradient_flows_through_the_assignment():
    a, b = maps(2).double().requires_grad_(), maps(2, seed=1).double()
    direction = maps(2, seed=2).double()
    weights = assignment(a, b).double()
    (grad,) = torch.autograd.grad((mix(a, b, 0.3, "partner") * direction).sum(), a)
    expected = 0.3 * (direction.flatten(2) @ weights.transpose(1, 2)).view_as(a)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-5)
    b = b.requires_grad_()
    (grad,) = torch.autograd.grad((mix(a.detach(), b, 0.3, "own") * direction).sum(), b)
    torch.testing.assert_close(grad, 0.7 * (direction.flatten(2) @ weights).view_as(b), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("marginals", ["reference", "balanced"])
def test_before_pooling_and_a_linear_head_it_is_manifold_mixup_of_the_embedding(marginals):
    """The first branch of the released code, for it pools and classifies linearly right behind."""
    a, b, head = maps(channels=64), maps(channels=64, seed=1), nn.Linear(64, 10)
    pooled = [h.flatten(2).mean(dim=2) for h in (a, b)]
    plain = head(0.3 * pooled[0] + 0.7 * pooled[1])

    def logits(mixed):
        return head(mixed.flatten(2).mean(dim=2))

    torch.testing.assert_close(logits(mix(a, b, 0.3, "own", marginals)), plain, atol=1e-4, rtol=0)
    other = logits(mix(a, b, 0.3, "partner", marginals))
    if marginals == "balanced":  # then the second branch is manifold mixup, too
        torch.testing.assert_close(other, plain, atol=1e-3, rtol=0)
    else:
        assert (other - plain).abs().max() > 1e-2
    rectified = head(F.relu(mix(a, b, 0.3, "own", marginals)).flatten(2).mean(dim=2))
    aligned_nothing = head(F.relu(0.3 * a + 0.7 * b).flatten(2).mean(dim=2))
    assert (rectified - aligned_nothing).abs().max() > 1e-2


def test_a_flipped_image_is_matched_cell_by_cell():
    a = maps(2)
    b = a.flip(-1)
    moved = mix(a, b, 0.0, "own")
    assert (moved - a).square().mean() < 0.01 * (b - a).square().mean()


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("small-cnn", (3, 8, 8), 4)


X, Y = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4


def test_the_method_finds_the_last_map_and_draws_the_place():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(self.late(self.early(x).relu()).relu().mean(dim=(2, 3)))

    method = AlignMixup()
    for model, name in ((Late(), "late"), (small_net(), "block2")):
        method.setup(model, om.Classification(4), generator=draw())
        places = {method.recipe(om.Batch(X, Y)).place for _ in range(20)}
        assert len(places) == 2
        assert "input" in places
        if name == "late":  # before the activation, which is no module here
            assert name in places
        assert all(torch.isfinite(method.loss(model, (X, Y))) for _ in range(6))


def test_a_place_right_before_the_pooling_is_warned_of():
    model = small_net()
    for options, told in (
        ({}, "block3.2"),
        ({"places": ("block2", "block3.2")}, "block3.2"),
        ({"places": ("block2",)}, None),
    ):
        method = AlignMixup(**options).setup(model, om.Classification(4), generator=draw())
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                method.recipe(om.Batch(X, Y))
        assert [str(w.message).split("'")[1] for w in seen] == ([told] if told else [])


def test_a_network_without_maps_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    method = AlignMixup().setup(model, om.Classification(4), generator=draw())
    with pytest.raises(ValueError, match=r"no map .*Sequential.*places="):
        method.loss(model, (X, Y))


def test_both_layouts_are_drawn_and_embeddings_are_interpolated():
    h = maps(4)
    given = Recipe(torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2]]), torch.full((4, 2), 0.5), place="tap")
    found = [Aligned(onto=onto)(h, given, Context(draw()))[0] for onto in ("own", "partner")]
    assert not torch.allclose(*found)
    outcomes = [Aligned()(h, given, Context(draw(seed)))[0] for seed in range(10)]
    assert all(any(torch.equal(o, f) for o in outcomes) for f in found)
    flat = h.flatten(1)
    torch.testing.assert_close(Aligned()(flat, given, Context(draw()))[0], (flat + flat[[1, 0, 3, 2]]) / 2)


@pytest.mark.parametrize(("name", "value"), [("eps", 0.0), ("marginals", "rows"), ("alpha", -1.0), ("places", "input")])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        AlignMixup(**{name: value})
