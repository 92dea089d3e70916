"""What operations may know beyond the inputs, and that looking leaves the network as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context, Operation
from omnimix.core.split import evaluating, observe
from omnimix.samples.operation import SalientBox
from omnimix.samples.saliency import ClassActivation, InputGradient, MeanActivation, input_gradient


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Sequential):
    def __init__(self, dropout=0.5):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.end = nn.Sequential(nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(8, 4)


X, Y = torch.randn(6, 3, 8, 10, generator=draw()), torch.arange(6) % 4


def test_an_evaluated_network_is_in_its_modes_again():
    model = Net()
    model.conv.eval()
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")
    assert [module.training for module in model.children()] == [False, True, True]
    assert not model.conv[1].training


def test_observed_outputs_are_those_of_the_modules():
    model = Net(0.0)
    with observe(model, "conv", "conv.0") as seen:
        output = model(X)
    assert list(seen) == ["conv.0", "conv"]
    torch.testing.assert_close(model.fc(model.end(seen["conv"])), output)
    with observe(model) as seen:
        model(X)
    assert list(seen)[-1] == "fc"
    with pytest.raises(ValueError, match="'no'"), observe(model, "no"):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_an_operation_knows_targets_and_where_it_needs_it_the_network():
    known = []

    class Look(Operation):
        def __call__(self, x, recipe, context):
            known.append(context)
            return x[: len(recipe.partner)], recipe

    model, look = Net(), Look()
    for needs in ((), ("network",)):
        look.needs = needs
        method = om.Mix(operation=look).setup(model, om.Classification(4), generator=draw())
        method.loss(model, (X, Y))
    assert torch.equal(known[0].y, Y)
    assert known[0].network is None
    assert known[1].network.model is model
    assert known[1].task is method.task


def test_at_a_hidden_tap_there_is_no_network_to_look_through():
    method = om.Mix(operation=SalientBox(InputGradient()), places=("input", "conv"))
    with pytest.raises(ValueError, match="at 'input' only"):
        method.setup(Net(), om.Classification(4))
    hidden = om.Mix(operation=SalientBox(), places=("conv",)).setup(Net(), om.Classification(4))
    assert hidden.loss(hidden.given.model, (X, Y)).isfinite()


def test_functions_without_the_network_say_what_to_do():
    for saliency in (InputGradient(), ClassActivation(), MeanActivation()):
        with pytest.raises(ValueError, match="has been set up"):
            saliency(X, Context(draw(), Y))


def test_scalars_that_an_operation_leaves_join_the_loss_once():
    class Costly(Operation):
        def __call__(self, x, recipe, context):
            context.extra.append(torch.tensor(2.5))
            return x[: len(recipe.partner)], recipe

    model = Net(0.0)
    method = om.Mix(operation=Costly(), ratio=om.Constant(1.0)).setup(model, om.Classification(4), generator=draw())
    for _ in range(2):
        torch.testing.assert_close(method.loss(model, (X, Y)), F.cross_entropy(model(X), Y) + 2.5)


@pytest.mark.parametrize("saliency", [InputGradient(), InputGradient(keep=1.0), ClassActivation(), MeanActivation()])
def test_looking_leaves_no_trace(saliency):
    model = Net(0.0 if getattr(saliency, "keep", 0) else 0.5)  # a pass of training draws for its dropout
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state, x = torch.get_rng_state(), X.clone()
    context = Context(draw(), Y, om.Split(model), om.Classification(4))
    maps = saliency(x, context)
    assert maps.shape[:2] == (6, 1)
    assert not maps.requires_grad
    assert (maps >= 0).all()
    assert all(p.grad is None for p in model.parameters())
    moves = ("running_mean", "running_var", "num_batches_tracked") if getattr(saliency, "keep", 0) else ()
    after = {name: value for name, value in model.state_dict().items() if not name.endswith(moves)}
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_saliency_works_without_gradients_around():
    model = Net()
    with torch.no_grad():
        assert (input_gradient(model, X, Y) > 0).any()
