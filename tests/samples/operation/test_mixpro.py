import math

import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.networks import create
from omnimix.samples.label import attention_share
from omnimix.samples.operation import MaskCells, ProgressiveAttention, mixpro
from omnimix.samples.operation.mixpro import agreement
from omnimix.samples.saliency import watch_attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "cell"), [((12,), 3), ((12, 16), 4), ((13, 17), 4), ((4, 4, 6), 2)])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_masks_are_random_cells(size, cell, lam):
    x = torch.rand(6, 2, *size, generator=draw())
    mixed = mixpro(x, torch.arange(6), cell=cell, lam=lam, generator=draw(1))
    mask, grid = mixed.recipe.mask, [math.ceil(side / cell) for side in size]
    first = mask[(..., *(slice(None, None, cell) for _ in size))]
    assert list(first.shape[2:]) == grid
    assert (first.flatten(1).sum(dim=1) == math.ceil(round(lam * math.prod(grid), 6))).all()
    again = first
    for axis in range(2, 2 + len(size)):
        again = again.repeat_interleave(cell, dim=axis)
    assert torch.equal(again[(..., *(slice(side) for side in size))], mask)
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1))
    other = x[mixed.recipe.partner[:, 1]]
    assert torch.equal(mixed.x, torch.where(mask == 1, x, other))
    if 0 < lam < 1:
        assert len(mask.flatten(1).unique(dim=0)) > 1  # other cells for every sample


def test_cells_by_default_and_shares_of_each():
    x = torch.rand(300, 1, 16, 24, generator=draw())
    assert MaskCells().side((16, 24)) == 4
    mixed = mixpro(x, torch.arange(300), per_sample=True, generator=draw(1))
    assert len(mixed.recipe.lam.unique()) > 15
    assert (mixed.recipe.mask.mean(dim=0) - mixed.recipe.lam.mean()).abs().max() < 0.1  # every cell equally often


def test_agreement_by_hand():
    prediction, target = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]])
    torch.testing.assert_close(agreement(prediction, target), torch.tensor([0.6 / math.sqrt(0.52), 0.0]))
    torch.testing.assert_close(agreement(target, target), torch.ones(2))


@pytest.mark.parametrize("task", [om.Classification(3), om.MultiLabel(3)])
def test_labels_trust_attention_as_far_as_predictions_hold(task):
    model = create("vit", (2, 12, 16), 3, seed=0, width=16, depth=2, patch=2)
    x = torch.randn(5, 2, 12, 16, generator=draw())
    y = torch.arange(5) % 3 if task.name == "classification" else F.one_hot(torch.arange(5) % 3, 3).float()
    method = om.create("mixpro").setup(model, task, generator=draw(1))
    batch = om.Batch(x, y)
    output, applied = method.forward(model, batch, method.recipe(batch))
    mixed = mixpro(x, y, cell=4, generator=draw(1))  # of 3, a quarter of 12, the nearest multiple of 2 at or above
    assert torch.equal(applied.share, mixed.recipe.share)
    with watch_attention(model) as seen:
        torch.testing.assert_close(model(mixed.x), output)
    own = attention_share(seen.maps(5, (12, 16)), mixed.recipe.mask)
    trust = F.cosine_similarity(task.predict(output), mixed.soft_target(3), dim=1)
    expected = trust * own + (1 - trust) * mixed.recipe.lam
    torch.testing.assert_close(applied.label_share, torch.stack((expected, 1 - expected), dim=1))
    assert not applied.label_share.requires_grad


def test_the_reference_lets_the_gradient_through():
    model, x = create("vit", (2, 8, 8), 3, seed=0, width=16, depth=1), torch.randn(4, 2, 8, 8, generator=draw())
    found = []
    for reference in (False, True):
        method = om.create("mixpro", reference=reference).setup(model, om.Classification(3), generator=draw(1))
        loss = method.loss(model, (x, torch.arange(4) % 3))
        found.append((loss.detach(), *torch.autograd.grad(loss, model.head.bias)))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).abs().max() > 1e-6


def test_cells_are_whole_patches():
    x, y = torch.randn(4, 1, 16, 16, generator=draw()), torch.arange(4) % 3
    for patch, cell, found in ((2, None, 4), (4, None, 4), (8, None, 8), (4, 8, 8), (1, 5, 5)):
        model = create("vit", (1, 16, 16), 3, seed=0, width=8, depth=1, heads=2, patch=patch)
        method = om.create("mixpro", cell=cell).setup(model, om.Classification(3), generator=draw())
        method.loss(model, (x, y))
        assert method.operation.cell == found
    other = create("vit", (1, 16, 16), 3, seed=0, width=8, depth=1, heads=2, patch=2)
    with pytest.raises(ValueError, match="multiple of the side of the network's patches, 2, got 5"):
        method.setup(other, om.Classification(3)).loss(other, (x, y))


def test_refusals():
    with pytest.raises(ValueError, match="cell"):
        om.create("mixpro", cell=0)
    net = create("small-cnn", (1, 8, 8), 3)
    method = om.create("mixpro").setup(net, om.Classification(3), generator=draw())
    with pytest.raises(ValueError, match="no attention"):
        method.loss(net, (torch.rand(2, 1, 8, 8), torch.arange(2)))
    assert ProgressiveAttention().weight == 1.0
