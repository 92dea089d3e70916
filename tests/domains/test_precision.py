"""Networks of 64 and 16 bits behind wrappers that cast their inputs, as those of Fabric do; the batch keeps 32."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om

DRAW = torch.Generator().manual_seed(0)
X, Y, DOMAIN = torch.rand(12, 3, 6, 6, generator=DRAW), torch.arange(12) % 3, torch.arange(12) // 6


class Net(nn.Module):
    taps = ("one", "two")

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


class Wrapper(nn.Module):
    def __init__(self, inner, mixed=None):
        super().__init__()
        self.inner, self.mixed = inner, mixed

    def forward(self, x):
        if self.mixed is not None:
            with torch.autocast("cpu", self.mixed):
                return self.inner(x)
        return self.inner(x.to(self.inner.head.weight.dtype)).float()


def after(name, dtype, mixed=None, **parameters):
    """Losses of three steps and the predictions after them."""
    model = net().to(dtype)
    wrapper, method = Wrapper(model, mixed), om.create(name, **parameters)
    table = om.Table(domain=DOMAIN, label=Y)
    method.setup(model, om.Classification(3), table, steps=10, generator=torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.02), []
    batch = om.Batch(X, Y, DOMAIN)
    for _ in range(3):
        losses.append(method.step(wrapper, batch, optimizer).item())
        method.after_step()
        method.after_validation(1.0)
    method.after_training(model, [batch])
    wrapper.eval()
    with torch.no_grad():
        return torch.tensor(losses), method.predict(wrapper, X).float()


CASES = ["smos", "ccfp", "drm", "drm-judge", "coral", "mmd", "tss", "swad", "dmg", "domaindrop", "qt-dog"]


@pytest.mark.parametrize("name", CASES)
def test_every_precision_gives_about_the_same(name):
    parameters = {"smos": {"precursor": net()}, "drm-judge": {"by": "discriminator"}, "tss": {"balance": 0.0}}
    name, parameters = name.removesuffix("-judge"), parameters.get(name, {})
    losses, outputs = after(name, torch.float32, **parameters)
    wide = after(name, torch.float64, **parameters)
    narrow = after(name, torch.bfloat16, **parameters)
    mixed = after(name, torch.float32, torch.bfloat16, **parameters)
    assert torch.allclose(wide[0], losses, atol=1e-4)
    assert torch.allclose(wide[1], outputs, atol=1e-4)
    for found in (narrow, mixed):
        assert torch.allclose(found[0], losses, atol=0.05, rtol=0.05)
        assert F.mse_loss(found[1], outputs) < 0.01
