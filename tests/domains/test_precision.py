"""Networks of 64 and 16 bits behind wrappers that cast their inputs, as those of Fabric do; the batch keeps 32.

And all methods in Fabric's own mixture of 16 and 32 bits.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.core.inside import Inside
from omnimix.core.registry import info
from omnimix.train import Budget, Data, Part, fit

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


ROOM = [n for n in om.methods() if info(n).factory.__module__.startswith("omnimix.domains.generalize")]


@pytest.mark.parametrize("name", [*ROOM, "dann-slope", "mode-a-coder", "udim-style"])
def test_mixed_precision_in_the_loop(name):
    """Two steps; methods that differentiate gradients do so beside the backward pass that Fabric insists on."""
    parameters = {
        "smos": lambda: {"precursor": net()},
        "dann-slope": lambda: {"penalty": 1.0},
        "mode-a-coder": lambda: {"encoder": nn.Conv2d(3, 4, 1), "decoder": nn.Conv2d(4, 3, 1)},
        "udim-style": lambda: {"style": True, "warmup": 0.0},
        "qt-dog": lambda: {"start": 0.5},
        "udim": lambda: {"warmup": 0.5},
    }.get(name, dict)
    part, losses = Part(X, Y, domain=DOMAIN), []
    for precision in ("32-true", "bf16-mixed"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            method = om.create(
                name.removesuffix("-slope").removesuffix("-coder").removesuffix("-style"), **parameters()
            )
        budget = Budget(2, len(X), 0.02, "sgd", precision=precision)
        done = fit(method, net(), Data(part, part, None, om.Classification(3)), budget, seed=0)
        losses.append([row[key] for row in done.history for key in ("train_loss", "valid_loss")])
    assert losses[1] == pytest.approx(losses[0], rel=0.01, abs=0.01)


def test_losses_of_gradients_are_those_of_plain_training_in_wrappers_without_a_guard():
    inner = net()
    guarded = Guard(inner)
    for model in (inner, Wrapper(inner), guarded):
        output = Inside(model, inner)(X)
        assert torch.equal(output, inner(X))
        assert torch.autograd.grad(output.sum(), inner.head.bias)[0].allclose(torch.full((3,), 12.0))
    with pytest.raises(RuntimeError, match="guarded"):
        torch.autograd.grad(guarded(X).sum(), inner.head.bias)
    scaled = nn.Sequential(inner, nn.Softmax(dim=1))
    assert torch.equal(Inside(scaled, inner)(X), scaled(X))


class Guard(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        output = self.inner(x).float()

        def refuse(gradient):
            raise RuntimeError("guarded")

        output.register_hook(refuse)
        return output
