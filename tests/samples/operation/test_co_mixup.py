import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.co_mixup import GroupDirichlet, Groups, JointBlocks, co_mixup


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=10, size=(16, 16), seed=0):
    g = draw(seed)
    return torch.rand(n, 3, *size, generator=g), torch.rand(n, 1, *size, generator=g) ** 3


@pytest.mark.parametrize("size", [(40,), (16, 16), (24, 10), (8, 8, 4)])
@pytest.mark.parametrize(("rows", "group"), [(12, 4), (11, 4), (5, 4), (3, 20)])
def test_outputs_are_made_of_the_blocks_of_their_group(size, rows, group):
    """Images that hold their own number tell who shows where."""
    _, maps = images(rows, size)
    x = torch.nn.functional.one_hot(torch.arange(rows), rows).float().view(rows, rows, *[1] * len(size))
    x = x.expand(rows, rows, *size).contiguous()
    mixed = co_mixup(x, torch.arange(rows), maps, group=group, generator=draw())
    recipe, levels = mixed.recipe, mixed.x.unique().tolist()
    assert mixed.x.shape == x.shape
    assert set(levels) <= {0.0, 0.5, 1.0}
    shares = torch.zeros(rows, rows).scatter_add_(1, recipe.partner, recipe.share)
    torch.testing.assert_close(mixed.x.flatten(2).mean(dim=2), shares)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(rows))
    same = torch.arange(rows).view(-1, 1) // group == torch.arange(rows) // group
    assert not shares[~same].any()
    own = mixed.x[torch.arange(rows), torch.arange(rows)]
    assert torch.equal(recipe.mask[:, 0], own)
    assert torch.equal(recipe.partner[:, 0], torch.arange(rows))


def test_targets_follow_the_shares():
    x, maps = images(8)
    y = torch.arange(8)
    mixed = co_mixup(x, y, maps, group=8, generator=draw())
    target = mixed.soft_target(8)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(8))
    torch.testing.assert_close(target, torch.zeros(8, 8).scatter_add_(1, mixed.recipe.partner, mixed.recipe.share))
    assert int((target > 0).sum()) > 8


def test_without_other_terms_all_outputs_are_the_most_salient_blocks():
    x, maps = images(6)
    options = {"beta": 0.0, "gamma": 0.0, "eta": 0.0, "sweeps": 1}
    mixed = co_mixup(x, torch.arange(6), maps, group=6, blocks=4, generator=draw(), **options)
    blocks = maps[:, 0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean(dim=(2, 4))
    best = (blocks / blocks.sum(dim=(1, 2), keepdim=True)).argmax(dim=0)
    best = best.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    expected = x.gather(0, best.expand(1, 3, 16, 16))
    torch.testing.assert_close(mixed.x, expected.expand(6, 3, 16, 16))


def test_great_smoothness_and_diversity_reorder_the_batch():
    x, maps = images(6)
    options = {"beta": 10.0, "gamma": 1.0, "eta": 0.0, "tau": 0.0}
    mixed = co_mixup(x, torch.arange(6), maps, group=6, generator=draw(0), **options)
    order = mixed.soft_target(6).argmax(dim=1)
    assert sorted(order.tolist()) == list(range(6))
    assert torch.equal(mixed.x, x[order])


def test_groups_do_not_see_each_other():
    x, maps = images(8)
    before = co_mixup(x, torch.arange(8), maps, group=4, generator=draw()).x
    x2, maps2 = torch.cat((x[:4], x[4:] + 1)), torch.cat((maps[:4], maps[4:].flip(2)))
    after = co_mixup(x2, torch.arange(8), maps2, group=4, generator=draw()).x
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_wishes_are_equal_for_all_rows_of_a_group():
    share = GroupDirichlet(2.0)(7, 3, draw())
    partner = Groups(3)(om.Batch(torch.zeros(7, 1), torch.zeros(7)), draw())
    assert partner.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [3, 4, 5], [4, 5, 3], [5, 3, 4], [6, 6, 6]]
    torch.testing.assert_close(share.sum(dim=1), torch.ones(7))
    wish = torch.zeros(7, 7).scatter_add_(1, partner, share)
    assert torch.equal(wish[0], wish[1])
    assert torch.equal(wish[3], wish[5])
    assert float(wish[6, 6]) == 1
    many = GroupDirichlet(2.0)(3000, 3, draw())[::3]
    assert many.mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert many.var(dim=0).tolist() == pytest.approx([2 / 9 / 7] * 3, rel=0.15)


def test_wished_inputs_show_more():
    x, maps = images(40)
    shown = torch.zeros(0)
    for seed in range(3):
        recipe = Recipe(Groups(8)(om.Batch(x, torch.zeros(40)), draw()), torch.zeros(40, 8) + 1e-3)
        wished = recipe.partner % 8 < 2
        recipe = recipe.with_share(recipe.share + wished * 0.4)
        _, applied = JointBlocks(maps, eta=1.0, tau=10.0)(x, recipe, Context(draw(seed)))
        shown = torch.cat((shown, (applied.share * wished).sum(dim=1)))
    assert float(shown.mean()) > 0.5  # 2 of 8 inputs


def test_share_one_leaves_the_batch_alone():
    x, maps = images(9)
    own = torch.zeros(9, 4)
    own[:, 0] = 1.0
    recipe = Recipe(Groups(4)(om.Batch(x, torch.zeros(9)), draw()), own)
    mixed, applied = JointBlocks(maps)(x, recipe, Context(draw()))
    assert torch.equal(mixed, x)
    assert torch.equal(applied.share[:, 0], torch.ones(9))


def test_half_precision_and_inputs_unchanged():
    x, maps = images(6)
    before = x.clone(), maps.clone()
    full = co_mixup(x, torch.arange(6), maps, group=3, generator=draw(2))
    half = co_mixup(x.half(), torch.arange(6), maps, group=3, generator=draw(2))
    assert torch.equal(x, before[0])
    assert torch.equal(maps, before[1])
    assert half.x.dtype == torch.float16
    torch.testing.assert_close(half.x.float(), full.x, atol=2e-3, rtol=0)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))


def test_the_clean_loss_joins_the_step():
    x, y = images(6, (8, 8))[0], torch.arange(6) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    losses = {}
    for clean in (1.0, 3.0):
        method = om.create("co-mixup", clean=clean, group=6)
        losses[clean] = method.setup(model, om.Classification(3), generator=draw(4)).loss(model, (x, y))
    plain = om.create("erm").setup(model, om.Classification(3)).loss(model, (x, y))
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in (losses[1.0], losses[3.0], plain)]
    torch.testing.assert_close(losses[3.0] - losses[1.0], 2 * plain)
    for one, three, alone in zip(*grads, strict=True):
        torch.testing.assert_close(three - one, 2 * alone, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{"group": 1}, {"alpha": 0.0}, {"blocks": 0}, {"omega": 2.0}, {"sweeps": 0}])
def test_bad_arguments(options):
    x, maps = images(4)
    with pytest.raises(ValueError, match=next(iter(options)).replace("group", "size")):
        co_mixup(x, torch.arange(4), maps, **options)


def test_other_partners_are_refused():
    x, maps = images(4)
    recipe = Recipe(torch.tensor([[0, 3], [1, 0], [2, 3], [3, 1]]), torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="Groups"):
        JointBlocks(maps)(x, recipe, Context(draw()))
