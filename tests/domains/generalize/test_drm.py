"""DRM: hand values of the card, its limits, the authors' training and adaptation on fixed numbers, and prototypes."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.drm import entropy, head_shares
from omnimix.domains.generalize.online_drm import OnlineDRM
from omnimix.domains.generalize.prototypes import Prototypes
from omnimix.testing import check_method

X, DOMAIN = torch.sin(torch.arange(36.0) * 1.3).view(12, 3), torch.arange(3).repeat_interleave(4)
Y = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2])
BATCH = om.Batch(X, Y, DOMAIN)
STREAM = torch.cos(torch.arange(18.0) * 0.7).view(6, 3) * 2


def fill(module, k):
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * (k + i) + i).view(p.shape))


def network():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Linear(5, 3))
    fill(model[0], 1)
    fill(model[1], 7)
    return model


def make(model, domain=DOMAIN, **parameters):
    method = om.create("drm", **parameters)
    table = om.Table(domain=domain)
    return method.setup(model, om.Classification(3), table, generator=torch.Generator().manual_seed(0))


def train(method, model, steps, batch=BATCH):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        losses.append(method.step(model, batch, optimizer).item())
        method.after_step()
    return losses


def test_hand_values():
    fit = -torch.tensor([[0.1, 0.5, 1.0]]).log()
    assert torch.allclose(head_shares(fit, 1.0), torch.tensor([[0.76923, 0.15385, 0.07692]]), atol=1e-5)
    assert torch.allclose(head_shares(fit, 0.5), torch.tensor([[0.56707, 0.25360, 0.17932]]), atol=1e-5)
    assert torch.allclose(head_shares(fit, 0.0), torch.full((1, 3), 1 / 3))
    assert head_shares(fit, math.inf).tolist() == [[1, 0, 0]]
    assert torch.allclose(head_shares(fit, 50.0), head_shares(fit, math.inf), atol=1e-6)
    assert entropy(torch.zeros(1, 4)).item() == pytest.approx(math.log(4))
    assert torch.isfinite(head_shares(-(entropy(torch.tensor([[[500.0, 0, 0], [1, 0, 0]]])) + 1e-12).log(), 5.0)).all()


def test_training_agrees_with_the_authors_class():
    """Losses of eight Adam steps and sums of absolute weights, printed by it."""
    model = network()
    method = make(model)
    wanted = [1.180666, 1.068747, 0.985607, 0.920709, 0.867282, 0.822096, 0.783051, 0.748432]
    assert train(method, model, 8) == pytest.approx(wanted, abs=2e-6)
    found = [head.weight.abs().sum().item() for head in [*method.side.modules["heads"], model[1]]]
    assert found == pytest.approx([6.07085, 6.05768, 4.99008, 4.50411], abs=1e-4)
    assert sum(p.abs().sum().item() for p in model[0].parameters()) == pytest.approx(8.93384, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "gamma", "confidence", "repeats", "second", "heads"),
    [
        ("own", 1.0, 0.1, 1, [0.19096, 0.12401, 0.44546], 26.20531),
        ("own", 5.0, 0.3, 3, [0.07832, 0.05988, 0.64344], 35.30599),
        ("own", math.inf, 0.45, 1, [0.1566, 0.09105, 0.75235], 26.07437),
        ("last", 1.0, 0.1, 1, [0.18938, 0.10779, 0.46173], 25.5534),
        ("last", 5.0, 0.3, 3, [0.07664, 0.03821, 0.661], 33.34595),
        ("uniform", 1.0, 0.1, 1, [0.18938, 0.10779, 0.46173], 25.5534),
        ("uniform", math.inf, 0.45, 1, [0.16656, 0.09999, 0.73345], 26.35344),
        ("drm", 5.0, 0.3, 3, [0.07664, 0.03821, 0.661], 33.34595),
        ("drm", math.inf, 0.45, 1, [0.1566, 0.09105, 0.75235], 25.5534),
    ],
)
def test_adaptation_agrees_with_the_authors_class(labels, gamma, confidence, repeats, second, heads):
    """Its mixed output for a row when the batch comes a second time, and the sum of absolute weights of all heads."""
    model = network()
    method = make(model, gamma=gamma, reference=True)
    train(method, model, 8)
    online = OnlineDRM(method, labels=labels, confidence=confidence, lr=0.05, repeats=repeats)
    online(STREAM)
    assert online(STREAM)[0].exp().tolist() == pytest.approx(second, abs=2e-5)
    found = sum(p.abs().sum().item() for p in [*online.heads.parameters(), *online.model[1].parameters()])
    assert found == pytest.approx(heads, abs=1e-3)


def test_mixture_by_hand_and_the_head_that_the_reference_leaves_out():
    model = network()
    method = make(model, gamma=2.0)
    train(method, model, 3)
    z = model[0](STREAM)
    p = torch.stack([*(head(z).softmax(1) for head in method.side.modules["heads"]), model[1](z).softmax(1)])
    h = -(p * p.log()).sum(dim=2)
    w = h**-2 / (h**-2).sum(dim=0)
    found = method.predict(model, STREAM).exp()
    assert torch.allclose(found, (w.unsqueeze(2) * p).sum(dim=0), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(6))
    method.reference = True
    assert torch.allclose(method.predict(model, STREAM).exp(), (w.unsqueeze(2) * p)[:3].sum(dim=0), atol=1e-5)
    method.gamma = 0.0
    method.reference = False
    assert torch.allclose(method.predict(model, STREAM).exp(), p.mean(dim=0), atol=1e-5)
    method.gamma = math.inf
    best = p[h.argmin(dim=0), torch.arange(6)]
    assert torch.allclose(method.predict(model, STREAM).exp(), best, atol=1e-5)


def test_equal_heads_are_one_head_and_rows_are_on_their_own():
    model = network()
    for gamma in (0.0, 1.0, math.inf):
        method = make(model, gamma=gamma)
        before = method.predict(model, STREAM)
        method.beside(model, X)
        assert torch.allclose(method.predict(model, STREAM).softmax(1), before.softmax(1), atol=1e-6)
    train(method, model, 3)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(method.predict(model, STREAM[order]), method.predict(model, STREAM)[order], atol=1e-6)


def test_one_domain_has_two_heads_with_equal_gradients():
    model, domain = network(), torch.zeros(12, dtype=torch.long)
    method = make(model, domain)
    loss = method.loss(model, om.Batch(X, Y, domain))
    loss.backward()
    assert torch.allclose(loss, F.cross_entropy(model(X), Y))
    (head,) = method.side.modules["heads"]
    assert torch.allclose(head.weight.grad, model[1].weight.grad, atol=1e-7)
    (half,) = torch.autograd.grad(F.cross_entropy(model(X), Y) / 2, model[1].weight)
    assert torch.allclose(head.weight.grad, half, atol=1e-7)


def test_heads_learn_from_their_own_domain_only():
    model = network()
    method = make(model)
    method.loss(model, om.Batch(X[:8], Y[:8], DOMAIN[:8])).backward()
    heads = method.side.modules["heads"]
    assert not heads[2].weight.grad.any()
    z = model[0](X[:4])
    (wanted,) = torch.autograd.grad(F.cross_entropy(heads[0](z), Y[:4]) / 4, heads[0].weight)
    assert torch.allclose(heads[0].weight.grad, wanted, atol=1e-7)


def test_nothing_confident_or_no_rate_changes_nothing():
    model = network()
    method = make(model)
    train(method, model, 3)
    for settings in ({"confidence": 1.1}, {"lr": 0.0, "confidence": 0.0}):
        online = OnlineDRM(method, encoder=True, **settings)
        before = copy.deepcopy([*online.model.parameters(), *online.heads.parameters()])
        for _ in range(3):
            assert torch.allclose(online(STREAM), method.predict(model, STREAM), atol=1e-6)
        after = [*online.model.parameters(), *online.heads.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_whose_labels():
    """Three heads that disagree: two on class 0 or 1, the network's own, last, on class 2."""
    model = network()
    method = make(model)
    method.beside(model, X)
    p = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.05, 0.2, 0.75]]])  # the mean is (.35, .3, .35)
    mixed = torch.tensor([[0.1, 0.55, 0.35]])
    wanted = {"own": ([0, 1, 2], [0.8, 0.6, 0.75]), "last": ([2] * 3, [0.75] * 3), "drm": ([1] * 3, [0.55] * 3)}
    for labels, (classes, confidence) in wanted.items():
        for threshold in (0.5, 0.58, 0.7, 0.78):
            online = OnlineDRM(method, labels=labels, confidence=threshold)
            label, kept = online._pseudo(p.log(), mixed)
            assert label[0].tolist() == classes
            assert kept[0].tolist() == [c >= threshold for c in confidence]
    uniform = OnlineDRM(method, labels="uniform", confidence=0.34)
    label, kept = uniform._pseudo((p * torch.tensor([1, 1, 0.9])).log(), mixed)
    assert label[0].tolist() == [0, 0, 0]
    assert kept.all()


@pytest.mark.parametrize("encoder", [False, True])
def test_a_stream_leaves_the_method_alone_and_can_be_forgotten(encoder):
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh()), nn.Linear(5, 3))
    method = make(model)
    train(method, model, 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = method.predict(model.eval(), STREAM)
    online = OnlineDRM(method, confidence=0.0, lr=0.1, encoder=encoder)
    outputs = [online(STREAM) for _ in range(10)]
    assert torch.allclose(outputs[0], first, atol=1e-6)
    assert not torch.allclose(outputs[1], first, atol=1e-3)
    assert torch.allclose(method.predict(model, STREAM), first)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    moved = [not torch.equal(value, state[name]) for name, value in online.model.state_dict().items()]
    assert moved == [encoder, encoder, encoder, encoder, False, False, False, True, True]
    online.reset()
    assert all(torch.equal(online(STREAM), output) for output in outputs[:3])


@pytest.mark.parametrize("by", ["l1", "l2", "cosine", "discriminator"])
def test_far_domains_get_their_own_head(by):
    """Two domains ten deviations apart, one straight above the other's direction."""
    draw = torch.Generator().manual_seed(3)
    centre = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    domain = torch.arange(400) % 2
    x = centre[domain] + torch.randn(400, 2, generator=draw)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    method = make(model, domain, gamma=math.inf, by=by)
    train(method, model, 30 if by == "discriminator" else 1, om.Batch(x, domain, domain))
    with torch.no_grad():
        z = model[0](x)
        for i, head in enumerate(method.side.modules["heads"]):
            head.weight.zero_()
            head.bias.copy_(torch.eye(3)[i])
        assert (method.predict(model, x).argmax(dim=1) == domain).float().mean() > 0.99
        if by == "cosine":
            method.reference = True
            assert (method.predict(model, x).argmax(dim=1) == domain).float().mean() < 0.01
    assert z.shape == (400, 2)


def test_the_discriminator_has_an_adam_of_its_own():
    model = network()
    method = make(model, by="discriminator", width=4, lr=0.01)
    method.beside(model, X)
    judge = copy.deepcopy(method.discriminator.modules["domain"])
    adam = torch.optim.Adam(judge.parameters(), lr=0.01, betas=(0.5, 0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        loss = F.cross_entropy(judge(model[0](X).detach()), DOMAIN)
        adam.zero_grad()
        loss.backward()
        adam.step()
        method.step(model, BATCH, optimizer)
        method.after_step()
    for p, q in zip(judge.parameters(), method.discriminator.modules.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    heads = method.side.optimizer  # those of the domains step as the network does
    assert isinstance(heads, torch.optim.SGD)
    assert heads.param_groups[0]["lr"] == 0.05


def test_prototypes_are_means_over_filled_slots_only():
    found = Prototypes(2, 3, 1)
    for value, domain in ((1.0, 0), (2.0, 0), (6.0, 0), (5.0, 1)):
        found.add(torch.tensor([[value], [value + 2]]), torch.tensor([domain, domain]))
    distances = found.distances(torch.zeros(1, 1), "l2")
    assert distances[0, 0].item() == (2 + 4 + 6 + 8) / 4  # the first of three batches is forgotten
    assert distances[0, 1].item() == 6
    assert distances[0, 2].item() == math.inf


def test_contract_and_refusals():
    assert len(check_method("drm")) >= 10
    for by in ("discriminator", "cosine"):
        check_method("drm", by=by)
    for name, value in (("gamma", -1.0), ("by", "x"), ("memory", 0), ("width", 0), ("lr", 0.0)):
        with pytest.raises(ValueError, match=name):
            om.create("drm", **{name: value})
    method = make(network())
    with pytest.raises(ValueError, match="trained"):
        OnlineDRM(method)
    train(method, method.given.model, 1)
    for name, value in (("labels", "x"), ("confidence", -1.0), ("repeats", 0)):
        with pytest.raises(ValueError, match=name):
            OnlineDRM(method, **{name: value})


def test_the_plain_mean_stays_one_beside_a_domain_without_prototype():
    fit = torch.tensor([[0.3, -torch.inf, -1.0], [torch.inf, 0.0, 0.0]])
    assert torch.equal(head_shares(fit, 0.0), torch.full((2, 3), 1 / 3))
