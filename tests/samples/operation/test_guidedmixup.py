import pytest
import torch

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import GuidedBlend, greedy_cycle, guidedmixup
from omnimix.samples.saliency import InputGradient


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(maps):
    """The cycle, in plain Python."""
    far = (maps.flatten(1).unsqueeze(1) - maps.flatten(1)).norm(dim=2)
    pairs = [(float(far[i, j]), -i, -j) for i in range(len(far)) for j in range(len(far)) if i != j]
    first = row = -max(pairs)[1]
    left, following = set(range(len(far))) - {first}, {}
    while left:
        following[row] = max(left, key=lambda j: (float(far[row, j]), -j))
        row = following[row]
        left.remove(row)
    following[row] = first
    return [following[i] for i in range(len(far))]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_the_cycle_goes_to_the_farthest_not_yet_visited(count):
    for seed in range(5):
        maps = torch.rand(count, 1, 3, 4, generator=draw(seed))
        found = greedy_cycle(maps).tolist()
        assert found == (by_hand(maps) if count > 1 else [0])
        seen, row = [], 0
        for _ in range(count):
            seen.append(row)
            row = found[row]
        assert sorted(seen) == list(range(count))  # one cycle through all


def test_the_mask_by_hand():
    x, y = torch.tensor([[[1.0, 2, 3, 4]], [[10.0, 20, 30, 40]]]), torch.tensor([0, 1])
    maps = torch.tensor([[[3.0, 1, 0, 0]], [[1.0, 1, 2, 0]]])
    mixed = guidedmixup(x, y, maps, 0.0)
    mask = torch.tensor([[0.75, 0.5, 0.0, 0.5], [0.25, 0.5, 1.0, 0.5]])
    torch.testing.assert_close(mixed.recipe.mask[:, 0], mask)
    torch.testing.assert_close(mixed.x[:, 0], mask * x[:, 0] + (1 - mask) * x[:, 0].flip(0))
    torch.testing.assert_close(mixed.soft_target(2), torch.tensor([[0.4375, 0.5625], [0.4375, 0.5625]]))


@pytest.mark.parametrize("size", [(24,), (12, 20), (6, 8, 4)])
def test_signals_images_and_volumes(size):
    x, y = torch.rand(5, 2, *size, generator=draw()), torch.arange(5)
    before = x.clone()
    mixed = guidedmixup(x, y)
    mask, partner = mixed.recipe.mask, mixed.recipe.partner[:, 1]
    torch.testing.assert_close(mixed.x, mask * x + (1 - mask) * x[partner])
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1))
    assert sorted(partner.tolist()) == list(range(5))
    assert (partner != torch.arange(5)).all()
    assert torch.equal(x, before)
    given = guidedmixup(x, y, partner=torch.arange(5).roll(1))
    assert torch.equal(given.recipe.partner[:, 1], torch.arange(5).roll(1))


def test_equal_maps_give_halves_and_an_image_with_itself_stays():
    x = torch.rand(4, 3, 8, 8, generator=draw())
    mixed = guidedmixup(x, torch.arange(4), torch.ones(4, 1, 8, 8))
    assert torch.equal(mixed.recipe.mask, torch.full((4, 1, 8, 8), 0.5))
    same = guidedmixup(x[:1].expand(4, -1, -1, -1), torch.arange(4))
    torch.testing.assert_close(same.x, x[:1].expand(4, -1, -1, -1))


def test_smoothing_widens_what_is_salient():
    x, maps = torch.rand(2, 1, 15, 15, generator=draw()), torch.zeros(2, 1, 15, 15)
    maps[0, 0, 4, 4] = maps[1, 0, 10, 10] = 1.0
    sharp, smooth = (guidedmixup(x, torch.arange(2), maps, s).recipe.mask[0, 0] for s in (0.0, 2.0))
    assert (sharp == 1).sum() == 1
    assert (smooth == 1).sum() == 25  # two cells to either side
    assert smooth[4, 4] == 1


def test_the_networks_gradient_may_guide():
    x, y = torch.rand(6, 3, 8, 8, generator=draw()), torch.arange(6) % 2
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    method = om.create("guidedmixup", saliency=InputGradient()).setup(net, om.Classification(2), generator=draw())
    assert method.loss(net, (x, y)).isfinite()
    with pytest.raises(ValueError, match="looks at the inputs through the network"):
        guidedmixup(x, y, InputGradient())


def test_guests_stay_the_partners():
    x = torch.rand(4, 1, 8, 8, generator=draw())
    recipe = om.Recipe(torch.tensor([[0, 2], [1, 3]]), torch.full((2, 2), 0.5))
    mixed, applied = GuidedBlend()(x, recipe, Context(draw()))
    assert applied.partner.tolist() == [[0, 2], [1, 3]]
    torch.testing.assert_close(mixed, applied.mask * x[:2] + (1 - applied.mask) * x[2:])


def test_half_precision_and_refusals():
    x = torch.rand(4, 3, 8, 8, generator=draw()).bfloat16()
    assert guidedmixup(x, torch.arange(4)).x.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="smooth"):
        GuidedBlend(smooth=-1.0)
    with pytest.raises(ValueError, match="two samples"):
        GuidedBlend()(x, om.Recipe(torch.zeros(4, 3).long(), torch.full((4, 3), 1 / 3)), Context(draw()))
