import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.samples.operation import GridMixLocal
from omnimix.samples.operation.gridmix_local import cell_means


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.conv(x).mean(dim=(2, 3)))


X, Y = torch.randn(5, 2, 8, 12, generator=draw()), torch.tensor([0, 2, 1, 1, 0])


def test_the_loss_is_that_of_images_and_of_cells():
    model, weight = Net(), 0.3
    task = om.Classification(3)
    method = GridMixLocal(n=2, weight=weight).setup(model, task, generator=draw(3))
    again = GridMixLocal(n=2, weight=weight).setup(model, task, generator=draw(3))
    batch = om.Batch(X, Y)
    mixed = again.mix(batch, again.recipe(batch))
    assert 0 < mixed.recipe.lam[0] < 1
    h, cells = model.conv(mixed.x), []
    for r in range(2):
        for c in range(2):
            place = (slice(None), slice(None), slice(4 * r, 4 * r + 4), slice(6 * c, 6 * c + 6))
            output = model.fc(h[place].mean(dim=(2, 3)))
            shown = bool(mixed.recipe.mask[0, 0, 4 * r, 6 * c])
            cells.append(F.cross_entropy(output, Y if shown else Y[mixed.recipe.partner[:, 1]]))
    expected = mixed.loss(F.cross_entropy, model(mixed.x)) + weight * torch.stack(cells).mean()
    torch.testing.assert_close(method.loss(model, batch), expected)


def test_limits():
    model, task, batch = Net(), om.Classification(3), om.Batch(X, Y)
    plain = GridMixLocal(alpha=0.0).setup(model, task, generator=draw())
    torch.testing.assert_close(plain.loss(model, batch), F.cross_entropy(model(X), Y))
    none = GridMixLocal(weight=0.0, per_sample=True).setup(model, task, generator=draw(1))
    again = GridMixLocal(weight=0.0, per_sample=True).setup(model, task, generator=draw(1))
    mixed = again.mix(batch, again.recipe(batch))
    torch.testing.assert_close(none.loss(model, batch), mixed.loss(F.cross_entropy, model(mixed.x)))
    one = torch.rand(2, 3, 5, 7, generator=draw())
    torch.testing.assert_close(cell_means(one, 1)[..., 0, 0], one.mean(dim=(2, 3)))


def test_refusals():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="convolutional"):
        GridMixLocal().setup(flat, om.Classification(3)).loss(flat, (X, Y))
    with pytest.raises(ValueError, match="weight must be a number >= 0, got -1"):
        GridMixLocal(weight=-1)
