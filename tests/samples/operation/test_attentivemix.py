import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.samples.operation import attentivemix
from omnimix.samples.operation.attentivemix import top_cells
from omnimix.samples.saliency import MeanActivation


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_six_of_forty_nine_cells():
    x, y = torch.randn(5, 3, 28, 28, generator=draw()), torch.arange(5)
    maps = torch.rand(5, 1, 7, 7, generator=draw(1))
    mixed = attentivemix(x, y, maps, generator=draw(2))
    torch.testing.assert_close(mixed.recipe.lam, torch.full((5,), 43 / 49))
    expected = x.clone()
    for i, p in enumerate(mixed.recipe.partner[:, 1].tolist()):
        for cell in maps[p].flatten().topk(6).indices.tolist():
            r, c = 4 * (cell // 7), 4 * (cell % 7)
            expected[i, :, r : r + 4, c : c + 4] = x[p, :, r : r + 4, c : c + 4]
    assert torch.equal(mixed.x, expected)


def test_top_cells_differ_in_number_and_ties_go_to_the_first():
    maps = torch.tensor([[[[3.0, 1, 2, 2]]], [[[0, 0, 0, 0]]]])
    assert top_cells(maps, torch.tensor([2, 1])).view(2, 4).tolist() == [[0, 1, 0, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(("size", "grid"), [((13, 24), (4, 5)), ((30,), (7,)), ((6, 8, 10), (2, 3, 3))])
def test_cells_need_not_divide_the_image(size, grid):
    x, y = torch.randn(4, 2, *size, generator=draw()), torch.arange(4)
    lam = torch.tensor([1.0, 0.0, 0.5, 0.8])
    mixed = attentivemix(x, y, torch.rand(4, 1, *grid, generator=draw(1)), lam=lam, generator=draw())
    mask = mixed.recipe.mask
    assert torch.equal(mixed.x, mask * x + (1 - mask) * x[mixed.recipe.partner[:, 1]])
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1))
    assert mixed.recipe.lam[:2].tolist() == [1.0, 0.0]


def test_at_least_one_cell_is_pasted():
    recipe = attentivemix(torch.zeros(2, 1, 4, 4), torch.arange(2), torch.rand(2, 1, 2, 2), generator=draw()).recipe
    assert recipe.lam.tolist() == [0.75, 0.75]  # 6 / 49 of four cells would be none


def test_a_frozen_teacher_says_where():
    teacher = nn.Sequential(nn.AvgPool2d(4))  # attends to what is bright
    x, y = torch.zeros(3, 1, 16, 16), torch.arange(3)
    x[:, :, 4:8, 8:12] = 1.0
    method = om.create("attentivemix", teacher=teacher, share=1 / 16)
    assert method.operation.needs == ()
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    method.setup(model, om.Classification(3), generator=draw())
    mask = method.mix(om.Batch(x, y), method.recipe(om.Batch(x, y))).recipe.mask
    assert torch.equal(mask, 1 - x)
    by_function = attentivemix(x, y, MeanActivation(teacher), 1 / 16, generator=draw())
    assert torch.equal(by_function.recipe.mask, mask)


def test_refusals():
    with pytest.raises(ValueError, match="share"):
        attentivemix(torch.zeros(2, 1, 4, 4), torch.arange(2), torch.zeros(2, 1, 2, 2), 1.5)
    with pytest.raises(ValueError, match="convolutional"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        om.create("attentivemix").setup(model, om.Classification(2)).loss(
            model, (torch.zeros(2, 1, 4, 4), torch.arange(2))
        )
