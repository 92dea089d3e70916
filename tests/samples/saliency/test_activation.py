import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.networks import create
from omnimix.samples.saliency import ClassActivation, MeanActivation, class_activation, feature_map


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """With a functional pool, and no rectifier behind the last convolution."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.low, self.high = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
            self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.high(self.low(x).relu()).relu().mean(dim=(2, 3)))


X, Y = torch.randn(5, 2, 9, 12, generator=draw()), torch.tensor([0, 2, 1, 1, 0])


def test_class_activation_by_hand():
    model = Net()
    h = model.high(model.low(X).relu()).relu()
    evidence = torch.stack(
        [F.conv2d(h[i : i + 1], model.fc.weight[y][None, :, None, None])[0] for i, y in enumerate(Y)]
    )
    torch.testing.assert_close(class_activation(model, X, Y), evidence - evidence.amin(dim=(1, 2, 3), keepdim=True))


def test_the_mean_over_places_gives_the_logit_back():
    model = Net()
    whole = class_activation(model, X, Y).mean(dim=(1, 2, 3))
    other = class_activation(model, X, (Y + 1) % 3).mean(dim=(1, 2, 3))
    h = model.high(model.low(X).relu()).relu()
    lowest = [torch.einsum("rd,rdhw->rhw", model.fc.weight[y], h).amin(dim=(1, 2)) for y in (Y, (Y + 1) % 3)]
    logits = model(X) - model.fc.bias
    torch.testing.assert_close(whole + lowest[0], logits.gather(1, Y[:, None])[:, 0])
    torch.testing.assert_close(other + lowest[1], logits.gather(1, (Y[:, None] + 1) % 3)[:, 0])


def test_soft_and_multi_labels_weigh_the_classes():
    model, y = Net(), torch.tensor([[0.0, 1.0, 1.0]]).expand(5, 3)
    maps = ClassActivation()(X, Context(draw(), y, om.Split(model), om.MultiLabel(3)))
    h = model.high(model.low(X).relu()).relu()
    expected = torch.einsum("d,rdhw->rhw", model.fc.weight[1] + model.fc.weight[2], h).unsqueeze(1)
    torch.testing.assert_close(maps, expected - expected.amin(dim=(1, 2, 3), keepdim=True))
    hard = class_activation(model, X, Y)
    torch.testing.assert_close(hard, class_activation(model, X, F.one_hot(Y, 3).float(), om.Classification(3)))


@pytest.mark.parametrize(
    ("name", "tap", "grid"), [("small-cnn", "block3.2", (4, 4)), ("preact-resnet18", "last.1", (2, 2))]
)
def test_the_last_map_is_found(name, tap, grid):
    model, x = create(name, (3, 16, 16), 4), torch.randn(3, 3, 16, 16, generator=draw())
    found, h = feature_map(model, x)
    assert found == tap
    assert h.shape[2:] == grid
    context = Context(draw(), torch.arange(3), om.Split(model), om.Classification(4))
    assert torch.equal(ClassActivation()(x, context), ClassActivation(tap)(x, context))


def test_tokens_are_no_map():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm, self.fc = nn.Conv2d(2, 6, 3, stride=3), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.norm(self.patch(x).flatten(2).mT).mean(dim=1))

    with pytest.raises(ValueError, match="convolutional"):
        feature_map(Tokens(), X)
    assert feature_map(Tokens(), X, "patch")[1].shape == (5, 6, 3, 4)


def test_mean_activation_of_the_network_and_of_a_frozen_teacher():
    teacher = Net()
    h = teacher.high(teacher.low(X).relu()).relu()
    maps = MeanActivation(teacher)(X, Context(draw()))
    torch.testing.assert_close(maps, h.mean(dim=1, keepdim=True))
    own = MeanActivation()(X, Context(draw(), Y, om.Split(teacher), om.Classification(3)))
    assert torch.equal(maps, own)
    assert MeanActivation(teacher).needs == ()
    assert MeanActivation(teacher, tap="low")(X, Context(draw())).shape == (5, 1, 9, 12)
    assert MeanActivation(teacher, side=16)(X, Context(draw())).shape == (5, 1, 8, 8)
    headless = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert MeanActivation(headless)(X, Context(draw())).shape == (5, 1, 7, 10)
    assert headless[1].num_batches_tracked == 0


def test_networks_without_maps_are_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(216, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="convolutional"):
        class_activation(flat, X, Y)
    vgg = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(280, 3))
    with pytest.raises(ValueError, match="mean over places"):
        class_activation(vgg, X, Y)
    assert feature_map(vgg, X, "0")[1].shape == (5, 4, 7, 10)
    with pytest.raises(ValueError, match="takes, 280, got 4"):
        class_activation(vgg, X, Y, tap="0")
    with pytest.raises(ValueError, match="linear head"):
        class_activation(om.split(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), head="1"), X, Y)
    with pytest.raises(ValueError, match="teacher must be"):
        MeanActivation("resnet50")
