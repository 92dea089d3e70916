import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.pairing import NONE, InBatch, InTable
from omnimix.core.ratio import Constant

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))


def net():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p) * (i + 1) / 4)
    return model


class Next(InTable):
    """The partner of row i is row i + 1; the last row has none."""

    def prepare(self, table, generator):
        self.count = len(table)

    def draw(self, index, generator):
        return torch.where(index + 1 < self.count, index + 1, NONE).unsqueeze(1)


class Nobody(InBatch):
    def partners(self, batch, generator):
        return torch.full((len(batch), 1), NONE)


def test_partners_from_the_whole_training_set_come_as_guests():
    model = net()
    method = om.Mix(Next(), Constant(0.25)).setup(model, om.Classification(3), om.Table(label=Y))
    _, guests = method.rows(torch.tensor([3, 11]))
    assert guests.tolist() == [[4], [11]]
    rows = torch.tensor([3, 11, 4, 11])
    batch = om.Batch(X[rows], Y[rows], index=rows, anchors=2)
    recipe = method.recipe(batch)
    assert recipe.partner.tolist() == [[0, 2], [1, 1]]
    mixed = method.mix(batch, recipe)
    assert torch.allclose(mixed.x, torch.stack((0.25 * X[3] + 0.75 * X[4], X[11])))
    assert torch.equal(mixed.x[1], X[11])
    assert method.pairing.missing == 1


def test_a_batch_without_its_guests_is_refused_with_the_remedy():
    method = om.Mix(Next()).setup(net(), om.Classification(3), om.Table(label=Y))
    with pytest.raises(ValueError, match="partner_loader"):
        method.loss(net(), (X, Y))


def test_no_candidate_leaves_the_rows_unmixed():
    model = net()
    method = om.Mix(Nobody()).setup(model, om.Classification(3))
    assert torch.allclose(method.loss(model, (X, Y)), method.plain_loss(model, om.Batch(X, Y)))
    assert method.pairing.missing == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_partner_loader_brings_the_guests(workers):
    method = om.Mix(Next()).setup(net(), om.Classification(3), om.Table(label=Y), generator=torch.Generator())
    dataset = torch.utils.data.TensorDataset(X, Y)
    batches = list(
        om.partner_loader(dataset, method, 5, generator=torch.Generator().manual_seed(2), num_workers=workers)
    )
    assert [len(b) for b in batches] == [5, 5, 2]
    assert sorted(i for b in batches for i in b.alone.index.tolist()) == list(range(12))
    for batch in batches:
        expected = batch.index[: len(batch)] + 1
        assert torch.equal(batch.index[len(batch) :], expected.clamp(max=11))
        assert torch.equal(batch.x, X[batch.index])
        assert torch.isfinite(method.loss(net(), batch))


def test_hidden_mixing_of_guests_returns_only_anchor_rows():
    model = net()
    method = om.Mix(Next(), Constant(0.5), places=("1",)).setup(model, om.Classification(3), om.Table(label=Y))
    rows = torch.tensor([0, 5, 1, 6])
    batch = om.Batch(X[rows], Y[rows], index=rows, anchors=2)
    output, recipe = method.forward(model, batch, method.recipe(batch))
    hidden = model[:2](X)
    assert torch.allclose(output, model[2](torch.stack((hidden[:2].mean(0), hidden[5:7].mean(0)))), atol=1e-6)
    assert recipe.place == "1"


def test_places_are_drawn_uniformly():
    method = om.Mix(places=("input", "0", "1")).setup(
        net(), om.Classification(3), generator=torch.Generator().manual_seed(0)
    )
    batch = om.Batch(X, Y)
    places = [method.recipe(batch).place for _ in range(900)]
    assert all(abs(places.count(p) - 300) < 60 for p in ("input", "0", "1"))
    with pytest.raises(ValueError, match="tap 'nowhere' is not a module"):
        om.Mix(places=("nowhere",)).setup(net(), om.Classification(3))
    with pytest.raises(ValueError, match="places must be"):
        om.Mix(places="input")


def test_probability_is_the_share_of_mixed_steps():
    method = om.Mix(probability=0.25).setup(net(), om.Classification(3), generator=torch.Generator().manual_seed(0))
    mixed = sum(method.recipe(om.Batch(X, Y)) is not None for _ in range(2_000))
    assert 420 < mixed < 580


class Tag(om.Method):
    """Returns its own number as the loss."""

    def __init__(self, number):
        self.number = number

    def loss(self, model, batch, **streams):
        return torch.tensor(float(self.number))


def run(method, count, planned=None):
    model = net()
    method.setup(model, om.Classification(3), generator=torch.Generator().manual_seed(5), steps=planned)
    found = []
    for _ in range(count):
        found.append(int(method.loss(model, (X, Y))))
        method.after_step()
    return found


def test_alternate_choose_and_until():
    assert run(om.Alternate([Tag(0), Tag(1), Tag(2)]), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert run(om.Until(Tag(0), Tag(1), 0.4), 10, planned=10) == [0] * 4 + [1] * 6
    assert run(om.Until(Tag(0), Tag(1), 0.0), 3, planned=10) == [1] * 3
    draws = run(om.Choose([Tag(0), Tag(1)], [0.2, 0.8]), 2_000)
    assert 330 < draws.count(0) < 470
    with pytest.raises(ValueError, match="sum to 1"):
        om.Choose([Tag(0), Tag(1)], [0.2, 0.2])
    with pytest.raises(ValueError, match="pass setup"):
        run(om.Until(Tag(0), Tag(1), 0.4), 1)


def test_the_method_that_asked_for_rows_gets_the_batch():
    model = net()
    method = om.Choose([om.Mix(Next()), om.ERM()]).setup(
        model, om.Classification(3), om.Table(label=Y), generator=torch.Generator().manual_seed(0)
    )
    columns = set()
    for _ in range(20):
        anchors, guests = method.rows(torch.tensor([0, 1]))
        rows = anchors if guests is None else torch.cat((anchors, guests[:, 0]))
        batch = om.Batch(X[rows], Y[rows], index=rows, anchors=2)
        columns.add(batch.columns)
        method.loss(model, batch)  # a method without guests would refuse the other's batch
    assert columns == {1, 2}


def test_combined_state_continues_exactly():
    def losses(method, model, steps):
        return [float(method.loss(model, (X, Y)).detach()) for _ in range(steps)]

    model = net()

    def build(seed):
        parts = [om.Mixup(1.0), om.Choose([om.Mixup(0.2), om.ERM()])]
        return om.Alternate(parts).setup(model, om.Classification(3), generator=torch.Generator().manual_seed(seed))

    first = build(0)
    losses(first, model, 3)
    state = first.state_dict()
    other = build(1)
    other.load_state_dict(state)
    assert losses(first, model, 6) == losses(other, model, 6)


def test_choices_for_batches_that_were_fetched_but_not_trained_on_are_forgotten():
    model = net()
    method = om.Until(om.Mix(Next()), om.ERM(), 0.5)
    method.setup(model, om.Classification(3), om.Table(label=Y), steps=8, generator=torch.Generator())
    loader = om.partner_loader(torch.utils.data.TensorDataset(X, Y), method, 3, num_workers=1)
    columns = []
    for _ in range(4):
        for batch, _ in zip(loader, range(2), strict=False):
            columns.append(batch.columns)
            method.loss(model, batch)
    assert columns == [2] * 4 + [1] * 4


def test_shares_drawn_ahead_are_part_of_the_state():
    model = net()

    def start(seed):
        method = om.Mixup(1.0).setup(model, om.Classification(3), generator=torch.Generator().manual_seed(seed))
        list(method.plan([torch.arange(12)] * 5))
        return method

    def losses(method):
        return [float(method.loss(model, (X, Y)).detach()) for _ in range(6)]

    first, other = start(0), start(1)
    first.loss(model, (X, Y))
    other.load_state_dict(first.state_dict())
    assert losses(first) == losses(other)


def test_a_tap_without_the_rows_first_is_refused():
    class Swap(nn.Module):
        def forward(self, x):
            return x.T

    model = nn.Sequential(nn.Linear(3, 5), Swap(), nn.Flatten(0))
    method = om.Mix(places=("1",)).setup(model, om.Classification(3))
    with pytest.raises(ValueError, match=r"tap '1' gives \(5, 12\), but the batch has 12 rows"):
        method.loss(model, (X, Y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: om.mixup(X.numpy(), Y), "found ndarray; use torch.as_tensor"),
        (lambda: om.mixup(X, Y.tolist()), "batch.y must be a tensor, got list"),
        (lambda: om.mixup(X, Y, generator=3), "generator must be a torch.Generator or None, got 3"),
        (lambda: om.Table(label=[1, 2]), "column 'label' must be a tensor"),
        (lambda: om.create("mixup").setup(net(), "classification"), "task must be an omnimix.Task"),
        (lambda: om.create("c-mixup").setup(net(), om.Classification(3)), "CMixup is for regression"),
        (lambda: om.partner_loader(torch.utils.data.TensorDataset(X, Y), om.Mixup(), 4), "call Mixup.setup"),
        (lambda: om.collate("mixup"), "collate needs a function"),
        (lambda: om.collate(om.mixup, alfa=1), "unexpected keyword argument 'alfa'|got an unexpected"),
        (lambda: om.register("my method:a", paper="x")(om.ERM), "name must be lower-case"),
        (lambda: om.register("zz", paper="x")(3), "register decorates a Method class"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
