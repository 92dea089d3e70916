import pytest
import torch

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import GridCells, GridHoles, gridmix
from omnimix.samples.operation.gridmix import grid_masks

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_computed_holes():
    low, crop, cell = torch.tensor([[1, 2]]), torch.tensor([[4, 5]]), torch.tensor([[3, 3]])
    mask = grid_masks(torch.tensor([0.5]), low, crop, cell, (6, 8))[0, 0]  # holes of int(3 sqrt(.5)) = 2 cells
    rows, columns = [1, 2, 4], [2, 3, 5, 6]  # cut at the end of the crop
    expected = torch.ones(6, 8)
    for row in rows:
        expected[row, columns] = 0
    assert torch.equal(mask, expected)


def test_holes_are_at_least_one_cell_and_leave_one():
    low, crop, cell = torch.tensor([[0, 0]]), torch.tensor([[8, 8]]), torch.tensor([[4, 4]])
    for lam, side in [(1.0, 0), (0.999, 1), (0.25, 3), (0.0, 3)]:
        mask = grid_masks(torch.tensor([lam]), low, crop, cell, (8, 8))
        assert int((1 - mask).sum()) == 4 * side**2


@pytest.mark.parametrize("operation", [GridHoles, GridCells])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_and_shares_follow_the_mask(operation, size, per_sample):
    x = torch.randn(7, 3, *size, generator=draw())
    partner = torch.stack((torch.arange(7), torch.arange(7).roll(1)), dim=1)
    recipe = om.Recipe(partner, torch.tensor([[0.4, 0.6]]).expand(7, 2))
    mixed, applied = operation(per_sample=per_sample)(x, recipe, Context(draw(1)))
    mask = applied.mask
    assert mask.shape == (7 if per_sample else 1, 1, *size)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mixed, mask * x + (1 - mask) * x[partner[:, 1]])
    torch.testing.assert_close(applied.lam, mask.flatten(1).mean(dim=1).expand(7))


def test_crops_stay_in_the_image_and_have_their_area():
    operation = GridHoles()
    for size in SHAPES:
        low, crop, cell = operation._draw(500, size, draw())
        side = torch.tensor(size)
        assert (low >= 0).all()
        assert (low + crop <= side).all()
        area = crop.prod(dim=1) / side.prod()
        assert area.max() <= 1
        number = (crop[:, -1] + cell[:, -1] - 1) // cell[:, -1]
        assert number.min() >= 1
        assert number.max() <= 6
    assert torch.equal(GridHoles(area=(1.0, 1.0), aspect=(1.0, 1.0))._draw(9, (8, 8), draw())[1], torch.full((9, 2), 8))


def test_cells_keep_the_share_on_average():
    x = torch.zeros(2000, 1, 8, 8)
    recipe = om.Recipe(torch.zeros(2000, 2).long(), torch.tensor([[0.3, 0.7]]).expand(2000, 2))
    applied = GridCells(4, per_sample=True)(x, recipe, Context(draw()))[1]
    assert abs(float(applied.lam.mean()) - 0.3) < 0.01
    quarters = applied.mask.view(2000, 4, 2, 4, 2)
    assert torch.equal(quarters.amin(dim=(2, 4)), quarters.amax(dim=(2, 4)))


def test_whole_share_and_tiny_images():
    x, y = torch.randn(3, 1, 2, 3, generator=draw()), torch.arange(3)
    assert torch.equal(gridmix(x, y, lam=1.0, generator=draw()).x, x)
    assert torch.equal(gridmix(x, y, alpha=0.0, generator=draw()).x, x)
    for seed in range(20):
        assert gridmix(x, y, lam=0.2, generator=draw(seed)).x.isfinite().all()


def test_refusals():
    with pytest.raises(ValueError, match=r"holes must be \(fewest, most\), got \(6, 2\)"):
        GridHoles((6, 2))
    with pytest.raises(ValueError, match="area must be"):
        GridHoles(area=(0.5, 1.5))
    with pytest.raises(ValueError, match="aspect"):
        GridHoles(aspect=(0.0, 1.5))
