import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.train.robustness import blur, contrast, fgsm, noise, occluded


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_fgsm_of_a_linear_network_by_hand():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([0, 1])
    # the loss of class 0 falls along (1, -2), that of class 1 rises
    moved = fgsm(model, x, y, om.Classification(2), 0.1)
    torch.testing.assert_close(moved, torch.tensor([[0.4, 0.6], [0.2, 0.8]]))
    assert torch.equal(fgsm(model, x, y, om.Classification(2), 0.2, 0.35, 0.8)[0], torch.tensor([0.35, 0.7]))
    by_channel = fgsm(model, x, y, om.Classification(2), torch.tensor([0.1, 0.0]))
    assert torch.equal(by_channel[:, 1], x[:, 1])


def test_fgsm_raises_the_loss_and_leaves_the_network_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).train()
    x, y = torch.rand(7, 3, 8, 8), torch.arange(7) % 5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = fgsm(model, x, y, om.Classification(5), 0.01, 0.0, 1.0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y)
    assert (moved - x).abs().max() <= 0.01 + 1e-6
    rows = fgsm(model, x[:2], y[:2], om.Classification(5), 0.01, 0.0, 1.0)
    torch.testing.assert_close(rows, moved[:2])


def test_noise_has_the_asked_size():
    x = torch.full((4, 3, 32, 32), 0.5)
    found = noise(x, 0.05, generator=draw())
    assert abs(float((found - x).std()) - 0.05) < 1e-3
    assert torch.equal(noise(x, 0.0), x)
    assert float(noise(x, 9.0, generator=draw()).max()) == 1.0


def test_blur_keeps_flat_images_and_spreads_points():
    flat = torch.full((1, 3, 8, 12), 0.3)
    torch.testing.assert_close(blur(flat), flat)
    point = torch.zeros(1, 1, 15, 15)
    point[..., 7, 7] = 1.0
    found = blur(point, 1.0)
    torch.testing.assert_close(float(found.sum()), 1.0)
    torch.testing.assert_close(float(found[0, 0, 7, 8] / found[0, 0, 7, 7]), 0.6065307)
    torch.testing.assert_close(found, found.mT)


def test_contrast_keeps_the_mean():
    x = torch.rand(2, 3, 6, 6, generator=draw())
    found = contrast(x, 0.25)
    torch.testing.assert_close(found.mean(dim=(2, 3)), x.mean(dim=(2, 3)))
    torch.testing.assert_close(found.std(dim=(2, 3)), 0.25 * x.std(dim=(2, 3)))


def test_occlusion_removes_whole_patches():
    x = torch.rand(50, 3, 8, 12, generator=draw()) + 0.1
    found = occluded(x, 0.25, 4, generator=draw(1))
    gone = found == 0
    patches = gone[:, 0].view(50, 4, 2, 4, 3).float().mean(dim=(2, 4))
    assert set(patches.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(patches.flatten(1).sum(dim=1), torch.full((50,), 4.0))
    assert len(patches.unique(dim=0)) > 10
    assert torch.equal(found[~gone], x[~gone])
    assert torch.equal(occluded(x, 0.0), x)
    assert float(occluded(x, 1.0, fill=7.0).min()) == 7.0


def test_refusals():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="share"):
        occluded(x, 1.5)
    with pytest.raises(ValueError, match="grid must not be above the sides 4 x 4, got 5"):
        occluded(x, grid=5)
    with pytest.raises(ValueError, match="factor"):
        contrast(x, 2.0)
