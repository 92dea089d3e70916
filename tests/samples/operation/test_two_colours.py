"""Inputs all 0 or all 1: the mean of what is mixed is the label share of the class of those of 1.

Every registered method is tried, but for those that `ELSEWHERE` names with the reason: a new mixer cannot escape.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core import registry
from omnimix.core.combine import Choose
from omnimix.core.method import Mix
from omnimix.networks import create

ELSEWHERE = {
    "erm": "mixes nothing",
    "resampling": "mixes nothing",
    "augmix": "mixes a sample with versions of itself",
    "mixstyle": "mixes statistics, the labels stay",
    "noisymix": "adds noise; without it interpolates, see its tests",
    "regmix-regression": "mixup with partners that it trains a network to choose",
    "midpoint-mixup": "of any weights; its shares are halves, see its tests",
    "stylemix": "labels follow content and style",
    "stylecutmix": "labels follow content and style",
    "snapmix": "labels follow class activation",
    "tokenmix": "labels follow the content that is seen",
    "automix": "labels follow the share drawn; masks and shares are compared in test_learned.py",
    "samix": "as automix",
    "adautomix": "as automix",
    "recursivemix": "mixes with the step before: see below",
}
SIZES = [(16, 16), (13, 24), (24, 9), (24,), (6, 9, 5)]
ROWS = 9


def names():
    ours = [name for name in registry.methods() if registry.info(name).package == "omnimix"]
    return [name for name in ours if registry.info(name).level == "samples"]


class Net(nn.Sequential):
    def __init__(self, size):
        axes = len(size)
        convolution, pool = getattr(nn, f"Conv{axes}d"), getattr(nn, f"AdaptiveAvgPool{axes}d")
        super().__init__(convolution(2, 6, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(6, 2))


def made(name, size, per_sample):
    """(the method, set up, and the network)."""
    card, options = registry.info(name), {}
    if "per_sample" in card.parameters:
        options["per_sample"] = per_sample
    if name == "mosaic":
        options["axes"] = len(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"width": 8, "depth": 1, "heads": 2}
        model = create("vit", (2, *size), 2, **small) if card.network == "attention" else Net(size)
    x, y = colours(size)
    task = om.Classification(2) if "classification" in card.tasks else om.Regression(1)
    target = y if "classification" in card.tasks else y.float()
    table = om.Table(label=target, domain=torch.arange(ROWS) % 2, feature=x.flatten(1))
    method = om.create(name, **options)
    return method.setup(
        model, task, table, validation=table, steps=100, generator=torch.Generator().manual_seed(1)
    ), target


def colours(size):
    y = torch.arange(ROWS) // 3 % 2
    return y.float().view(-1, 1, *[1] * len(size)).expand(ROWS, 2, *size).contiguous(), y


def mixers(method):
    """The Mix methods that a method is made of."""
    if isinstance(method, Choose):
        return [found for part in method.methods for found in mixers(part)]
    found = method if isinstance(method, Mix) else method.mixer
    assert isinstance(found, Mix), f"{type(method).__name__} does not tell how it mixes: name it in ELSEWHERE"
    return [found]


def cases():
    for name in names():
        if name in ELSEWHERE:
            continue
        card = registry.info(name)
        sizes = [size for size in SIZES if card.network != "attention" or len(size) == 2]
        for size in sizes if card.inputs == ("image",) else sizes[:1]:
            for per_sample in [False, True] if "per_sample" in card.parameters else [False]:
                yield pytest.param(name, size, per_sample, id=f"{name}-{'x'.join(map(str, size))}-{per_sample}")


@pytest.mark.parametrize(("name", "size", "per_sample"), list(cases()))
def test_the_mean_is_the_label_share(name, size, per_sample):
    method, y = made(name, size, per_sample)
    x, _ = colours(size)
    both = 0
    for _ in range(8):
        anchors, guests = method.rows(torch.arange(ROWS))
        rows = anchors if guests is None else torch.cat((anchors, guests.T.flatten()))
        batch = om.Batch(x[rows], y[rows], torch.arange(ROWS)[rows] % 2, rows, len(anchors))
        for mixer in mixers(method):
            if not hasattr(mixer, "generator"):  # a part of a method that sets it up itself
                mixer.setup(method.given.model, method.given.task, generator=method.generator)
            recipe = mixer.recipe(batch)
            if recipe is None:
                continue
            mixed = mixer.mix(batch, replace(recipe, place="input"))
            assert mixed.x.shape[1:] == x.shape[1:]
            target = mixed.soft_target(2)
            share = target[:, 1] if target.ndim == 2 and target.shape[1] == 2 else target.view(-1)
            torch.testing.assert_close(mixed.x.flatten(1).mean(dim=1), share)
            both += int(((share > 0.02) & (share < 0.98)).sum())
    alone = name in ("lisa", "selective-mixup", "c-mixup")  # partners mostly of the same class
    assert alone or both > 3  # both colours were there to be told apart


def test_everything_that_is_tried_elsewhere_exists():
    assert set(ELSEWHERE) <= set(names())
    follows = [name for name in ELSEWHERE if getattr(om.create(name), "operation", None) is not None]
    follow = [name for name in follows if om.create(name).operation.labels_follow]
    assert sorted(follow) == ["midpoint-mixup", "noisymix", "regmix-regression"]


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_pasted_into_the_next_one(size):
    method, y = made("recursivemix", size, False)
    x, seen = colours(size)[0], 0
    for turn in range(6):
        target, order = method.task.soft_target(y), torch.randperm(ROWS, generator=torch.Generator().manual_seed(turn))
        method._old = {"x": x[order], "target": target[order], "output": target}
        mixed, target, _, _ = method._paste(x, target)
        torch.testing.assert_close(mixed.flatten(1).mean(dim=1), target[:, 1])
        seen += int((target > 0.02).all(dim=1).sum())
    assert seen > 5


def test_it_finds_inverted_labels():
    """The test fails where it should: labels the wrong way round, as one tool box has them."""

    class Inverted(type(om.SmoothMix().operation)):
        def __call__(self, x, recipe, context):
            mixed, applied = super().__call__(x, recipe, context)
            return mixed, applied.with_share(applied.share.flip(1), applied.mask)

    method = om.Mix(operation=Inverted()).setup(Net((16, 16)), om.Classification(2))
    x, y = colours((16, 16))
    mixed = method.mix(om.Batch(x, y), method.recipe(om.Batch(x, y)))
    assert (mixed.x.flatten(1).mean(dim=1) - mixed.soft_target(2)[:, 1]).abs().max() > 0.01


def test_parameters_are_what_the_test_takes_them_for():
    taken = [name for name in names() if "per_sample" in inspect.signature(registry.info(name).factory).parameters]
    assert len(taken) > 10
