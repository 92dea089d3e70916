"""Taps rewrite outputs in training and evaluation, of the network, of a copy of it and of a wrapper."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from omnimix.core.taps import Taps

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("training", [True, False])
def test_all_taps_are_rewritten(training):
    model = net().train(training)
    taps = Taps(model)
    assert taps.names == ("1", "3")
    with taps.rewrite({"1": lambda h: h + 1, "3": lambda h: 2 * h}):
        found = model(X)
    assert torch.equal(found, model[4](2 * model[3](model[2](model[1](model[0](X)) + 1))))
    assert not torch.equal(found, model(X))
    assert not any(module._forward_hooks for module in model.eval().modules())


def test_copies_and_wrappers_in_evaluation():
    model = net().eval()
    taps = Taps(model, ["1"])
    for other in (copy.deepcopy(model), nn.Sequential(model), model):
        with taps.rewrite({"1": lambda h: 0 * h}, other):
            assert torch.equal(other(X), model[4](model[3](model[2](torch.zeros(3, 6)))))


def test_refusals():
    with pytest.raises(ValueError, match="tap 'nothing'"):
        Taps(net(), ["nothing"])
    for names in ("1", []):
        with pytest.raises(ValueError, match="non-empty sequence"):
            Taps(net(), names)


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_rewritten_too(training):
    model = net().train(training)
    taps = Taps(model, ["2", "4"])
    functions = {"2": lambda h: h + 1, "4": lambda h: 2 * h}
    with taps.rewrite(functions, before=True):
        found = model(X)
    assert torch.equal(found, model[4](2 * model[3](model[2](model[1](model[0](X)) + 1))))
    assert not torch.equal(found, model(X))
    other = copy.deepcopy(model).eval()
    with taps.rewrite({"4": lambda h: 0 * h}, other, before=True):
        assert torch.equal(other(X), model[4].bias.expand(3, 3))
    assert not any(module._forward_pre_hooks for module in other.modules())
    assert copy.deepcopy(model)(X).shape == (3, 3)


def test_recomputed_inputs_are_rewritten_again():
    model = net()
    taps = Taps(model, ["2"])
    grads = []
    for recompute in (False, True):
        model.zero_grad()
        with taps.rewrite({"2": lambda h: h * h}, before=True):
            h = torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False) if recompute else model(X)
        h.square().sum().backward()
        grads.append(model[0].weight.grad.clone())
    assert torch.equal(*grads)
