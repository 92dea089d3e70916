import sys

import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.networks import create
from omnimix.samples.operation import TokenBlocks, tokenmix
from omnimix.samples.operation.tokenmix import block_masks
from omnimix.samples.saliency import Attention, MeanActivation, attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def pieces(mask):
    """How many neighbouring tokens differ."""
    return sum(int(mask.diff(dim=axis).abs().sum()) for axis in range(mask.ndim))


@pytest.mark.parametrize("grid", [(20,), (14, 14), (9, 16), (5, 6, 7)])
def test_blocks_cover_what_was_asked_for(grid):
    n = torch.Size(grid).numel()
    count = torch.tensor([0, 1, n // 4, n // 2, n // 2, n])
    masks = block_masks(count, grid, draw(1))
    assert masks.shape == (6, 1, *grid)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    covered = n - masks.flatten(1).sum(dim=1)
    assert (covered <= count).all()
    assert covered[:2].tolist() == [0, 1]
    assert (covered >= 0.7 * count)[:5].all()
    assert not torch.equal(masks[3], masks[4])
    scattered = (torch.rand(grid, generator=draw(2)) < 0.5).float()
    assert pieces(masks[3, 0]) < 0.8 * pieces(scattered)


def test_nearly_all_masks_are_full_and_every_token_is_covered():
    masks = block_masks(torch.full((400,), 112), (14, 14), draw())
    covered = 196 - masks.flatten(1).sum(dim=1)
    assert (covered == 112).float().mean() > 0.95
    often = 1 - masks.mean(dim=0)[0]
    # 1,500 masks of the reference code: .12 at the corner, .90 in the middle
    assert often[0, 0] == pytest.approx(0.12, abs=0.04)
    assert often[7, 7] == pytest.approx(0.90, abs=0.04)


def test_the_sides_of_blocks_are_in_bounds(monkeypatch):
    monkeypatch.setattr(sys.modules[block_masks.__module__], "ROUNDS", 1)
    first = 1 - block_masks(torch.full((400,), 150), (40, 40), draw(1))[:, 0]
    tall, wide, count = first.amax(dim=2).sum(dim=1), first.amax(dim=1).sum(dim=1), first.flatten(1).sum(dim=1)
    assert torch.equal(tall * wide, count)  # one block each
    large = tall * wide > 60
    ratio = (tall / wide)[large].log()
    assert 250 > large.sum() > 150  # areas are uniform from 1 to 150
    assert ratio.abs().max() < 1.4  # log .3 is -1.2
    assert ratio.mean().abs() < 0.15
    assert ratio.std() == pytest.approx(2.41 / 12**0.5, abs=0.1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_shares_are_the_content_that_is_seen(per_sample):
    x, maps = torch.rand(4, 2, 16, 24, generator=draw()), torch.rand(4, 1, 4, 6, generator=draw(1))
    mixed = tokenmix(x, torch.arange(4), maps, per_sample=per_sample, generator=draw(2))
    recipe, partner = mixed.recipe, mixed.recipe.partner[:, 1]
    tokens = recipe.mask[..., ::4, ::4]
    assert torch.equal(tokens.repeat_interleave(4, -1).repeat_interleave(4, -2), recipe.mask)
    assert len(recipe.mask) == (4 if per_sample else 1)
    assert (24 - tokens.flatten(1).sum(dim=1) <= 12 + 1).all()  # half of 24, and 24 / 14
    content = maps / maps.sum(dim=(2, 3), keepdim=True)
    own, guest = (content * tokens).sum(dim=(1, 2, 3)), (content[partner] * (1 - tokens)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(recipe.label_share, torch.stack((own, guest), dim=1))
    torch.testing.assert_close(recipe.lam, recipe.mask.flatten(1).mean(dim=1).expand(4))
    assert torch.equal(mixed.x, torch.where(recipe.mask == 1, x, x[partner]))
    assert ((own + guest) - 1).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(24,), (16, 24), (13, 17), (6, 8, 10)])
def test_uniform_content_gives_the_area_of_tokens(size):
    x = torch.rand(5, 1, *size, generator=draw())
    grid = [side // 2 for side in size]
    recipe = tokenmix(x, torch.arange(5), torch.ones(5, 1, *grid), torch.full((5,), 0.4), generator=draw(1)).recipe
    own = recipe.label_share[:, 0]
    torch.testing.assert_close(recipe.label_share.sum(dim=1), torch.ones(5))
    if all(side % 2 == 0 for side in size):
        torch.testing.assert_close(own, recipe.lam)


def test_the_content_decides_not_the_area():
    x, maps = torch.rand(2, 1, 14, 14, generator=draw()), torch.full((2, 1, 14, 14), 1e-9)
    mask = tokenmix(x, torch.arange(2), maps, partner=torch.tensor([1, 0]), generator=draw(3)).recipe.mask
    shown = mask[0, 0].nonzero()[0]
    maps[0, 0, shown[0], shown[1]] = 1.0  # all of the first image is seen, nothing of the second one
    hidden = mask[0, 0].nonzero()[1]
    maps[1, 0, hidden[0], hidden[1]] = 1.0
    shares = tokenmix(x, torch.arange(2), maps, partner=torch.tensor([1, 0]), generator=draw(3)).recipe.label_share
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), atol=1e-5, rtol=0)


def test_counts_of_the_paper_and_of_lam_one():
    x = torch.rand(50, 1, 14, 14, generator=draw())
    recipe = tokenmix(x, torch.arange(50), torch.ones(50, 1, 14, 14), per_sample=True, generator=draw()).recipe
    assert (196 * (1 - recipe.lam)).round().mode().values == 112
    alone = tokenmix(x, torch.arange(50), torch.ones(50, 1, 14, 14), 1.0, generator=draw())
    assert torch.equal(alone.x, x)
    assert torch.equal(alone.recipe.label_share, torch.tensor([[1.0, 0.0]]).expand(50, 2))


def test_the_method_takes_the_attention_of_its_network():
    model = create("vit", (2, 16, 24), 4, seed=0, width=16, depth=2)
    x, y = torch.randn(5, 2, 16, 24, generator=draw()), torch.arange(5) % 4
    method = om.create("tokenmix").setup(model, om.Classification(4), generator=draw(1))
    mixed = tokenmix(x, y, attention(model, x), generator=draw(1))
    torch.testing.assert_close(method.loss(model, (x, y)), mixed.loss(F.cross_entropy, model(mixed.x)))
    assert model.training
    own = om.create("tokenmix", saliency=Attention(model)).setup(model, om.Classification(4), generator=draw(1))
    torch.testing.assert_close(own.loss(model, (x, y)), mixed.loss(F.cross_entropy, model(mixed.x)))


def test_a_convolutional_teacher_and_a_grid():
    teacher, x = create("small-cnn", (2, 16, 24), 4, seed=0), torch.randn(3, 2, 16, 24, generator=draw())
    operation = TokenBlocks(MeanActivation(teacher), tokens=(4, 6))
    recipe = om.Recipe(torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.full((3, 2), 0.5))
    applied = operation(x, recipe, Context(draw(1), torch.arange(3)))[1]
    tokens = applied.mask[..., ::4, ::4]
    assert torch.equal(tokens.repeat_interleave(4, -1).repeat_interleave(4, -2), applied.mask)
    net = create("small-cnn", (2, 16, 24), 4)
    method = om.create("tokenmix", saliency=MeanActivation(teacher)).setup(net, om.Classification(4), generator=draw())
    assert method.loss(net, (x, torch.arange(3))).isfinite()  # the network itself needs no attention then


def test_refusals():
    x = torch.rand(2, 1, 8, 8)
    for tokens in (9, (4,) * 3):
        with pytest.raises(ValueError, match="tokens"):
            tokenmix(x, torch.arange(2), torch.ones(2, 1, 4, 4), tokens=tokens)
    for options in ({"lam": 2.0}, {"extra": -1.0}, {"tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            om.create("tokenmix", **options)
    net = create("small-cnn", (1, 8, 8), 3)
    with pytest.raises(ValueError, match="no attention"):
        om.create("tokenmix").setup(net, om.Classification(3), generator=draw()).loss(net, (x, torch.arange(2)))
