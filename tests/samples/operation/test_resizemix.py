import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import PasteResized, resizemix
from omnimix.samples.operation.stretch import stretch
from omnimix.samples.ratio.uniform_side import UniformSide

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def corners(mask):
    """First and behind-last cells of the hole of each mask (B, 1, *size)."""
    found = []
    for m in 1 - mask[:, 0]:
        where = m.nonzero()
        found.append((where.amin(dim=0).tolist(), (where.amax(dim=0) + 1).tolist()))
    return found


@pytest.mark.parametrize(("tau", "side", "lam"), [(0.5, 16, 0.75), (0.8, 25, 0.389648)])
def test_hand_computed_shares(tau, side, lam):
    mixed = resizemix(torch.rand(3, 1, 32, 32), torch.arange(3), (tau, tau), generator=draw())
    for low, high in corners(mixed.recipe.mask):
        assert [h - b for b, h in zip(low, high, strict=True)] == [side, side]
    torch.testing.assert_close(mixed.recipe.lam, torch.full((3,), lam))


@pytest.mark.parametrize("size", [(32, 32), (13, 24)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_whole_partner_is_pasted_at_nearest_neighbours(size, per_sample):
    x, y = torch.rand(5, 3, *size, generator=draw()), torch.arange(5)
    mixed = resizemix(x, y, per_sample=per_sample, generator=draw(2))
    expected = x.clone()
    for i, (low, high) in enumerate(corners(mixed.recipe.mask)):
        sides = [h - b for b, h in zip(low, high, strict=True)]
        small = F.interpolate(x[mixed.recipe.partner[i, 1]][None], size=sides)[0]
        expected[i, :, low[0] : high[0], low[1] : high[1]] = small
    assert torch.equal(mixed.x, expected)
    torch.testing.assert_close(mixed.recipe.lam, mixed.recipe.mask.flatten(1).mean(dim=1))
    assert (len(mixed.recipe.lam.unique()) > 1) == per_sample
    assert len({tuple(low) for low, _ in corners(mixed.recipe.mask)}) > 1


@pytest.mark.parametrize("size", SHAPES)
def test_one_to_three_axes_whole_and_no_share(size):
    x, y, partner = torch.randn(4, 2, *size, generator=draw()), torch.arange(4), torch.tensor([1, 2, 3, 0])
    assert torch.equal(resizemix(x, y, lam=1.0, partner=partner, generator=draw()).x, x)
    assert torch.equal(resizemix(x, y, lam=0.0, partner=partner, generator=draw()).x, x[partner])
    half = resizemix(x, y, lam=torch.tensor([0.5, 1.0, 0.0, 0.7]), partner=partner, generator=draw())
    assert half.recipe.mask.shape == (4, 1, *size)
    assert half.recipe.lam[1:3].tolist() == [1.0, 0.0]
    assert 0.5 <= float(half.recipe.lam[0]) < 0.75


def test_places_cover_where_it_fits():
    x = torch.zeros(3000, 1, 4, 6)
    mask = resizemix(x, torch.zeros(3000), lam=0.75, generator=draw()).recipe.mask  # 2 x 3 cells
    first = torch.tensor([low for low, _ in corners(mask)])
    assert first.amin(dim=0).tolist() == [0, 0]
    assert first.amax(dim=0).tolist() == [2, 3]


def test_gradients_reach_what_is_seen():
    x = torch.randn(2, 1, 8, 8, generator=draw(), requires_grad=True)
    mixed = resizemix(x, torch.arange(2), lam=0.75, partner=torch.tensor([1, 1]), generator=draw(1))
    mixed.x[0].sum().backward()
    assert torch.equal(x.grad[0, 0], mixed.recipe.mask[0, 0])
    assert x.grad[1].sum() == 16  # each pasted cell shows one cell of the partner


def test_types_and_input_are_kept():
    x = torch.randn(4, 3, 8, 10, generator=draw())
    kept, mixed = x.clone(), resizemix(x, torch.arange(4), generator=draw(1)).x
    last = resizemix(x.to(memory_format=torch.channels_last), torch.arange(4), generator=draw(1)).x
    assert torch.equal(mixed, last)
    assert torch.equal(x, kept)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(resizemix(x.to(dtype), torch.arange(4), generator=draw(1)).x, mixed.to(dtype))


def test_partners_may_be_guests():
    x = torch.randn(6, 1, 4, 4, generator=draw())
    recipe = om.Recipe(torch.tensor([[0, 3], [1, 4], [2, 5]]), torch.tensor([[0.0, 1.0]]).expand(3, 2))
    assert torch.equal(PasteResized()(x, recipe, Context(draw()))[0], x[3:])


def test_tau_is_uniform():
    share = UniformSide(0.1, 0.8, power=2.0, per_sample=True)(5000, 2, draw())
    tau = share[:, 1].double().sqrt()
    assert tau.min() > 0.1 - 1e-6
    assert tau.max() < 0.8 + 1e-6
    assert abs(float(tau.mean()) - 0.45) < 0.01
    assert torch.equal(share.sum(dim=1), torch.ones(5000))
    assert len(UniformSide(0.1, 0.8)(9, 2, draw()).unique(dim=0)) == 1


def test_linear_stretch_is_interpolation_of_the_box():
    x = torch.rand(3, 2, 11, 14, generator=draw())
    source = torch.tensor([[1, 2], [0, 0], [4, 4]]), torch.tensor([[6, 9], [11, 14], [5, 5]])
    target = torch.tensor([[0, 3], [2, 2], [3, 3]]), torch.tensor([[9, 14], [3, 8], [7, 9]])
    rows = torch.tensor([2, 0, 1])
    found = stretch(x[rows], rows.argsort(), source, target, "linear")
    for i in range(3):
        (a, b), (c, d) = source[0][i].tolist(), source[1][i].tolist()
        (e, f), (g, h) = target[0][i].tolist(), target[1][i].tolist()
        box = F.interpolate(x[i : i + 1, :, a:c, b:d], size=(g - e, h - f), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[i : i + 1, :, e:g, f:h], box)


def test_refusals():
    x, y = torch.zeros(2, 1, 4, 4), torch.arange(2)
    with pytest.raises(ValueError, match="low must not be above high"):
        resizemix(x, y, (0.8, 0.1))
    with pytest.raises(ValueError, match="images"):
        resizemix(x.flatten(1), y)
    with pytest.raises(ValueError, match="k = 3"):
        UniformSide(0.1, 0.8)(4, 3, draw())
