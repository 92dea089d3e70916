import itertools
import math

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.puzzle_mix import Puzzle, border_steps, energy_terms, puzzle_mix
from omnimix.samples.operation.solver import convex_labels
from omnimix.samples.operation.solver.blocks import block_grid, rearranged

FIRST, SECOND = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]]), torch.tensor([[[0.1, 0.1], [0.1, 0.7]]])
SMOOTH = [tuple(torch.zeros(1, 1, 2) for _ in range(4)), tuple(torch.zeros(1, 2, 1) for _ in range(4))]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6, size=(16, 16), seed=0):
    g = draw(seed)
    return torch.rand(n, 3, *size, generator=g), torch.rand(n, 1, *size, generator=g) ** 3


def best_mask(own, guest, steps, lam, **options):
    terms = energy_terms(own, guest, steps, torch.tensor([lam]), **options)
    z = convex_labels(*terms) / (terms[0].shape[1] - 1)
    return z[0], float(energy(z[0], own[0], guest[0], steps, lam, **options))


def energy(z, own, guest, steps, lam, beta=1.2, eta=0.2, gamma=0.5, labels=3):
    """The formula of the paper for one square image; pixel terms for masks of 0 and 1 or for all pixels equal."""
    blocks, beta = z.numel(), beta / 16 / z.shape[0]
    ways = torch.distributions.Binomial(labels - 1, torch.tensor(lam).double())
    total = (z * guest + (1 - z) * own).sum() - eta / blocks * ways.log_prob((z * (labels - 1)).double()).sum()
    for axis, phi in enumerate(steps):
        a, b = z.narrow(axis, 0, z.shape[axis] - 1), z.narrow(axis, 1, z.shape[axis] - 1)
        p11, p10, p01, p00 = (beta * gamma * p[0] for p in phi)
        total = total + beta * ((a - b) ** 2).sum()
        total = total + (a * b * p11 + a * (1 - b) * p10 + (1 - a) * b * p01 + (1 - a) * (1 - b) * p00).sum()
    return total


@pytest.mark.parametrize(
    ("lam", "beta", "mask", "lowest"),
    [
        (0.5, 1.2, [[1, 0.5], [0.5, 0]], 0.645444),
        (0.9, 1.2, [[1, 1], [1, 0]], 0.736867),
        (0.1, 1.2, [[1, 0], [0, 0]], None),
        (0.5, 24.0, [[0.5, 0.5], [0.5, 0.5]], 1.138629),
    ],
)
def test_hand_computed_masks(lam, beta, mask, lowest):
    found, value = best_mask(FIRST, SECOND, SMOOTH, lam, beta=beta)
    assert found.tolist() == mask
    assert lowest is None or value == pytest.approx(lowest, abs=1e-6)


def test_alone_the_saliency_decides_every_block():
    x, maps = images(8)
    lam = torch.linspace(0.1, 0.9, 8)
    partner = torch.arange(8).roll(1)
    mixed = puzzle_mix(x, torch.arange(8), maps, beta=0.0, eta=0.0, blocks=4, transport=False, lam=lam, partner=partner)
    blocks = maps[:, 0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean(dim=(2, 4))
    blocks = blocks / blocks.sum(dim=(1, 2), keepdim=True)
    expected = (blocks > blocks[partner]).float()
    assert torch.equal(mixed.recipe.mask[:, 0, ::4, ::4], expected)


@pytest.mark.parametrize("seed", range(4))
def test_no_mask_of_two_labels_is_better_for_the_pixels_of_the_images(seed):
    x, maps = images(2, (12, 12), seed)
    partner, grid = torch.tensor([1]), (3, 3)
    blocks = maps[:, 0].unflatten(1, (3, 4)).unflatten(3, (3, 4)).mean(dim=(2, 4))
    blocks = blocks / blocks.sum(dim=(1, 2), keepdim=True)
    steps = border_steps(x, partner, grid, 2)
    options = {"beta": 4.0, "gamma": 1.0, "labels": 2}
    _, value = best_mask(blocks[:1], blocks[1:], steps, 0.4, **options)
    every = itertools.product((0.0, 1.0), repeat=9)
    masks = (torch.tensor(z).view(3, 3) for z in every)
    assert value == pytest.approx(min(float(energy(z, *blocks, steps, 0.4, **options)) for z in masks), abs=1e-6)


def test_borders_are_compared_in_pooled_pixels():
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 1], x[0, 0, 2], x[1, 0, 2, :2] = 1.0, 3.0, 5.0
    (down, _), partner = border_steps(x, torch.tensor([1]), (2, 2), 1), torch.tensor([1])
    p11, p10, p01, p00 = (p[0, 0].tolist() for p in down)
    assert (p11, p10, p01, p00) == ([2, 2], [4, 1], [3, 3], [5, 0])
    pooled = border_steps(x, partner, (2, 2), 2)[0][0]
    assert pooled[0, 0].tolist() == [1, 1]  # mean of rows 0 and 1 against that of rows 2 and 3


@pytest.mark.parametrize("labels", [2, 3])
def test_swapped_images_swap_the_mask(labels):
    x, maps = images(2, seed=3)
    pair, options = torch.tensor([1, 0]), {"labels": labels, "blocks": 8, "beta": 0.2, "transport": False}
    mixed = puzzle_mix(x, pair, maps, lam=torch.tensor([0.3, 0.7]), partner=pair, **options)
    own, other = mixed.recipe.mask
    assert torch.equal(own, 1 - other)
    assert 0 < own.mean() < 1


@pytest.mark.parametrize("size", [(40,), (16, 16), (24, 40), (13, 10), (8, 8, 4)])
@pytest.mark.parametrize("options", [{}, {"transport": False}, {"piece": 2}, {"labels": 4}, {"blocks": 16}])
def test_shares_are_those_of_a_mask_of_blocks(size, options):
    x, maps = images(5, size)
    mixed = puzzle_mix(x, torch.arange(5), maps, per_sample=True, generator=draw(), **options)
    mask, levels = mixed.recipe.mask, 2 if options.get("labels") is None else 3
    assert mixed.x.shape == x.shape
    assert mask.shape == (5, 1, *size)
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1))
    torch.testing.assert_close(mixed.recipe.share.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(mask * levels, (mask * levels).round())
    if options.get("transport") is False:
        partner = mixed.recipe.partner[:, 1]
        torch.testing.assert_close(mixed.x, mask * x + (1 - mask) * x[partner])


def test_transport_brings_salient_blocks_under_the_mask():
    x, maps = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    x[:, 0, :2, :2] = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    maps += torch.tensor([1e-3, 2e-3]).view(2, 1, 1, 1)
    maps[:, 0, :2, :2] = 1.0  # both are salient in the same corner, which the first, a bit more so, gets
    y, pair = torch.arange(2), torch.tensor([1, 0])
    still, moved = (
        puzzle_mix(x, y, maps, blocks=4, beta=0.0, eta=0.0, lam=0.5, partner=pair, transport=t).x[0]
        for t in (False, True)
    )
    assert {*still.unique().tolist()} == {0.0, 1.0}
    assert {*moved.unique().tolist()} == {0.0, 1.0, 2.0}
    assert float(moved[0, 0, 0]) == 1.0


def test_the_mask_and_the_transport_each_keep_more_saliency():
    """Of a total of 2, random masks keep 1. The pixels of these images are their saliency."""
    maps = (torch.rand(60, 1, 4, 4, generator=draw(5)) ** 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    maps = maps / maps.flatten(1).sum(dim=1).view(-1, 1, 1, 1)
    options = {"blocks": 4, "gamma": 0.0, "eps": 0.05, "lam": 0.5, "partner": torch.arange(60).roll(1)}
    kept = [float(puzzle_mix(maps, torch.arange(60), maps, transport=t, **options).x.sum()) / 60 for t in (False, True)]
    assert 1.02 < kept[0] < kept[1] - 0.01


def test_lam_one_and_zero_show_one_image():
    x, maps = images(4)
    pair = torch.arange(4).roll(1)
    mixed = puzzle_mix(x, pair, maps, lam=torch.tensor([1.0, 0.0, 1.0, 0.0]), partner=pair)
    assert torch.equal(mixed.x, torch.stack((x[0], x[0], x[2], x[2])))
    assert mixed.recipe.lam.tolist() == [1, 0, 1, 0]


def test_maps_without_a_gradient_are_uniform():
    x, _ = images(4)
    mixed = puzzle_mix(x, torch.arange(4), torch.zeros(4, 1, 16, 16), lam=0.9, partner=torch.arange(4).roll(1))
    assert bool(mixed.x.isfinite().all())
    assert bool((mixed.recipe.lam > 0.9).all())


def test_half_precision_and_inputs_unchanged():
    x, maps = images(5)
    before = x.clone(), maps.clone()
    full = puzzle_mix(x, torch.arange(5), maps, generator=draw(2))
    assert torch.equal(x, before[0])
    assert torch.equal(maps, before[1])
    half = puzzle_mix(x.half(), torch.arange(5), maps, generator=draw(2))
    assert half.x.dtype == torch.float16
    torch.testing.assert_close(half.x.float(), full.x, atol=2e-3, rtol=0)


def test_the_scale_undoes_the_normalisation():
    x, maps = images(6)
    y, std = torch.arange(6), (0.2, 0.3, 0.5)
    options = {"beta": 20.0, "gamma": 2.0, "blocks": 8}
    plain = puzzle_mix(x, y, maps, generator=draw(1), scale=1.0, **options)
    other = puzzle_mix(x / torch.tensor(std).view(1, 3, 1, 1), y, maps, generator=draw(1), scale=std, **options)
    assert torch.equal(plain.recipe.mask, other.recipe.mask)
    assert not torch.equal(
        plain.recipe.mask, puzzle_mix(5 * x, y, maps, generator=draw(1), scale=1.0, **options).recipe.mask
    )
    # left out, it is found: the batch spans [0, 1] in each channel, whatever it was divided by
    x[0, :, 0, 0], x[1, :, 0, 0] = 0.0, 1.0
    known = puzzle_mix(x, y, maps, generator=draw(1), scale=1.0, **options)
    for shift, by in ((0.0, 1.0), (0.5, 0.25)):
        found = puzzle_mix((x - shift) / by, y, maps, generator=draw(1), **options)
        assert torch.equal(known.recipe.mask, found.recipe.mask)
    assert bool(puzzle_mix(torch.ones_like(x), y, maps, generator=draw(1)).x.isfinite().all())


def test_blocks_are_drawn_from_the_given_ones():
    x, maps = images(12)
    g, seen = draw(), set()
    for _ in range(40):
        mask = puzzle_mix(x, torch.arange(12), maps, beta=0.0, eta=0.0, transport=False, generator=g).recipe.mask
        runs = [int(n) for row in mask[:, 0] for r in row for n in torch.unique_consecutive(r, return_counts=True)[1]]
        seen.add(min(runs))
    assert seen == {1, 2, 4, 8}


def test_blocks_are_taken_from_where_is_said():
    for size, grid in [((12,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (2, 1, 3))]:
        x = torch.rand(2, 3, *size, generator=draw())
        block = torch.randint(torch.Size(grid).numel(), (2, *grid), generator=draw())
        found, sides = rearranged(x, block), [s // n for s, n in zip(size, grid, strict=True)]
        for at in itertools.product(range(2), *map(range, grid)):
            there = torch.unravel_index(block[at], grid)
            here, taken = (
                tuple(slice(int(i) * s, int(i + 1) * s) for i, s in zip(place, sides, strict=True))
                for place in (at[1:], there)
            )
            assert torch.equal(found[(at[0], slice(None), *here)], x[(at[0], slice(None), *taken)])
    assert block_grid((32, 24, 13, 6, 1), 4) == (4, 4, 13, 3, 1)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))


def test_the_clean_loss_joins_the_step():
    x, _ = images(6, (8, 8))
    y = torch.arange(6) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    grads = {}
    for clean in (0.0, 2.0):
        method = om.create("puzzle-mix", clean=clean).setup(model, om.Classification(3), generator=draw(4))
        loss = method.loss(model, (x, y))
        grads[clean] = loss.detach(), torch.autograd.grad(loss, list(model.parameters()))
    plain = om.create("erm").setup(model, om.Classification(3)).loss(model, (x, y))
    known = torch.autograd.grad(plain, list(model.parameters()))
    torch.testing.assert_close(grads[2.0][0], grads[0.0][0] + 2 * plain.detach())
    for total, mixed, alone in zip(grads[2.0][1], grads[0.0][1], known, strict=True):
        torch.testing.assert_close(total, mixed + 2 * alone)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": 1},
        {"blocks": 0},
        {"blocks": ()},
        {"beta": -1.0},
        {"near": 0},
        {"piece": 0},
        {"eps": -0.1},
        {"scale": 0},
    ],
)
def test_bad_arguments(options):
    x, maps = images(2)
    with pytest.raises(ValueError, match=next(iter(options))):
        puzzle_mix(x, torch.arange(2), maps, **options)


def test_maps_of_other_rows_are_refused():
    x, maps = images(4)
    with pytest.raises(ValueError, match="saliency"):
        puzzle_mix(x, torch.arange(4), maps[:3])
    with pytest.raises(ValueError, match="network"):
        Puzzle()(x, Recipe(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])), Context(draw()))


class Mean(torch.nn.Module):
    def forward(self, x):
        total = x.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat((total, -total), dim=1)


@pytest.mark.parametrize("transport", [False, True])
def test_adversarial_noise_is_fgsm_of_the_attacked_images(transport):
    x, maps = images(4, (8, 8))
    x[0, :, 0, 0], x[0, :, 0, 1] = 1.5, -0.5  # pixels of [0, 1] divided by 0.5, or so they seem
    y, model, task = torch.tensor([0, 1, 0, 1]), Mean(), om.Classification(2)
    partner = torch.tensor([1, 0, 3, 2])
    recipe = om.Recipe(torch.stack((torch.arange(4), partner), dim=1), torch.full((4, 2), 0.5))
    options = {
        "blocks": 4,
        "labels": 2,
        "beta": 0.0,
        "transport": transport,
        "adversarial": 1.0,
        "radius": 0.02,
        "scale": 0.5,
    }
    noisy, plain = Puzzle(maps, **options), Puzzle(maps, **{**options, "adversarial": 0.0})
    context = Context(draw(3), y, FakeSplit(model), task)
    mixed, done = noisy(x, recipe, context)
    clean, same = plain(x, recipe, Context(draw(3), y))
    torch.testing.assert_close(done.share, same.share)
    noise = mixed - clean
    assert 0 < noise.abs().max() <= 0.04 + 1e-6  # the radius in units of the scale
    # to raise the loss, images of class 0 get darker, those of class 1 brighter, where they are shown
    own = done.mask.expand_as(noise) == 1
    guest = done.mask.expand_as(noise) == 0
    sign = torch.tensor([-1.0, 1, -1, 1]).view(4, 1, 1, 1).expand_as(noise)
    for signed in ((noise * sign)[own], (noise * sign[partner])[guest]):
        assert signed.min() >= 0
        assert (signed > 0).float().mean() > 0.95  # the brightest gets no brighter
    fitting, _ = Puzzle(maps, **{**options, "scale": None})(x, recipe, Context(draw(3), y, FakeSplit(model), task))
    torch.testing.assert_close(fitting, mixed)


class FakeSplit:
    def __init__(self, model):
        self.model = model


def test_adversarial_noise_is_as_likely_as_asked():
    puzzle = Puzzle(torch.ones(1, 1, 2, 2), adversarial=0.25)
    assert puzzle.needs == ("network",)
    hits = torch.tensor([puzzle.attacks(Context(draw(seed))) for seed in range(600)]).float()
    torch.testing.assert_close(hits.mean(dim=0), torch.tensor([0.25, 0.25]), atol=0.05, rtol=0)
    assert abs(float((hits[:, 0] * hits[:, 1]).mean()) - 0.0625) < 0.03
    with pytest.raises(ValueError, match="adversarial"):
        Puzzle(adversarial=1.5)


def test_attacked_images_stay_between_black_and_white():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    method = om.PuzzleMix(adversarial=1.0, radius=0.2, blocks=4).setup(
        network, om.Classification(3), generator=torch.Generator().manual_seed(0)
    )
    batch = om.Batch(x, torch.arange(6) % 3)
    for _ in range(10):
        mixed = method.mix(batch, method.recipe(batch)).x
        assert mixed.min() >= x.min() - 1e-6
        assert mixed.max() <= x.max() + 1e-6


@pytest.mark.parametrize("method", [om.PuzzleMix, om.CoMixup])
def test_a_clean_loss_needs_the_default_saliency(method):
    with pytest.raises(ValueError, match="clean"):
        method(clean=1.0, saliency=om.SpectralResidual())
    assert method(saliency=om.SpectralResidual()).operation.needs == ()


def numbers(*size):
    """Uniform to the eye, and the same everywhere."""
    n = torch.arange(math.prod(size), dtype=torch.float64)
    return ((n * 12.9898).sin() * 43758.5453).frac().abs().float().view(size)


@pytest.mark.parametrize(
    ("blocks", "lam", "transport", "shares", "sums"),
    [
        (2, 0.5, True, [0.625, 0.375, 0.5, 0.5], [194.80867, 193.12384, 196.96173, 189.7869]),
        (4, 0.5, True, [0.53125, 0.40625, 0.53125, 0.5], [194.94252, 194.00769, 198.25937, 189.7869]),
        (4, 0.8, True, [1.0, 0.90625, 1.0, 1.0], [195.64319, 189.84818, 201.35785, 188.59163]),
        (8, 0.25, False, [0.0859375, 0.1953125, 0.03125, 0.0], [194.27811, 195.68196, 193.86327, 190.98221]),
        (8, 0.25, True, [0.0859375, 0.1953125, 0.03125, 0.0], [195.43011, 195.49942, 193.51617, 190.98221]),
        (8, 0.8, True, [0.921875, 0.890625, 1.0, 0.9921875], [194.85478, 188.63962, 201.35785, 188.35268]),
    ],
)
def test_the_images_are_those_of_the_authors_code(blocks, lam, transport, shares, sums):
    """Recorded from `mixup_graph` of snu-mllab/PuzzleMix @ e2dbf3a with three labels and a price of moving of .05."""
    x, maps = numbers(4, 3, 16, 16), numbers(4, 1, 16, 16) ** 3
    maps = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(maps, (1, 1, 1, 1)), 3, 1)
    options = {"blocks": blocks, "scale": 1.0, "transport": transport, "eps": 0.05}
    mixed = puzzle_mix(x, torch.arange(4), maps, lam=lam, partner=torch.tensor([1, 2, 3, 0]), **options)
    assert mixed.recipe.lam.tolist() == shares
    weighed = (mixed.x * numbers(4, 3, 16, 16).flip(2)).flatten(1).sum(dim=1)
    assert weighed.tolist() == pytest.approx(sums, abs=1e-3)
