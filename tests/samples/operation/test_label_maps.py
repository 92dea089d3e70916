"""Label maps follow the pixels: where they equal a channel of the images, they still do after mixing."""

import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.samples.operation import (
    attentivemix,
    co_mixup,
    cutmix,
    fmix,
    gridmix,
    mixpro,
    mosaic,
    puzzle_mix,
    resizemix,
    saliencymix,
    smmix,
    smoothmix,
    snapmix,
    tokenmix,
)

SIZE = (16, 24)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def saliency():
    return torch.rand(6, 1, *SIZE, generator=draw(5))


def co(x, y, per_sample, **options):
    return co_mixup(x, y, saliency(), group=4, blocks=4, **options)


def puzzle(x, y, **options):
    return puzzle_mix(x, y, saliency(), blocks=4, eps=0.1, **options)


MIXERS = {
    "cutmix": cutmix,
    "fmix": fmix,
    "gridmix": gridmix,
    "mosaic": mosaic,
    "resizemix": resizemix,
    "smoothmix": smoothmix,
    "mixpro": mixpro,
    "smmix": lambda x, y, **options: smmix(x, y, saliency(), **options),
    "saliencymix": lambda x, y, **options: saliencymix(x, y, saliency=saliency(), **options),
    "attentivemix": lambda x, y, per_sample, **options: attentivemix(x, y, saliency(), **options),
    "puzzle-mix": puzzle,
    "co-mixup": co,
    "tokenmix": lambda x, y, **options: tokenmix(x, y, saliency()[..., ::4, ::4], **options),
}


def data(classes=5):
    y = torch.randint(classes, (6, *SIZE), generator=draw())
    return torch.stack((y.float(), torch.rand(6, *SIZE, generator=draw(1))), dim=1), y


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_label_maps_equal_to_a_channel_stay_equal_to_it(name, per_sample):
    (x, y), changed = data(), False
    for seed in range(3):
        mixed = MIXERS[name](x, y, per_sample=per_sample, generator=draw(seed))
        target, levels = mixed.soft_target(5), torch.arange(5.0).view(5, 1, 1)
        torch.testing.assert_close((target * levels).sum(dim=1), mixed.x[:, 0])
        torch.testing.assert_close(target.sum(dim=1), torch.ones(6, *SIZE))
        depth = om.Mixed(mixed.x, x[:, 0], mixed.recipe).soft_target()
        torch.testing.assert_close(depth, mixed.x[:, 0])
        changed |= not torch.equal(mixed.x, x)
    assert changed


@pytest.mark.parametrize("name", MIXERS)
def test_the_loss_is_that_of_the_mixed_map(name):
    x, y = data()
    mixed, logits = MIXERS[name](x, y, per_sample=True, generator=draw(2)), torch.randn(6, 5, *SIZE, generator=draw(3))
    expected = F.cross_entropy(logits, mixed.soft_target(5))
    torch.testing.assert_close(mixed.loss(F.cross_entropy, logits), expected)
    torch.testing.assert_close(mixed.loss(torch.nn.CrossEntropyLoss(reduction="sum"), logits), expected * y.numel())
    task = om.Classification(5)
    found = om.Mix().objective.mean(logits, y, mixed.recipe, task)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["cutmix", "resizemix", "mosaic"])
def test_cells_that_are_ignored_stay_ignored(name):
    x, y = data()
    y[y == 4] = 255
    mixed = MIXERS[name](x, y, per_sample=True, generator=draw(2))
    seen = mixed.x[:, 0].round().long()
    seen[seen == 4] = 255
    logits = torch.randn(6, 4, *SIZE, generator=draw(3))
    criterion = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3, 4]), ignore_index=255)
    torch.testing.assert_close(mixed.loss(criterion, logits), criterion(logits, seen))


def test_maps_of_other_sizes():
    x, y = data()
    coarse = y[:, ::2, ::2]
    mixed = cutmix(x, coarse, lam=0.5, generator=draw())
    inside = F.interpolate(mixed.recipe.mask, coarse.shape[1:])[0, 0] == 1
    other = coarse[mixed.recipe.partner[:, 1]]
    assert torch.equal(mixed.soft_target(5).argmax(dim=1), torch.where(inside, coarse, other))
    with pytest.raises(ValueError, match=r"must have the size \(16, 24\)"):
        resizemix(x, coarse).soft_target(5)


def test_signals_and_volumes():
    for size in ((12,), (4, 6, 8)):
        y = torch.randint(3, (4, *size), generator=draw())
        mixed = resizemix(y.unsqueeze(1).float(), y, generator=draw(1))
        assert torch.equal(mixed.soft_target(3).argmax(dim=1).float(), mixed.x[:, 0])


def test_regmixup_keeps_clean_maps():
    x, y = data()
    mixed = om.regmixup(x, y, operation=om.samples.operation.PasteResized(), generator=draw())
    assert torch.equal(mixed.soft_target(5).argmax(dim=1).float(), mixed.x[:, 0])


@pytest.mark.parametrize("per_sample", [False, True])
def test_boxes_that_are_resized_take_their_label_maps_along(per_sample):
    x, y = data()
    for seed in range(3):
        mixed = snapmix(x, x, saliency(), per_sample=per_sample, generator=draw(seed))
        torch.testing.assert_close(mixed.soft_target(), mixed.x)
        ids = snapmix(x, y, saliency(), per_sample=per_sample, generator=draw(seed)).soft_target(5)
        outside = (mixed.recipe.mask == 1).expand(6, -1, -1, -1)[:, 0]
        assert torch.equal(ids.argmax(dim=1)[outside], y[outside])
        torch.testing.assert_close(ids.amax(dim=1), torch.ones(6, *SIZE))  # one class in every cell
        assert not torch.equal(ids.argmax(dim=1), y)


def test_joint_mixing_of_a_last_smaller_group():
    x, y = data()
    halves = 0
    for seed in range(4):
        target = co(x, y, per_sample=False, generator=draw(seed)).soft_target(5)
        halves += int((target == 0.5).any())
        assert set(target.unique().tolist()) <= {0, 0.5, 1}
    assert halves


def test_masks_of_more_samples_do_not_tell_who_shows():
    x, y = data()
    recipe = om.Recipe(torch.zeros(6, 3).long(), torch.full((6, 3), 1 / 3), mask=torch.ones(6, 1, *SIZE))
    with pytest.raises(ValueError, match="k = 3"):
        om.Mixed(x, y, recipe).soft_target(5)
