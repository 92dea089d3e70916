import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.networks import create
from omnimix.samples.operation import CutMix, Patches, PatchUp
from omnimix.samples.operation.patchup import hole_probability


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def recipe(partner, lam):
    own = torch.arange(len(partner))
    share = torch.tensor([[lam, 1 - lam]]).expand(len(partner), 2)
    return Recipe(torch.stack((own, torch.tensor(partner)), dim=1), share, place="block1")


PARTNER = [2, 0, 3, 1]


def test_the_probability_of_holes():
    assert hole_probability(0.75, 7, (32, 32)) == pytest.approx(0.023186, abs=1e-6)
    assert hole_probability(0.5, 1, (9, 4)) == 0.5
    assert hole_probability(0.5, 7, (7,)) == 0.5  # one block fills the map
    assert hole_probability(0.5, 7, (3, 3)) == 0.5  # cut to the map
    assert hole_probability(0.75, 3, (8, 12)) == pytest.approx(0.75 * 96 / (9 * 6 * 10))


@pytest.mark.parametrize("size", [(24,), (12, 17), (5, 6, 7)])
@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_blocks_are_mixed_and_the_rest_is_left(size, lam):
    h = torch.randn(4, 6, *size, generator=draw())
    mixed, done = Patches(0.5, 3)(h, recipe(PARTNER, lam), Context(draw(1)))
    blended = lam * h + (1 - lam) * h[PARTNER]
    changed = (mixed != h).any(dim=0)
    torch.testing.assert_close(mixed, torch.where(changed, blended, h))
    assert 0.1 < changed.float().mean() < 0.9
    assert (changed[0] != changed[1]).any()  # every channel has its own holes
    kept = 1 - changed.float().mean() * (1 - lam)
    torch.testing.assert_close(done.lam, kept.expand(4))
    torch.testing.assert_close(done.share.sum(dim=1), torch.ones(4))
    assert torch.equal(done.label_share, done.share)
    torch.testing.assert_close(done.mask.flatten(1).mean(dim=1), done.lam)


def test_holes_are_whole_blocks():
    h = torch.rand(2, 400, 15, 11, generator=draw())
    mixed, _ = Patches(0.3, 5)(h, recipe([1, 0], 0.0), Context(draw(1)))
    holes = (mixed != h).float()[:1]
    inner = -F.max_pool2d(-holes, 5, 1)  # where a whole block fits
    opened = F.max_pool2d(F.pad(inner, (2, 2, 2, 2)), 5, 1, 2)
    inside = (..., slice(4, -4), slice(4, -4))
    assert torch.equal(holes[inside], opened[inside])
    centres = F.avg_pool2d(torch.ones(1, 1, 15, 11), 5, 1, 2) * 25  # that reach a cell, fewer at the border
    expected = 1 - (1 - hole_probability(0.3, 5, (15, 11))) ** centres[0]
    torch.testing.assert_close(holes.mean(dim=1), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(holes.mean(), expected.mean(), atol=0.02, rtol=0)


def test_limits():
    h = torch.randn(4, 3, 8, 8, generator=draw())
    for operation, lam, expected, kept in (
        (Patches(0.0), 0.3, h, 1.0),
        (Patches(0.75), 1.0, h, 1.0),
        (Patches(1.0, 1), 0.0, h[PARTNER], 0.0),
        (Patches(1.0, 1), 0.25, 0.25 * h + 0.75 * h[PARTNER], 0.25),
    ):
        mixed, done = operation(h, recipe(PARTNER, lam), Context(draw(1)))
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(done.lam, torch.full((4,), kept))


def test_the_papers_loss_is_twice_the_reweighted_one():
    """L(y) u + L(mixed target) (1 - u) + L(reweighted), by both losses, soft and hard."""
    h, y, lam = torch.randn(4, 3, 12, 12, generator=draw()), torch.eye(4), 0.3
    logits = torch.randn(4, 4, generator=draw(2))

    def bce(target):
        return F.binary_cross_entropy(logits.softmax(dim=1), target)

    for share, target in ((lam, lam * y + (1 - lam) * y[PARTNER]), (0.0, y[PARTNER])):
        mixed, done = Patches()(h, recipe(PARTNER, share), Context(draw(1)))
        u = float((mixed == h).all(dim=0).float().mean())
        reweighted = u * y + (1 - u) * target
        assert 0.1 < u < 0.9
        for loss in (bce, lambda t: F.cross_entropy(logits, t)):
            total = loss(y) * u + loss(target) * (1 - u) + loss(reweighted)
            torch.testing.assert_close(total, 2 * loss(reweighted))
        ours = om.Mixed(mixed, torch.arange(4), done).loss(F.cross_entropy, logits)
        torch.testing.assert_close(ours, F.cross_entropy(logits, reweighted))


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("small-cnn", (3, 8, 8), 4)


def test_the_method_cuts_the_input_in_a_third_of_the_steps():
    model = small_net()
    method = PatchUp().setup(model, om.Classification(4), generator=draw())
    cut, hidden = method.methods
    assert isinstance(cut, CutMix)
    assert hidden.places == tuple(model.taps)
    assert method.probabilities == pytest.approx([1 / 3, 2 / 3])
    assert PatchUp(taps=["block2"]).setup(model, om.Classification(4)).methods[1].places == ("block2",)
    x, y = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4
    for _ in range(6):
        assert torch.isfinite(method.loss(model, (x, y)))


def test_hard_takes_its_own_defaults_and_exchanges():
    hard, soft = (PatchUp(hard).methods[1] for hard in (True, False))
    assert (hard.operation.gamma, hard.probability, soft.operation.gamma, soft.probability) == (0.5, 0.7, 0.75, 1.0)
    assert (hard.ratio(3, 2, draw())[:, 0] == 0).all()
    assert PatchUp(True, gamma=0.2, probability=0.4).methods[1].operation.gamma == 0.2


def test_reference_loss():
    model, x, y = small_net(), torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4
    method = PatchUp(taps=["block1"], gamma=0.0, loss="bce_on_softmax").setup(model, om.Classification(4))
    expected = F.binary_cross_entropy(model(x).softmax(dim=1), F.one_hot(y, 4).float())
    torch.testing.assert_close(method.methods[1].loss(model, (x, y)), expected)


@pytest.mark.parametrize(
    ("name", "value"), [("block", 4), ("block", 0), ("gamma", 1.5), ("probability", -1.0), ("loss", "mse")]
)
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        PatchUp(**{name: value})
