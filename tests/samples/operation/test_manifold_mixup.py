import copy

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

import omnimix as om
from omnimix.samples.operation import ManifoldMixup, manifold_mixup
from omnimix.samples.operation.flatness import class_spectra, within_class_share
from omnimix.samples.operation.manifold_mixup import SoftmaxBCE

CE = F.cross_entropy


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    taps = ("block1", "block2", "block3")

    def __init__(self, activation=nn.Tanh, bias=True, recompute=False):
        super().__init__()
        self.block1 = nn.Sequential(nn.Linear(4, 5, bias=bias), activation())
        self.block2 = nn.Sequential(nn.Linear(5, 6, bias=bias), activation())
        self.block3 = nn.Sequential(nn.Linear(6, 6, bias=bias), activation())
        self.fc = nn.Linear(6, 3, bias=bias)
        self.recompute = recompute

    def body(self, x):
        return self.block2(self.block1(x))

    def forward(self, x):
        h = checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)
        return self.fc(self.block3(h))


def net(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**options)


X, Y = torch.randn(8, 4, generator=draw()), torch.arange(8) % 3
PARTNER = torch.tensor([3, 0, 6, 5, 4, 7, 1, 2])


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_mixing_at_the_input_is_mixup():
    model = net()
    output, mixed = manifold_mixup(model, X, Y, 1.5, ["input"], generator=draw(1))
    plain = om.mixup(X, Y, 1.5, generator=draw(1))
    assert torch.equal(mixed.x, plain.x)
    assert mixed.recipe.place == "input"
    losses = mixed.loss(CE, output), plain.loss(CE, model(plain.x))
    assert torch.equal(*losses)
    for a, b in zip(*(gradients(model, loss) for loss in losses), strict=True):
        assert torch.equal(a, b)
    task = om.Classification(3)
    hidden = om.create("manifold-mixup", alpha=1.5, taps=["input"]).setup(model, task, generator=draw(1))
    assert torch.equal(
        hidden.loss(model, (X, Y)), om.Mixup(1.5).setup(model, task, generator=draw(1)).loss(model, (X, Y))
    )


@pytest.mark.parametrize("place", ["input", "block1", "block2", "block3"])
def test_share_one_is_the_plain_forward_pass(place):
    model = net()
    output, mixed = manifold_mixup(model, X, Y, taps=[place], lam=1.0, generator=draw())
    assert torch.equal(output, model(X))
    assert mixed.recipe.place == place


@pytest.mark.parametrize("place", ["block1", "block2"])
def test_the_rest_of_the_network_goes_on_with_the_mixed_states(place):
    model = net()
    output, mixed = manifold_mixup(model, X, Y, taps=[place], lam=0.3, partner=PARTNER)
    h = model.block1(X)
    h = model.block2(h) if place == "block2" else h
    torch.testing.assert_close(mixed.x, 0.3 * h + 0.7 * h[PARTNER])
    h = mixed.x if place == "block2" else model.block2(mixed.x)
    torch.testing.assert_close(output, model.fc(model.block3(h)))
    assert torch.equal(model(X), model(X))  # nothing stays behind in the network


def test_all_places_of_a_linear_network_are_equal():
    model = net(activation=nn.Identity, bias=False)
    outputs = [
        manifold_mixup(model, X, Y, taps=[p], lam=0.3, partner=PARTNER)[0] for p in ("input", "block1", "block2", "fc")
    ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_hand_computed_relu_network():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.fill_(1.0)
    x, y = torch.tensor([[2.0, -1.0], [-1.0, 2.0]]), torch.tensor([0.0, 1.0])
    arguments = {"lam": 0.5, "partner": torch.tensor([1, 0])}
    assert manifold_mixup(model, x, y, taps=["input"], **arguments)[0].tolist() == [[1.0], [1.0]]
    assert manifold_mixup(model, x, y, taps=["1"], **arguments)[0].tolist() == [[2.0], [2.0]]


def test_hand_computed_loss_on_softmax():
    logits, y = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 2])
    recipe = om.mixup(logits, y, lam=0.25, partner=torch.tensor([1, 0])).recipe
    task = om.Classification(3)
    assert SoftmaxBCE()(logits, y, recipe, task).mean().item() == pytest.approx(0.954824, abs=1e-6)
    assert om.MixedLoss()(logits, y, recipe, task).mean().item() == pytest.approx(1.729525, abs=1e-6)


def test_loss_on_saturated_softmax_is_finite():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    recipe = om.mixup(torch.zeros(1, 1), torch.tensor([1]), lam=1.0).recipe
    loss = SoftmaxBCE()(logits, torch.tensor([1]), recipe, om.Classification(3))
    assert loss.item() == pytest.approx(200 / 3)  # both logarithms stop at -100
    assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(SoftmaxBCE()(logits.bfloat16(), torch.tensor([1]), recipe, om.Classification(3)))


def test_loss_on_softmax_needs_classes():
    method = ManifoldMixup(loss="bce_on_softmax").setup(net(), om.MultiLabel(3), generator=draw())
    with pytest.raises(ValueError, match="bce_on_softmax"):
        method.loss(method.given.model, (X, F.one_hot(Y, 3).float()))


@pytest.mark.parametrize("place", ["input", "block1"])
def test_gradients_reach_both_partners(place):
    x = X.clone().requires_grad_()
    partner = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1])
    output, _ = manifold_mixup(net(), x, Y, taps=[place], lam=0.3, partner=partner)
    output[0].sum().backward()
    assert (x.grad[[0, 1]] != 0).all()
    assert (x.grad[2:] == 0).all()


def test_places_are_drawn_uniformly_from_the_input_and_two_taps():
    model = net()
    method = om.create("manifold-mixup").setup(model, om.Classification(3), generator=draw())
    assert method.places == ("input", "block1", "block2")
    batch = om.Batch(X, Y)
    found = [method.recipe(batch).place for _ in range(3000)]
    counts = [found.count(place) for place in method.places]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 0.01
    source = draw(1)
    found = [manifold_mixup(model, X, Y, generator=source)[1].recipe.place for _ in range(600)]
    counts = [found.count(place) for place in method.places]
    assert sum(counts) == 600
    assert stats.chisquare(counts).pvalue > 0.01


def test_places_follow_the_network_at_every_setup():
    method, task = ManifoldMixup(), om.Classification(3)
    assert method.setup(net(), task).places == ("input", "block1", "block2")
    other = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    assert method.setup(other, task).places == ("input", "1")
    assert ManifoldMixup(taps=["block3"]).setup(net(), task).places == ("block3",)
    with pytest.raises(ValueError, match="block9"):
        ManifoldMixup(taps=["block9"]).setup(net(), task)
    with pytest.raises(ValueError, match="loss"):
        ManifoldMixup(loss="mse")


def test_evaluation_never_mixes():
    model = net().eval()
    output, mixed = manifold_mixup(model, X, Y)
    assert torch.equal(output, model(X))
    torch.testing.assert_close(mixed.loss(CE, output), CE(output, Y))
    method = ManifoldMixup().setup(model, om.Classification(3))
    assert torch.equal(method.loss(model, (X, Y)), CE(model(X), Y))


@pytest.mark.parametrize("place", ["block1", "block2"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(place, per_sample):
    plain, recomputing = net(), net(recompute=True)
    found = []
    for model in (plain, recomputing):
        output, mixed = manifold_mixup(model, X, Y, taps=[place], per_sample=per_sample, generator=draw(1))
        function = gradients(model, mixed.loss(CE, output))
        method = ManifoldMixup(taps=[place], per_sample=per_sample)
        method.setup(model, om.Classification(3), generator=draw(2))
        found.append((*function, *gradients(model, method.loss(model, (X, Y)))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointed_steps_at_changing_places_do_not_disturb_each_other():
    found = []
    for model in (net(), net(recompute=True)):
        method = ManifoldMixup().setup(model, om.Classification(3), generator=draw(3))
        found.append([g for _ in range(12) for g in gradients(model, method.loss(model, (X, Y)))])
        for _ in range(6):
            output, mixed = manifold_mixup(model, X, Y, generator=method.generator)
            found[-1] += gradients(model, mixed.loss(CE, output))
        found[-1] += gradients(model, CE(model(X), Y))
        assert not any(module._forward_hooks for module in model.modules())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_copied_teacher_inside_the_step_is_not_mixed():
    class Student(Net):
        def forward(self, x):
            h = self.block1(x)
            self.seen = copy.deepcopy(self.block1)(x), copy.deepcopy(self).eval().plain(x)
            return self.plain(h, 1)

        def plain(self, x, start=0):
            for block in (self.block1, self.block2, self.block3, self.fc)[start:]:
                x = block(x)
            return x

    model = Student()
    model.load_state_dict(net().state_dict())
    output, _ = manifold_mixup(model, X, Y, taps=["block1"], lam=0.3, partner=PARTNER)
    expected, _ = manifold_mixup(net(), X, Y, taps=["block1"], lam=0.3, partner=PARTNER)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(model.seen[0], net().block1(X))
    torch.testing.assert_close(model.seen[1], net()(X))


def test_the_method_trains_regression():
    model = net()
    method = ManifoldMixup(taps=["block2"]).setup(model, om.Regression(3), generator=draw())
    y = torch.randn(8, 3, generator=draw(1))
    loss = method.loss(model, (X, y))
    source = draw()
    recipe = ManifoldMixup(taps=["block2"]).setup(model, om.Regression(3), generator=source).recipe(om.Batch(X, y))
    h, partner = model.block2(model.block1(X)), recipe.partner[:, 1]
    lam = recipe.lam.unsqueeze(1)
    output = model.fc(model.block3(lam * h + (1 - lam) * h[partner]))
    torch.testing.assert_close(loss, F.mse_loss(output, lam * y + (1 - lam) * y[partner]))


def test_flatness_of_points_and_of_one_cloud():
    y = torch.tensor([4, 4, 7, 7, 7])
    points = torch.tensor([[1.0, 0], [1, 0], [0, 2], [0, 2], [0, 2]])
    assert within_class_share(points, y) == 0
    torch.testing.assert_close(class_spectra(points, y), torch.zeros(2, 2), atol=1e-6, rtol=0)
    spread = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0], [0, 0]])
    assert within_class_share(spread, y) == 1
    torch.testing.assert_close(class_spectra(spread, y), torch.tensor([[2**0.5, 0], [2**0.5, 0]]), atol=1e-6, rtol=0)


def test_flatness_by_brute_force():
    h, y = torch.randn(30, 2, 3, generator=draw(), dtype=torch.float64), torch.arange(30) % 4
    flat, within = h.flatten(1), 0.0
    for c in range(4):
        group = flat[y == c]
        within += ((group - group.mean(dim=0)) ** 2).sum()
        eigen = torch.linalg.eigvalsh((group - group.mean(dim=0)).T @ (group - group.mean(dim=0))).flip(0)
        torch.testing.assert_close(class_spectra(h, y)[c] ** 2, eigen)
    torch.testing.assert_close(within_class_share(h, y), within / ((flat - flat.mean(dim=0)) ** 2).sum())
