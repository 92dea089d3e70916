import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.networks import create
from omnimix.samples.operation import smmix
from omnimix.samples.operation.smmix import region
from omnimix.samples.saliency import attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [(9,), (5, 7), (3, 4, 5)])
def test_regions_against_brute_force(grid):
    maps = torch.rand(6, 1, *grid, generator=draw())
    for side in range(1, min(grid) + 1):
        sums = maps
        for axis in range(2, 2 + len(grid)):
            sums = sums.unfold(axis, side, 1)
        sums = sums.flatten(2 + len(grid)).sum(dim=-1)
        for most in (True, False):
            flat = sums.flatten(1)
            best = flat.argmax(dim=1) if most else flat.argmin(dim=1)
            expected = torch.stack(torch.unravel_index(best, sums.shape[2:]), dim=1)
            assert torch.equal(region(maps, torch.full((6,), side), most=most), expected)
    mixed = torch.tensor([1, 2, 3, 1, 2, 3])
    each = torch.cat([region(maps[i : i + 1], mixed[i : i + 1], most=True) for i in range(6)])
    assert torch.equal(region(maps, mixed, most=True), each)


def test_mixed_by_hand():
    x = torch.arange(2.0 * 8 * 12).view(2, 1, 8, 12)
    maps = torch.zeros(2, 1, 4, 6)
    maps[0, 0, :2, :] = 1.0  # of the first image, the lower left is the first region of least attention
    maps[1, 0, 1:3, 3:5] = 1.0  # of the second one the most
    mixed = smmix(x, torch.arange(2), maps, lam=0.75, partner=torch.tensor([1, 0]))
    expected = x[0].clone()
    expected[:, 4:8, 0:4] = x[1, :, 2:6, 6:10]
    assert torch.equal(mixed.x[0], expected)
    torch.testing.assert_close(mixed.recipe.label_share[0], torch.tensor([1 - 16 / 96, 16 / 96]))
    assert mixed.recipe.mask[0, 0, 4:8, 0:4].sum() == 0
    assert mixed.recipe.mask[0].sum() == 80


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [(26,), (26, 30), (8, 10, 12)])
def test_sides_and_shares(size, per_sample):
    x, grid = torch.rand(40, 1, *size, generator=draw()), [side // 2 for side in size]
    maps, found = torch.rand(40, 1, *grid, generator=draw(1)), []
    for seed in range(8):
        recipe = smmix(x, torch.arange(40), maps, per_sample=per_sample, generator=draw(seed)).recipe
        torch.testing.assert_close(recipe.lam, recipe.mask.flatten(1).mean(dim=1))
        assert torch.equal(recipe.label_share, recipe.share)
        cells = (1 - recipe.mask).flatten(1).sum(dim=1)
        found += (cells ** (1 / len(size)) / 2).tolist()
        assert (len(cells.unique()) > 1) == per_sample
    if len(size) == 2:
        assert min(found) >= 3 - 1e-4
        assert max(found) <= 10 + 1e-4


def test_a_share_of_one_shows_no_partner_and_of_zero_a_cube():
    x, maps = torch.rand(3, 1, 8, 12, generator=draw()), torch.rand(3, 1, 4, 6, generator=draw(1))
    alone = smmix(x, torch.arange(3), maps, lam=1.0)
    assert torch.equal(alone.x, x)
    assert torch.equal(alone.recipe.label_share, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    cube = smmix(x, torch.arange(3), maps, lam=0.0).recipe
    torch.testing.assert_close(cube.lam, torch.full((3,), 1 / 3))


def net(dropout=0.0, **options):
    return create("vit", (2, 16, 24), 4, seed=0, **({"width": 16, "depth": 2} | options))


def test_the_losses_of_both_regions_and_of_the_blend():
    model, x, y = net(), torch.randn(5, 2, 16, 24, generator=draw()), torch.arange(5) % 4
    mixed = smmix(x, y, attention(model, x, patches=True), generator=draw(1))
    recipe, partner = mixed.recipe, mixed.recipe.partner[:, 1]
    with om.core.split.observe(model, "norm.0") as seen:
        output = model(mixed.x)
    tokens, own = seen["norm.0"][:, 1:], recipe.mask[..., ::2, ::2].flatten(1)
    fine = 0.0
    for weights, label in ((own, y), (1 - own, y[partner])):
        z = torch.stack([tokens[i][weights[i] == 1].mean(dim=0) for i in range(5)])
        fine = fine + F.cross_entropy(model.head(z), label) / 2
    clean = model(x).detach()
    blend = recipe.share[:, :1] * clean + recipe.share[:, 1:] * clean[partner]
    consistency = F.kl_div(output.log_softmax(1), blend.softmax(1), reduction="batchmean")
    parts = mixed.loss(F.cross_entropy, output), fine, consistency
    for weights in ((1.0, 1.0), (0.0, 2.0), (0.5, 0.0)):
        method = om.create("smmix", fine=weights[0], consistency=weights[1])
        loss = method.setup(model, om.Classification(4), generator=draw(1)).loss(model, (x, y))
        torch.testing.assert_close(loss, parts[0] + weights[0] * parts[1] + weights[1] * parts[2])
    assert model.training


def test_one_extra_pass_without_gradient():
    model, x = net(), torch.randn(4, 2, 16, 24, generator=draw())
    method = om.create("smmix").setup(model, om.Classification(4), generator=draw(1))
    method.loss(model, (x, torch.arange(4)))  # finds the tokens
    passes = []
    model.head.register_forward_hook(lambda module, given, out: passes.append((len(out), out.requires_grad)))
    method.loss(model, (x, torch.arange(4))).backward()
    assert passes == [(4, False), (4, True), (4, True), (4, True)]  # judged, mixed, and the two regions' features
    assert all(p.grad is not None for p in model.parameters())


def test_timm_networks():
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "num_classes": 4, "depth": 1, "embed_dim": 24, "num_heads": 3}
    x = torch.randn(3, 3, 32, 32, generator=draw())
    for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224"):
        options = {"class_token": False, "global_pool": "avg"} if name.startswith("vit") else {}
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, **small, **options)
        method = om.create("smmix").setup(model, om.Classification(4), generator=draw())
        assert method.loss(model, (x, torch.arange(3))).isfinite()
        assert method.found == "norm"


def test_refusals():
    x, y = torch.randn(3, 2, 16, 24, generator=draw()), torch.arange(3)
    cnn = create("small-cnn", (2, 16, 24), 4)
    with pytest.raises(ValueError, match="no attention"):
        om.create("smmix").setup(cnn, om.Classification(4), generator=draw()).loss(cnn, (x, y))
    with pytest.raises(ValueError, match="label maps"):
        dense = torch.zeros(3, 16, 24, dtype=torch.long)
        om.create("smmix").setup(net(), om.Classification(4), generator=draw()).loss(net().train(), (x, dense))
    for options in ({"low": 0.9}, {"fine": -1.0}, {"consistency": "no"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            om.create("smmix", **options)
