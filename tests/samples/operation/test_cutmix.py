import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import CutBox, CutMix, cutmix
from omnimix.samples.operation.cutmix import cut_box, cut_boxes, outside

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def box_of(lam, centre, size=(32, 32)):
    low, high = cut_boxes(torch.tensor([lam]), size, torch.tensor([centre]))
    kept = outside(low, high, size).mean().item()
    assert cut_box(torch.tensor(lam).item(), size, centre) == [*map(slice, low[0].tolist(), high[0].tolist())]
    return low[0].tolist(), high[0].tolist(), kept


def test_hand_computed_boxes():
    assert box_of(0.75, (16, 16)) == ([8, 8], [24, 24], 0.75)
    assert box_of(0.75, (0, 0)) == ([0, 0], [8, 8], 0.9375)
    low, high, kept = box_of(0.3, (5, 28))
    assert (low, high) == ([0, 15], [18, 32])
    assert kept == pytest.approx(0.701172, abs=1e-6)


def test_boxes_of_whole_and_of_no_share():
    assert box_of(1.0, (5, 5)) == ([5, 5], [5, 5], 1.0)
    assert box_of(0.0, (16, 16)) == ([0, 0], [32, 32], 0.0)


def test_sides_are_those_of_the_exact_share():
    for lam, side in [(0.36, 8), (0.64, 6), (0.84, 4), (0.96, 2)]:  # 10 sqrt(1 - lam) is a whole number
        low, high, _ = box_of(lam, (5, 5), (10, 10))
        assert [h - b for b, h in zip(low, high, strict=True)] == [side, side]


def test_one_box_and_many_boxes_are_cut_alike():
    for size in SHAPES:
        for lam in torch.rand(50, generator=draw()).tolist():
            box_of(lam, [int(lam * 1e4) % side for side in size], size)


def test_odd_sides_lose_a_cell_as_in_the_reference():
    assert box_of(0.51, (5, 5), (10, 10))[:2] == ([2, 2], [8, 8])  # side 7 becomes 2 * (7 // 2)


@pytest.mark.parametrize("size", SHAPES)
def test_volume_of_the_box_in_one_to_three_dimensions(size):
    _, _, kept = box_of(0.5, [s // 2 for s in size], size)
    slack = sum(2 / s for s in size)
    assert 0.5 - 1e-6 <= kept <= 0.5 + slack


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_and_shares_follow_the_mask(size, per_sample):
    x, y = torch.randn(9, 3, *size, generator=draw()), torch.arange(9)
    mixed = cutmix(x, y, per_sample=per_sample, generator=draw(1))
    mask, partner = mixed.recipe.mask, mixed.recipe.partner[:, 1]
    assert mask.shape == (9 if per_sample else 1, 1, *size)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mixed.x, mask * x + (1 - mask) * x[partner])
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1).expand(9))
    assert torch.equal(mixed.recipe.label_share, mixed.recipe.share)
    assert mixed.recipe.lam.unique().numel() > (3 if per_sample else 0)


def test_mean_of_a_black_and_a_white_image_is_the_label_weight():
    x = torch.stack([torch.zeros(1, 13, 17), torch.ones(1, 13, 17)])
    for seed in range(20):
        mixed = cutmix(x, torch.tensor([0, 1]), per_sample=True, generator=draw(seed))
        torch.testing.assert_close(mixed.x.flatten(1).mean(dim=1), mixed.soft_target(2)[:, 1])


def test_the_centre_is_uniform():
    size, lam = (4, 6), 0.6
    centres = torch.tensor(list(itertools.product(*map(range, size))))
    expected = outside(*cut_boxes(torch.full((24,), lam), size, centres), size).mean(dim=0)
    x = torch.zeros(4000, 1, *size)
    found = cutmix(x, torch.zeros(4000), per_sample=True, lam=lam, generator=draw()).recipe.mask.mean(dim=0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_large_images_are_pasted_and_small_ones_blended_alike():
    x, y = torch.randn(4, 3, 150, 160, generator=draw()), torch.arange(4)
    for per_sample in (False, True):
        pasted = cutmix(x, y, per_sample=per_sample, generator=draw(1))
        blended = cutmix(x.clone().requires_grad_(), y, per_sample=per_sample, generator=draw(1))
        assert torch.equal(pasted.x, blended.x.detach())


def test_shares_of_one_and_zero():
    x, y = torch.randn(4, 2, 5, 5, generator=draw()), torch.arange(4)
    partner, logits = torch.tensor([1, 2, 3, 0]), torch.randn(4, 4, generator=draw(1))
    whole = cutmix(x, y, lam=1.0, partner=partner, generator=draw())
    assert torch.equal(whole.x, x)
    torch.testing.assert_close(whole.loss(F.cross_entropy, logits), F.cross_entropy(logits, y))
    assert torch.equal(cutmix(x, y, alpha=0.0, generator=draw()).x, x)
    cut = cutmix(x, y, lam=0.0, partner=partner, generator=draw()).recipe.lam
    assert (cut < 0.85).all()  # the clipped box of the whole image covers at least 4 of 25 cells


def test_per_sample_shares_that_are_given():
    lam = torch.tensor([1.0, 0.0, 0.5])
    mixed = cutmix(torch.randn(3, 1, 8, 8), torch.arange(3), lam=lam, generator=draw())
    assert mixed.recipe.mask.shape[0] == 3
    assert mixed.recipe.lam[0] == 1
    assert (mixed.recipe.lam[1:] < 1).all()


def test_gradients_reach_own_and_pasted_cells():
    x = torch.randn(2, 3, 6, 6, generator=draw(), requires_grad=True)
    mixed = cutmix(x, torch.arange(2), lam=0.5, partner=torch.tensor([1, 1]), generator=draw(1))
    mixed.x.sum().backward()
    inside = (1 - mixed.recipe.mask)[0].expand(3, 6, 6)
    assert torch.equal(x.grad[0], 1 - inside)
    assert torch.equal(x.grad[1], 1 + inside)


class Net(nn.Module):
    taps = ("low", "high")

    def __init__(self):
        super().__init__()
        self.low = nn.Conv2d(1, 3, 3, padding=1)
        self.high = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.high(self.low(x).relu()).relu().mean(dim=(2, 3)))


def test_boxes_on_hidden_maps():
    model, x, y = Net(), torch.randn(5, 1, 9, 12, generator=draw()), torch.arange(5) % 3
    method = om.Mix(operation=CutBox(), places=("high",)).setup(model, om.Classification(3), generator=draw(1))
    output, recipe = method.forward(model, om.Batch(x, y), method.recipe(om.Batch(x, y)))
    assert recipe.mask.shape == (1, 1, 5, 6)
    h = model.high(model.low(x).relu())
    h = recipe.mask * h + (1 - recipe.mask) * h[recipe.partner[:, 1]]
    torch.testing.assert_close(output, model.fc(h.relu().mean(dim=(2, 3))))


def test_partners_may_be_guests():
    x = torch.randn(6, 1, 4, 4, generator=draw())
    recipe = om.Recipe(torch.tensor([[0, 3], [1, 4], [2, 5]]), torch.full((3, 2), 0.5))
    mixed, applied = CutBox()(x, recipe, Context(draw()))
    assert torch.equal(mixed, applied.mask * x[:3] + (1 - applied.mask) * x[3:])


def test_probability_is_the_share_of_mixed_steps():
    method = CutMix(probability=0.3)
    batch = om.Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2).long())
    method.setup(Net(), om.Classification(3), generator=draw())
    mixed = sum(method.recipe(batch) is not None for _ in range(1000))
    assert stats.binomtest(mixed, 1000, 0.3).pvalue > 0.01


def test_the_method_is_the_function_on_the_same_draws():
    x, y, model = torch.randn(6, 1, 8, 8, generator=draw()), torch.arange(6) % 3, Net()
    method = om.create("cutmix", per_sample=True).setup(model, om.Classification(3), generator=draw(1))
    mixed = cutmix(x, y, per_sample=True, generator=draw(1))
    torch.testing.assert_close(method.loss(model, (x, y)), mixed.loss(F.cross_entropy, model(mixed.x)))


@pytest.mark.parametrize("side", [8, 160])
def test_memory_format_type_and_input_are_kept(side):
    x = torch.randn(4, 3, side, side, generator=draw()).to(memory_format=torch.channels_last)
    kept = x.clone()
    mixed = cutmix(x, torch.arange(4), generator=draw(1)).x
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, cutmix(x.contiguous(), torch.arange(4), generator=draw(1)).x)
    assert torch.equal(x, kept)
    for dtype in (torch.float16, torch.bfloat16):
        half = cutmix(x.to(dtype), torch.arange(4), generator=draw(1)).x
        assert half.dtype == dtype
        assert torch.equal(half, mixed.to(dtype))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), "images"),
        ({"image": torch.zeros(2, 1, 3, 3)}, "dict"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), "floating point"),
    ],
)
def test_what_has_no_space_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        cutmix(x, torch.arange(2))


def test_more_than_two_samples_are_refused():
    recipe = om.Recipe(torch.zeros(2, 3).long(), torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="k = 3"):
        CutBox()(torch.zeros(2, 1, 3, 3), recipe, Context(draw()))
