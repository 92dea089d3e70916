"""Where methods look by default: the stages that their papers name, on a residual network of timm, else as before."""

import pytest
import torch

import omnimix as om
from omnimix.core.split import observe
from omnimix.networks import create

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCH = om.Batch(X, torch.arange(4) % 2, torch.arange(4) // 2)
PUBLISHED = {
    "dmg": ("layer3", "layer4", "fc"),
    "domaindrop": ("layer1", "layer2", "layer3", "layer4"),
    "ccfp": ("conv1", "maxpool", "layer1", "layer2", "layer3"),
}


def make(name, model):
    draw = torch.Generator().manual_seed(0)
    return om.create(name).setup(model, om.Classification(2), om.Table(domain=BATCH.domain), generator=draw)


def names(method):
    return (method.layers if hasattr(method, "layers") else method.taps).names


def test_a_residual_network_is_read_at_the_published_stages():
    pytest.importorskip("timm")
    model = create("timm:test_resnet", (3, 32, 32), 2, seed=0)
    with observe(model, "conv1", "maxpool", "layer1", "layer2", "layer3", "layer4") as seen:
        model.eval()(X)
    width = {name: h.shape[1] for name, h in seen.items()}
    found = {}
    for name, published in PUBLISHED.items():
        method = make(name, model)
        assert names(method) == published
        assert torch.isfinite(method.loss(model.train(), BATCH))
        found[name] = method.side.modules
    # layer3, layer4 and fc get what layer2, layer3 and layer4 give
    masks = [part.logits.shape[1] for part in found["dmg"].values()]
    assert masks == [width[name] for name in ("layer2", "layer3", "layer4")]
    classifiers = [part.in_features for part in found["domaindrop"].values()]
    assert classifiers == [width[name] for name in PUBLISHED["domaindrop"]]
    assert [len(shift.g) for shift in found["ccfp"]["shifts"]] == [width[name] for name in PUBLISHED["ccfp"]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_networks_are_read_at_their_taps(name):
    model = create("small-cnn", (3, 8, 8), 2, seed=0, width=4)
    assert names(make(name, model)) == (("block2", "head") if name == "dmg" else ("block1", "block2"))
