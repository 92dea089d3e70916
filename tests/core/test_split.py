import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import omnimix as om
from omnimix.core.split import norm_policy


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_features_then_head_is_the_network():
    model = net()
    split = om.split(model)
    assert split.head_name == "4"
    z, output = split.features_and_output(X)
    assert torch.equal(split.head(z), output)
    assert torch.equal(output, model(X))
    assert torch.equal(split.features(X), model[:4](X))


def test_rewrite_replaces_once_then_leaves_no_trace():
    model = net()
    split = om.split(model)
    with split.rewrite("1", lambda h: h * 0):
        inside = model(X)
    assert torch.allclose(inside, model[2:](torch.zeros(5, 6)))
    assert torch.equal(model(X), model[4](model[:4](X)))


def test_rewrite_never_fires_in_evaluation_or_twice():
    model = net()
    split = om.split(model)
    with pytest.raises(RuntimeError, match="reached twice"), split.rewrite("1", lambda h: h):
        model(X)
        model(X)
    model.eval()
    with pytest.raises(RuntimeError, match="not reached"), split.rewrite("1", lambda h: h * 0):
        assert torch.equal(model(X), model[4](model[:4](X)))


def test_a_copy_of_the_network_is_not_rewritten():
    model = net()
    split = om.split(model)
    with split.rewrite("1", lambda h: h * 0):
        teacher = copy.deepcopy(model)
        plain = teacher[2:](teacher[:2](X))
        assert torch.equal(teacher(X), plain)
        model(X)
    assert torch.equal(teacher(X), plain)
    pickle.loads(pickle.dumps(model))


def test_checkpointed_taps_are_rewritten_again_in_the_backward_pass():
    class Net(nn.Module):
        def __init__(self, use):
            super().__init__()
            self.block, self.fc, self.use = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 1), use

        def forward(self, x):
            h = checkpoint(self._blocks, x, use_reentrant=False) if self.use else self._blocks(x)
            return self.fc(h)

        def _blocks(self, x):
            return torch.sin(self.block(x))

    plain = Net(False)
    recomputing = copy.deepcopy(plain)
    recomputing.use = True
    grads = []
    for model in (plain, recomputing):
        with om.split(model, taps=("block",)).rewrite("block", lambda h: 0.3 * h + 0.7 * h.flip(0)):
            output = model(X)
        output.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_with_weights_uses_the_given_ones():
    model = net()
    split = om.split(model)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert (split.with_weights(zeros, X) == 0).all()
    assert model(X).abs().sum() > 0


def test_names_and_taps():
    model = net()
    assert om.split(model).taps == ("1", "3")
    with pytest.raises(ValueError, match=r"tap 'layer1' is not a module .* there are: '0', '1'"):
        om.split(model, taps=("layer1",))
    with pytest.raises(ValueError, match="no head found"):
        om.split(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("policy", "moves", "same_output"), [("train", True, True), ("separate", False, True), ("frozen", False, False)]
)
def test_norm_policy(policy, moves, same_output):
    model = nn.Sequential(nn.BatchNorm1d(4))
    reference = copy.deepcopy(model)(X)
    before = model[0].running_mean.clone()
    with norm_policy(model, policy):
        output = model(X)
    assert torch.equal(before, model[0].running_mean) != moves
    assert torch.allclose(output, reference) == same_output
    assert model[0].training
    assert model[0].track_running_stats
    if policy == "frozen":
        assert torch.allclose(output, X, atol=1e-4)
