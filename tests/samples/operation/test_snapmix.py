import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import SemanticBox, snapmix
from omnimix.samples.saliency import class_activation

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def fixed(monkeypatch, here, there):
    """Boxes ((first, ...), (behind, ...)) in place of the draws."""
    boxes = iter([tuple(torch.tensor([edge]) for edge in box) for box in (here, there)])
    monkeypatch.setattr(SemanticBox, "_box", lambda *_: next(boxes))


def test_boxes_and_weights_by_hand(monkeypatch):
    x, y, partner = torch.rand(3, 2, 12, 10, generator=draw()), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    maps = torch.rand(3, 1, 12, 10, generator=draw(1))
    fixed(monkeypatch, ((2, 1), (7, 9)), ((0, 3), (10, 6)))
    mixed = snapmix(x, y, maps, partner=partner, generator=draw())
    expected, p = x.clone(), maps - maps.amin(dim=(2, 3), keepdim=True)
    p = p / p.sum(dim=(2, 3), keepdim=True)
    cut = x[partner][:, :, 0:10, 3:6]
    expected[:, :, 2:7, 1:9] = F.interpolate(cut, size=(5, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(mixed.x, expected)
    own, guest = 1 - p[:, 0, 2:7, 1:9].sum(dim=(1, 2)), p[partner][:, 0, 0:10, 3:6].sum(dim=(1, 2))
    torch.testing.assert_close(mixed.recipe.label_share, torch.stack((own, guest), dim=1))
    torch.testing.assert_close(mixed.recipe.lam, torch.full((3,), 1 - 40 / 120))
    logits = torch.randn(3, 3, generator=draw(2))
    loss = (own * F.cross_entropy(logits, y, reduction="none")).mean()
    loss = loss + (guest * F.cross_entropy(logits, y[partner], reduction="none")).mean()
    torch.testing.assert_close(mixed.loss(F.cross_entropy, logits), loss)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_uniform_maps_give_areas(size, per_sample):
    x, maps = torch.rand(5, 2, *size, generator=draw()), torch.ones(5, 1, *size)
    for seed in range(5):
        recipe = snapmix(x, torch.arange(5), maps, per_sample=per_sample, generator=draw(seed)).recipe
        torch.testing.assert_close(recipe.label_share[:, 0], recipe.lam)
        torch.testing.assert_close(recipe.lam, recipe.mask.flatten(1).mean(dim=1).expand(5))
        assert recipe.mask.shape[0] == (5 if per_sample else 1)
        assert (recipe.label_share.sum(dim=1) - 1).abs().max() > 1e-3  # two independent boxes


def test_two_samples_of_one_class(monkeypatch):
    x, y = torch.rand(2, 1, 8, 8, generator=draw()), torch.tensor([1, 1])
    shares = []
    for reference in (False, True):
        fixed(monkeypatch, ((0, 0), (4, 4)), ((2, 2), (6, 8)))
        mixed = snapmix(x, y, torch.ones(2, 1, 8, 8), reference=reference, partner=torch.tensor([1, 0]))
        shares.append(mixed.recipe.label_share[0].tolist())
    assert shares[0] == pytest.approx([0.75, 0.375])
    assert shares[1] == pytest.approx([1.125, 1.125])


@pytest.mark.parametrize("empty", ["here", "there"])
def test_an_empty_box_mixes_nothing(monkeypatch, empty):
    x, box, none = torch.rand(3, 1, 8, 8, generator=draw()), ((1, 1), (5, 6)), ((3, 3), (3, 3))
    fixed(monkeypatch, *((none, box) if empty == "here" else (box, none)))
    mixed = snapmix(x, torch.arange(3), torch.rand(3, 1, 8, 8), reference=True, generator=draw())
    assert torch.equal(mixed.x, x)
    assert torch.equal(mixed.recipe.label_share, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert torch.equal(mixed.recipe.share, torch.tensor([[1.0, 0.0]]).expand(3, 2))


def test_the_method_reads_its_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        model.append(nn.Linear(5, 4))
    x, y = torch.randn(6, 3, 15, 11, generator=draw()), torch.arange(6) % 4
    method = om.create("snapmix").setup(model, om.Classification(4), generator=draw(1))
    batch = om.Batch(x, y)
    mixed = method.mix(batch, method.recipe(batch))
    assert model[1].num_batches_tracked == 0
    again = snapmix(x, y, class_activation(model, x, y), generator=draw(1))
    assert torch.equal(mixed.x, again.x)
    torch.testing.assert_close(mixed.recipe.label_share, again.recipe.label_share)
    loss = method.setup(model, om.Classification(4), generator=draw(1)).loss(model, batch)
    torch.testing.assert_close(loss, again.loss(F.cross_entropy, model(again.x)))


def test_multi_labels_and_guests():
    x, y = torch.rand(4, 1, 8, 8, generator=draw()), torch.eye(3)[torch.tensor([0, 1, 1, 1])]
    recipe = om.Recipe(torch.tensor([[0, 2], [1, 3]]), torch.full((2, 2), 0.5))
    operation = SemanticBox(torch.ones(4, 1, 8, 8), om.Constant(0.5), reference=True)
    applied = operation(x, recipe, Context(draw(3), y))[1]
    assert applied.label_share[0, 0] != applied.label_share[0, 1]
    assert applied.label_share[1, 0] == applied.label_share[1, 1]
