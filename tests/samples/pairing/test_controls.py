"""Controls of selecting methods: the same pairs without mixing, resampling only, resampled first samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.pairing import NONE, InBatch
from omnimix.core.ratio import Beta
from omnimix.samples.pairing import (
    CMixup,
    Criterion,
    PairsWithoutMixing,
    RegMix,
    Resampled,
    ResamplingOnly,
    SelectiveMixup,
    controls,
    report,
)

Y = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
D = torch.tensor([0] * 60 + [1] * 20 + [0] * 5 + [1] * 15)


class NextRow(InBatch):
    """Row i meets row i + 1; the last has no candidate."""

    def partners(self, batch, generator):
        own = torch.arange(len(batch))
        return torch.where(own + 1 < len(batch), own + 1, NONE)[:, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def net(outputs=3):
    model = nn.Linear(4, outputs)
    with torch.no_grad():
        model.weight.copy_(torch.randn(outputs, 4, generator=generator(11)))
    return model


def inputs(rows):
    return torch.randn(rows, 4, generator=generator(12))


def ready(method, model=None, **columns):
    table = om.Table(**(columns or {"label": Y, "domain": D}))
    return method.setup(model or net(), om.Classification(3), table, generator=generator(5))


def load(method, x, y, index):
    """The batch that a loop loads for `index`."""
    anchors, guests = method.rows(index)
    rows = anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))
    return om.Batch(x[rows], y[rows], index=rows, anchors=len(anchors))


def test_pairs_without_mixing_averages_the_losses_of_both_samples():
    model, x = net(), inputs(100)
    method = ready(PairsWithoutMixing(Criterion("different")), model)
    batch = load(method, x, Y, torch.arange(0, 100, 7))
    first, second = batch.y[:15], batch.y[15:]
    assert (first != second).all()
    expected = (F.cross_entropy(model(batch.x[:15]), first) + F.cross_entropy(model(batch.x[15:]), second)) / 2
    torch.testing.assert_close(method.loss(model, batch), expected)


def test_pairs_without_mixing_takes_one_forward_pass():
    model, calls = net(), []
    model.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    method = ready(PairsWithoutMixing(Criterion("different")), model)
    method.loss(model, load(method, inputs(100), Y, torch.arange(8)))
    assert calls == [16]


def test_pairs_without_mixing_works_with_partners_from_the_batch():
    model, x, y = net(), inputs(4), torch.tensor([0, 1, 2, 0])
    losses = F.cross_entropy(model(x), y, reduction="none")
    expected = (losses[0] + 2 * losses[1] + 2 * losses[2] + 3 * losses[3]) / 8  # the last row stays alone
    method = ready(PairsWithoutMixing(NextRow()), model)
    torch.testing.assert_close(method.loss(model, (x, y)), expected)
    assert method.pairing.missing == 1


def test_pairs_of_any_kind_are_plain_training_on_twice_the_samples_in_expectation():
    model, x = net(), inputs(100)
    method = ready(PairsWithoutMixing(Criterion("any", "any")), model)
    seen = [float(method.loss(model, load(method, x, Y, torch.arange(100))).detach()) for _ in range(2000)]
    losses = F.cross_entropy(model(x), Y, reduction="none").detach()
    error = float(losses.std()) / 2 / (100 * 2000) ** 0.5
    assert abs(sum(seen) / 2000 - float(losses.mean())) < 5 * error


@pytest.mark.parametrize("criterion", [("different", "any"), ("same", "different"), ("different", "same")])
def test_both_controls_see_the_effective_distribution(criterion):
    expected = report(Y, D, criterion=criterion).effective
    index = torch.arange(100).repeat(2000)
    chosen, guests = ready(ResamplingOnly(Criterion(*criterion))).rows(index)
    assert guests is None
    pairs = ready(PairsWithoutMixing(Criterion(*criterion)))
    anchors, partners = pairs.rows(index)
    for rows in (chosen, torch.cat((anchors, partners.squeeze(1)))):
        seen = (Y[rows] * 2 + D[rows]).bincount(minlength=6).view(3, 2) / len(rows)
        assert (seen - expected).abs().max() < 0.006


def test_resampling_only_trains_on_as_many_samples_as_plain_training():
    model, x = net(), inputs(100)
    method = ready(ResamplingOnly(Criterion("different")), model)
    batch = load(method, x, Y, torch.arange(30))
    assert batch.x.shape[0] == 30
    torch.testing.assert_close(method.loss(model, batch), F.cross_entropy(model(batch.x), batch.y))


def test_resampling_only_picks_from_the_batch_where_partners_do():
    model, x, y = net(), inputs(4), torch.tensor([0, 1, 2, 0])
    losses = F.cross_entropy(model(x), y, reduction="none").detach()
    method = ready(ResamplingOnly(NextRow()), model)
    assert method.rows(torch.arange(4))[1] is None
    seen = torch.stack([method.loss(model, (x, y)).detach() for _ in range(4000)])
    expected = (losses[0] + 2 * losses[1] + 2 * losses[2] + 3 * losses[3]) / 8
    assert float(seen.mean()) == pytest.approx(float(expected), abs=5 * float(seen.std()) / 4000**0.5)
    low = (torch.minimum(losses[:3], losses[1:]).sum() + losses[3]) / 4
    assert float(seen.min()) == pytest.approx(float(low), abs=1e-6)


def test_the_controls_see_the_pairs_of_the_method():
    method = SelectiveMixup("same", "different")
    made = controls(method)
    assert list(made) == ["pairs", "resampling"]
    index = torch.arange(100)
    own = ready(method).rows(index)[1]
    assert torch.equal(ready(made["pairs"]).rows(index)[1], own)
    chosen = ready(made["resampling"]).rows(index)[0]
    assert ((chosen == index) | (chosen == own.squeeze(1))).all()
    assert all(control.needs == ("label", "domain") for control in made.values())


def test_a_method_that_mixes_some_steps_has_controls_that_select_in_as_many():
    method = om.Mix(Criterion("different"), Beta(1.0), probability=0.25)
    made = controls(method)
    model, x = net(), inputs(100)
    pairs = ready(made["pairs"], model)
    batch = load(pairs, x, Y, torch.arange(100))
    seen = torch.stack([pairs.loss(model, batch).detach() for _ in range(400)])
    losses = F.cross_entropy(model(x), Y, reduction="none").detach()
    partner = F.cross_entropy(model(batch.x[100:]), batch.y[100:]).detach()
    expected = losses.mean() + 0.125 * (partner - losses.mean())
    assert float(seen.mean()) == pytest.approx(float(expected), abs=5 * float(seen.std()) / 20)
    chosen = ready(made["resampling"]).rows(torch.arange(100).repeat(500))[0].view(500, 100)
    assert float((chosen != torch.arange(100)).double().mean()) == pytest.approx(0.125, abs=0.01)


def test_controls_refuse_methods_that_do_not_select():
    for method in (om.Mixup(), om.ERM()):
        with pytest.raises(ValueError, match="does not select partners"):
            controls(method)


@pytest.mark.parametrize(("control", "kind"), [("pairs", PairsWithoutMixing), ("resampling", ResamplingOnly)])
def test_controls_are_made_by_name(control, kind):
    assert isinstance(om.create("selective-mixup", control=control), kind)
    assert isinstance(om.create("lisa", control=control), kind)


@pytest.mark.parametrize("method", [PairsWithoutMixing(NextRow()), ResamplingOnly(NextRow()), Resampled("class")])
def test_evaluation_is_plain(method):
    model, x, y = net().eval(), inputs(4), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(ready(method, model).loss(model, (x, y)), F.cross_entropy(model(x), y))


@pytest.mark.parametrize(("by", "groups"), [("class", Y), ("domain", D), ("cell", 2 * Y + D)])
def test_resampling_makes_groups_and_the_rows_within_them_equally_frequent(by, groups):
    rows, guests = ready(Resampled(by)).rows(torch.zeros(200_000, dtype=torch.long))
    assert guests is None
    sizes = groups.bincount()
    expected = 1 / ((sizes > 0).sum() * sizes[groups])
    seen = rows.bincount(minlength=100) / 200_000
    assert ((seen - expected).abs() < 6 * (expected / 200_000).sqrt()).all()


def test_resampling_composes_with_a_method_that_selects():
    method = ready(Resampled("class", SelectiveMixup("different")))
    anchors, guests = method.rows(torch.zeros(30_000, dtype=torch.long))
    assert (Y[anchors] != Y[guests.squeeze(1)]).all()
    assert float((Y[anchors] == 2).double().mean()) == pytest.approx(1 / 3, abs=0.02)


def test_resampling_composes_with_mixup():
    model, x = net(), inputs(100)
    method = ready(om.create("resampling", by="class", method="mixup"), model)
    batch = load(method, x, Y, torch.arange(16))
    loss = method.loss(model, batch)
    assert loss.requires_grad
    assert not torch.allclose(loss, F.cross_entropy(model(batch.x), batch.y))


def test_resampling_refuses_batches_it_did_not_choose():
    model = net()
    with pytest.raises(ValueError, match=r"method\.rows"):
        ready(Resampled("class"), model).loss(model, (inputs(4), torch.zeros(4, dtype=torch.long)))


def test_resampling_needs_its_columns():
    with pytest.raises(ValueError, match="'domain'"):
        ready(Resampled("cell"), label=Y)
    with pytest.raises(ValueError, match="by must be one of 'class', 'domain', 'cell', got 'row'"):
        om.create("resampling", by="row")
    assert Resampled("class", SelectiveMixup("same", "different")).needs == ("label", "domain")


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairsWithoutMixing(Criterion("different")),
        lambda: ResamplingOnly(Criterion("different")),
        lambda: Resampled("class", SelectiveMixup()),
    ],
)
def test_state_resumes_the_stream_of_rows(make):
    method, resumed, index = ready(make()), ready(make()), torch.arange(20)
    method.rows(index)
    resumed.load_state_dict(method.state_dict())
    for expected, found in zip(method.rows(index), resumed.rows(index), strict=True):
        assert found is expected is None or torch.equal(found, expected)


def test_resampling_trains_through_a_partner_loader():
    model = net()
    method = ready(Resampled("class", om.Mixup(1.0)), model)
    data = torch.utils.data.TensorDataset(inputs(100), Y)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for batch in om.partner_loader(data, method, 20, generator=generator()):
        seen.append(batch.y)
        method.step(model, batch, optimizer)
        method.after_step()
    assert method.steps_done == method.method.steps_done == 5
    assert torch.cat(seen).bincount().min() > 20


def test_resampling_keeps_guests_that_are_only_candidates_and_chooses_once():
    y = torch.arange(100) // 50 * 1000.0  # two groups of labels: partners come from the own one
    method = controls(CMixup(bandwidth=1.0, batch=True))["resampling"]
    method.setup(torch.nn.Linear(4, 1), om.Regression(1), om.Table(label=y), generator=generator(5))
    index = torch.arange(0, 100, 5)
    anchors, guests = method.rows(index)
    assert torch.equal(anchors, index)
    assert guests.shape == (20, 1)
    seen = []
    constant = nn.Linear(4, 1)
    nn.init.zeros_(constant.weight)
    nn.init.zeros_(constant.bias)
    for _ in range(20):
        batch = load(method, inputs(100), y, index)
        seen.append(float(method.loss(constant, batch).detach()))
    assert seen == pytest.approx([5e5] * 20)  # every anchor is replaced within its group


def test_controls_refuse_neighbours_yet_to_be_learned():
    for k in ("learned", "global"):
        with pytest.raises(ValueError, match=rf"RegMix\(k='{k}'\).*give k as a number"):
            controls(RegMix(k))
    assert controls(RegMix(3))["pairs"].pairing.given == 3


def test_resampled_passes_on_what_the_method_is_told():
    class Told(om.ERM):
        def __init__(self):
            super().__init__()
            self.heard = []

        def before_epoch(self):
            self.heard.append("epoch")

        def after_validation(self, loss):
            self.heard.append(loss)

        def after_training(self, model, batches):
            self.heard.append("end")

        def predict_in(self, model, x, domain):
            return domain

    method = Resampled("class", told := Told())
    method.before_epoch()
    method.after_validation(0.5)
    method.after_training(torch.nn.Identity(), [])
    assert told.heard == ["epoch", 0.5, "end"]
    assert method.predict_in(torch.nn.Identity(), torch.ones(2), torch.arange(2)).tolist() == [0, 1]
