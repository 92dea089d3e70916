"""Images all 0 or all 1: the mean of a mixed image is the label share of the class of the images of 1."""

import inspect

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.registry import info
from omnimix.networks import create

AREA = [
    "attentivemix",
    "co-mixup",
    "cutmix",
    "fmix",
    "gridmix",
    "gridmix-local",
    "mixpro",
    "mixup",
    "mosaic",
    "puzzle-mix",
    "resizemix",
    "saliencymix",
    "smmix",
    "smoothmix",
    "transmix",
]
"""Methods that mix images and give labels, before the forward pass, by what is seen of each."""


class Net(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
        super().__init__(*layers)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (13, 24), (24, 9)])
@pytest.mark.parametrize("name", AREA)
def test_the_mean_is_the_label_share(name, size, per_sample):
    takes = "per_sample" in inspect.signature(info(name).factory).parameters
    options = {"per_sample": per_sample} if takes else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"width": 8, "depth": 1, "heads": 2}
        model = create("vit", (2, *size), 2, **small) if info(name).network == "attention" else Net()
    method = om.create(name, **options).setup(model, om.Classification(2), generator=torch.Generator().manual_seed(1))
    y = torch.arange(9) % 2
    batch, seen = om.Batch(y.float().view(-1, 1, 1, 1).expand(9, 2, *size).contiguous(), y), 0
    for _ in range(10):
        mixed = method.mix(batch, method.recipe(batch))
        torch.testing.assert_close(mixed.x.flatten(1).mean(dim=1), mixed.soft_target(2)[:, 1])
        assert mixed.x.shape == batch.x.shape
        seen += int(((mixed.soft_target(2) > 0.02).all(dim=1)).sum())
    assert seen > 5  # both colours were there to be told apart
