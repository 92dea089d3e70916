"""XDED: hand values of the card, its limits, invariance to style, and the make-up of batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.core.sampler import by_class_and_domain
from omnimix.domains.generalize.xded import ensemble_distillation, pixel_distillation
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_values():
    two = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert ensemble_distillation(two, torch.tensor([0, 0])).item() == pytest.approx(0.122763, abs=1e-6)
    three = torch.cat((two, torch.tensor([[5.0, -1.0]])))
    assert ensemble_distillation(three, torch.tensor([3, 3, 1])).item() == pytest.approx(0.081842, abs=1e-6)


def test_nothing_to_learn_alone_or_among_equals():
    output = torch.randn(4, 3, generator=draw()).requires_grad_()
    loss = ensemble_distillation(output, torch.arange(4))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, output)[0].abs().max() < 1e-6
    same = output[:1].detach().expand(4, 3)
    assert ensemble_distillation(same, torch.zeros(4)).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_a_constant_and_order_does_not_matter():
    output = torch.randn(6, 3, generator=draw(), dtype=torch.float64).requires_grad_()
    group = torch.tensor([0, 1, 0, 2, 1, 0])
    teacher = torch.stack([output[group == g].mean(0) for g in group]).detach()

    def frozen(o):
        return 16 / 6 * (F.softmax(teacher / 4, 1) * (F.log_softmax(teacher / 4, 1) - F.log_softmax(o / 4, 1))).sum()

    assert torch.allclose(ensemble_distillation(output, group), frozen(output))
    (found,) = torch.autograd.grad(ensemble_distillation(output, group), output)
    (wanted,) = torch.autograd.grad(frozen(output), output)
    assert torch.allclose(found, wanted)
    order = torch.randperm(6, generator=draw(1))
    assert torch.allclose(ensemble_distillation(output[order], group[order]), frozen(output))


def test_large_temperature_is_squared_distance_of_centred_logits():
    output, group = torch.randn(6, 3, generator=draw(), dtype=torch.float64), torch.arange(6) % 2
    centred = output - output.mean(dim=1, keepdim=True)
    teacher = torch.stack([centred[group == g].mean(0) for g in group])
    limit = (centred - teacher).square().sum() / (2 * 3 * 6)
    assert ensemble_distillation(output, group, 1000.0).item() == pytest.approx(limit.item(), rel=1e-2)


def test_pixels_by_hand_and_against_rows():
    two = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).T.view(1, 2, 1, 2)  # two pixels of two logits
    assert pixel_distillation(two, torch.zeros(1, 1, 2, dtype=torch.long), 4.0).item() == pytest.approx(
        0.122763, abs=1e-6
    )
    output = torch.randn(3, 4, 2, 5, generator=draw(), dtype=torch.float64).requires_grad_()
    label = torch.randint(3, (3, 2, 5), generator=draw(1))
    rows = output.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.allclose(pixel_distillation(output, label), ensemble_distillation(rows, label.flatten(), 2.0))
    ignored = label.clone()
    ignored[0, 0], ignored[2, 1, 3] = 255, -100
    kept = (ignored >= 0) & (ignored < 4)
    found = pixel_distillation(output, ignored)
    wanted = ensemble_distillation(rows[kept.flatten()], ignored[kept], 2.0) * kept.double().mean()
    assert torch.allclose(found, wanted)
    (grad,) = torch.autograd.grad(found, output)
    assert grad.permute(0, 2, 3, 1)[~kept].abs().max() == 0
    assert pixel_distillation(output, torch.full_like(label, 255)).item() == 0


def test_dense_targets_are_trained_pixel_by_pixel():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw(2)))
    x, y = torch.randn(4, 2, 5, 6, generator=draw()), torch.randint(3, (4, 5, 6), generator=draw(1))
    domain = torch.arange(4) % 2
    method = om.create("xded", unistyle=False, lam=2.0)
    method.setup(model, om.Classification(3), om.Table(domain=domain, label=y), generator=draw())
    assert method.batches(2, 3, draw()) is None
    output = model(x)
    for given, temperature in ((None, 2.0), (4.0, 4.0)):
        method.temperature = given
        wanted = F.cross_entropy(output, y) + 2 * pixel_distillation(output, y, temperature)
        assert torch.allclose(method.loss(model, om.Batch(x, y, domain)), wanted, rtol=1e-5)
    assert (pixel_distillation(output, y, 2.0) - pixel_distillation(output, y, 4.0)).abs() > 1e-2
    with pytest.raises(ValueError, match="one output a sample"):
        method.loss(model, om.Batch(x, y[:, 0, 0], domain))


def test_groups_hold_one_class_and_all_domains():
    label, domain = torch.arange(60) % 5, torch.arange(60) // 20
    batches = by_class_and_domain(label, domain, 16, 8, 300, draw())
    assert len(batches) == 300
    frequency = torch.zeros(5)
    for rows in batches:
        for group in rows.view(2, 8):
            assert len(label[group].unique()) == 1
            assert sorted(torch.bincount(domain[group]).tolist()) == [2, 3, 3]
            frequency[label[group[0]]] += 1
        assert label[rows[0]] != label[rows[8]]
        assert len(rows.unique()) == 16  # cells hold 4, enough for 3 without replacement
    assert (frequency / 600 - 0.2).abs().max() < 0.05


def test_small_and_empty_cells():
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    domain = torch.tensor([0, 0, 1, 0, 0, 0])
    for rows in by_class_and_domain(label, domain, 8, 4, 20, draw()):
        first, second = rows.view(2, 4)
        zero, one = (first, second) if label[first[0]] == 0 else (second, first)
        assert sorted(zero.tolist()) == [0, 1, 2, 2]
        assert (label[one] == 1).all()
    assert len(by_class_and_domain(label, domain, 3, 16, 1, draw())[0]) == 3


class Net(nn.Module):
    taps = ("block", "second")

    def __init__(self):
        super().__init__()
        self.block, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(self.block(x).relu()).relu().mean((2, 3)))


def make(model, **parameters):
    table = om.Table(domain=torch.arange(12) % 3, label=torch.arange(12) // 4)
    return om.create("xded", **parameters).setup(model, om.Classification(3), table, generator=draw())


def test_style_is_gone_in_training_and_prediction():
    model = Net()
    x, y = torch.randn(4, 2, 8, 8, generator=draw()), torch.tensor([0, 0, 1, 2])
    method = make(model, taps=["block"])
    with torch.no_grad():
        model.block.weight.copy_(torch.randn(4, 2, 3, 3, generator=draw()))
        model.block.bias.zero_()
        louder, wanted = method.predict(model, 3 * x), method.predict(model, x)
        assert torch.allclose(louder, wanted, atol=1e-4)
        assert not torch.allclose(model(3 * x), model(x), atol=1e-4)
        h = model.block(x)
        h = ((h - h.mean((2, 3), keepdim=True)) / h.std((2, 3), keepdim=True)).relu()
        assert torch.allclose(wanted, model.head(model.second(h).relu().mean((2, 3))), atol=1e-4)
        expected = F.cross_entropy(wanted, y) + 5 * ensemble_distillation(wanted, y)
        assert torch.allclose(method.loss(model, (x, y)), expected, atol=1e-4)
        assert torch.allclose(method.predict(model.eval(), x), wanted)
        assert torch.equal(make(model, unistyle=False).predict(model, x), model(x))


def test_zero_weight_without_unistyle_is_plain_training():
    model, x, y = Net(), torch.randn(5, 2, 8, 8, generator=draw()), torch.tensor([0, 1, 2, 0, 1])
    assert torch.allclose(make(model, lam=0.0, unistyle=False).loss(model, (x, y)), F.cross_entropy(model(x), y))


def test_its_batches():
    method = make(Net(), per_class=6)
    for rows in method.batches(12, 3, draw()):
        assert torch.bincount(rows // 4).tolist().count(6) == 2


def test_contract():
    assert len(check_method("xded")) >= 10
    check_method("xded", unistyle=False)


def test_refusals():
    for name, value in (("lam", -1.0), ("temperature", 0.0), ("per_class", 0)):
        with pytest.raises(ValueError, match=name):
            om.create("xded", **{name: value})
