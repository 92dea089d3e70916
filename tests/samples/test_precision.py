"""All methods that mix samples in Fabric's mixture of 16 and 32 bits."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.registry import info
from omnimix.train import Budget, Data, Part, fit

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.rand(12, 3, 16, 16, generator=DRAW), torch.arange(12) % 3


class Net(nn.Module):
    taps = ("one", "two")

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))


ROOM = [
    name
    for name in om.methods("classification")
    if info(name).level == "samples" and info(name).network != "attention" and info(name).package == "omnimix"
]


@pytest.mark.parametrize("name", ROOM)
@pytest.mark.filterwarnings("ignore:alignmixup at")
def test_mixed_precision_in_the_loop(name):
    part, losses = Part(X, Y, domain=torch.arange(12) // 6), []
    for precision in ("32-true", "bf16-mixed"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            method, model = om.create(name), Net()
        budget = Budget(1, len(X), 0.02, "sgd", precision=precision)
        done = fit(method, model, Data(part, part, None, om.Classification(3)), budget, seed=0)
        losses.append([row[key] for row in done.history for key in ("train_loss", "valid_loss")])
    assert losses[1] == pytest.approx(losses[0], rel=0.03, abs=0.03)
