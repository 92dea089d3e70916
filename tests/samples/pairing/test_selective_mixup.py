"""Selective mixup: exact conditional draws, the effective distributions of the card, LISA."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.pairing import NONE
from omnimix.core.ratio import Constant
from omnimix.samples.pairing import Criterion, Either, SelectiveMixup, effective_distribution, entropy, report

RELATIONS = ("any", "same", "different")
ALL = [(label, domain) for label in RELATIONS for domain in RELATIONS]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def related(values, relation):
    """(N, N) who is in the relation with whom, by brute force."""
    same = values[:, None] == values[None, :]
    return {"any": torch.ones_like(same), "same": same, "different": ~same}[relation]


def draws(pairing, rows, times, seed=1):
    index = torch.arange(rows).repeat_interleave(times)
    return pairing.draw(index, generator(seed)).view(rows, times)


@pytest.mark.parametrize(("label", "domain"), ALL)
def test_draws_are_uniform_over_exactly_the_eligible_rows(label, domain):
    rows, times = 23, 4000
    y = torch.randint(0, 4, (rows,), generator=generator(3)) * 5 - 7  # ids need not be 0..K-1
    d = torch.randint(0, 3, (rows,), generator=generator(4)) + 10
    pairing = Criterion(label, domain)
    pairing.prepare(om.Table(label=y, domain=d), generator())
    eligible = related(y, label) & related(d, domain)
    partner = draws(pairing, rows, times)
    for i in range(rows):
        expected = eligible[i].sum()
        if expected == 0:
            assert (partner[i] == NONE).all()
            continue
        count = partner[i].bincount(minlength=rows)
        assert (count[~eligible[i]] == 0).all()
        mean = times / expected
        chi2 = ((count[eligible[i]] - mean) ** 2 / mean).sum()
        dof = expected - 1
        assert chi2 <= dof + 5 * (2 * dof) ** 0.5 + 1e-9


@pytest.mark.parametrize(("label", "domain"), ALL)
def test_every_pair_satisfies_its_criterion_when_cells_are_many(label, domain):
    rows = 20_000
    y = torch.randint(0, 3000, (rows,), generator=generator(3))
    d = torch.randint(0, 500, (rows,), generator=generator(4))
    pairing = Criterion(label, domain)
    pairing.prepare(om.Table(label=y, domain=d), generator())
    index = torch.randperm(rows, generator=generator(5))
    partner = pairing.draw(index, generator(6)).squeeze(1)
    found = partner != NONE
    for values, relation in ((y, label), (d, domain)):
        if relation != "any":
            assert ((values[index] == values[partner])[found] == (relation == "same")).all()
    if "different" not in (label, domain):
        assert found.all()


def test_partner_frequencies_match_the_formula():
    p = torch.tensor([[0.5, 0.1, 0.05], [0.02, 0.2, 0.13]])
    cells = torch.multinomial(p.flatten(), 5000, replacement=True, generator=generator(2))
    y, d = cells // 3, cells % 3
    for label, domain in ALL:
        pairing = Criterion(label, domain)
        pairing.prepare(om.Table(label=y, domain=d), generator())
        index = torch.randint(0, 5000, (100_000,), generator=generator(7))
        partner = pairing.draw(index, generator(8)).squeeze(1)
        seen = cells[partner].bincount(minlength=6) / 100_000
        expected = report(y, d, criterion=(label, domain)).partner.flatten()
        assert (seen - expected).abs().max() < 6 * (0.25 / 100_000) ** 0.5


def test_a_sample_without_candidates_stays_unmixed_and_is_counted():
    method = SelectiveMixup()
    table = om.Table(label=torch.zeros(6, dtype=torch.long))
    method.setup(nn.Linear(2, 2), om.Classification(2), table, generator=generator())
    index = torch.tensor([3, 1])
    anchors, guests = method.rows(index)
    assert torch.equal(anchors, index)
    assert torch.equal(guests, index[:, None])
    assert method.pairing.missing == 2
    batch = om.Batch(torch.randn(4, 2), torch.zeros(4, dtype=torch.long), index=torch.tensor([3, 1, 3, 1]), anchors=2)
    assert method.recipe(batch).unmixed.all()


def test_a_sample_is_its_own_candidate_where_it_satisfies_the_criterion():
    pairing = Criterion("same", "same")
    pairing.prepare(om.Table(label=torch.arange(4), domain=torch.zeros(4, dtype=torch.long)), generator())
    assert torch.equal(pairing.draw(torch.arange(4), generator()).squeeze(1), torch.arange(4))


def test_soft_labels_count_as_their_largest_class_and_real_ones_are_refused():
    hard = torch.tensor([0, 2, 1, 0, 2])
    pairing, soft = Criterion("different"), Criterion("different")
    pairing.prepare(om.Table(label=hard), generator())
    soft.prepare(om.Table(label=nn.functional.one_hot(hard).float() * 0.8 + 0.1), generator())
    index = torch.arange(5)
    assert torch.equal(pairing.draw(index, generator(1)), soft.draw(index, generator(1)))
    with pytest.raises(ValueError, match=r"'label' must hold one integer id"):
        Criterion("different").prepare(om.Table(label=torch.randn(5)), generator())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"domain must be one of 'any', 'same', 'different', got 'other'"):
        Criterion("same", "other")
    with pytest.raises(ValueError, match="control must be one of"):
        om.create("selective-mixup", control="none")
    with pytest.raises(ValueError, match="'domain'"):
        om.create("selective-mixup", domain="same").setup(
            nn.Linear(2, 2), om.Classification(2), om.Table(label=torch.tensor([0, 1]))
        )
    with pytest.raises(ValueError, match="whole training set"):
        Criterion().prepare(None, generator())


def test_two_classes_give_the_balanced_distribution():
    found = effective_distribution(torch.tensor([0.8, 0.2]), label="different")
    torch.testing.assert_close(found.partner, torch.tensor([0.2, 0.8]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.effective, torch.tensor([0.5, 0.5]).double(), atol=1e-6, rtol=0)


def test_three_and_four_classes_by_hand():
    found = effective_distribution(torch.tensor([0.7, 0.2, 0.1]), label="different")
    expected = torch.tensor([0.252778, 0.488889, 0.258333]).double()
    torch.testing.assert_close(found.partner, expected, atol=1e-6, rtol=0)
    expected = torch.tensor([0.476389, 0.344444, 0.179167]).double()
    torch.testing.assert_close(found.effective, expected, atol=1e-6, rtol=0)
    assert float(entropy(found.first)) == pytest.approx(0.801819, abs=1e-6)
    assert float(entropy(found.effective)) == pytest.approx(1.028435, abs=1e-6)

    found = effective_distribution(torch.tensor([0.4, 0.3, 0.2, 0.1]), label="different")
    expected = torch.tensor([0.357937, 0.304167, 0.220635, 0.117262]).double()
    torch.testing.assert_close(found.effective, expected, atol=1e-6, rtol=0)
    assert float(entropy(found.first)) == pytest.approx(1.279854, abs=1e-6)
    assert float(entropy(found.effective)) == pytest.approx(1.314523, abs=1e-6)


def test_joint_table_of_classes_and_domains_by_hand():
    joint = torch.tensor([[0.73, 0.04], [0.01, 0.22]]).double()
    found = effective_distribution(joint, label="same", domain="different")
    torch.testing.assert_close(found.partner, torch.tensor([[0.04, 0.73], [0.22, 0.01]]).double())
    torch.testing.assert_close(found.effective, torch.tensor([[0.385, 0.385], [0.115, 0.115]]).double())
    found = effective_distribution(joint, label="different", domain="same")
    torch.testing.assert_close(found.partner, torch.tensor([[0.01, 0.22], [0.73, 0.04]]).double())
    torch.testing.assert_close(found.effective, torch.tensor([[0.37, 0.13], [0.37, 0.13]]).double())


@pytest.mark.parametrize(("label", "domain"), ALL)
def test_effective_distribution_agrees_with_the_sum_over_samples(label, domain):
    counts = torch.tensor([[5, 0, 2], [0, 0, 0], [1, 3, 0], [4, 1, 1]])
    cells = torch.arange(12).repeat_interleave(counts.flatten())
    eligible = (related(cells // 3, label) & related(cells % 3, domain)).double()
    stranded = eligible.sum(1) == 0
    eligible[stranded] = torch.eye(len(cells)).double()[stranded]
    chance = (eligible / eligible.sum(1, keepdim=True)).mean(0)
    expected = torch.zeros(12).double().scatter_add_(0, cells, chance).view(4, 3)
    found = effective_distribution(counts, label=label, domain=domain)
    torch.testing.assert_close(found.partner, expected)
    assert float(found.effective.sum()) == pytest.approx(1)


def test_same_class_keeps_the_classes_but_can_move_the_domains():
    joint = torch.tensor([[0.73, 0.04], [0.01, 0.22]]).double()
    found = effective_distribution(joint, label="same", domain="different")
    torch.testing.assert_close(found.partner.sum(1), joint.sum(1))
    assert (found.partner.sum(0) - joint.sum(0)).abs().max() > 0.4


def test_a_folded_share_moves_back_towards_the_data():
    found = effective_distribution(torch.tensor([0.8, 0.2]), label="different", share=0.75)
    torch.testing.assert_close(found.effective, torch.tensor([0.65, 0.35]).double(), atol=1e-6, rtol=0)


def test_entropy_never_falls_below_that_of_the_data():
    source = generator(9)
    for classes in range(2, 21):
        for _ in range(20):
            p = torch.rand(classes, generator=source).double() ** 4
            found = effective_distribution(p, label="different")
            assert entropy(found.effective) >= entropy(found.first) - 1e-12


def test_report_prints_every_cell():
    text = str(report(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1]), criterion=("different", "any")))
    assert text.count("\n") == 5
    assert text.splitlines()[1].split() == ["0", "0", "0.2500", "0.0833", "0.1667"]
    assert str(report(torch.tensor([0, 1, 1, 1]), criterion=("different", "any"))).splitlines()[1].split()[2:] == [
        "0.2500",
        "0.7500",
        "0.5000",
    ]


def test_effective_distribution_refuses_nonsense():
    for joint in (torch.tensor([0.5, -0.5]), torch.zeros(3), torch.ones(2, 2, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="joint must be"):
            effective_distribution(joint)


def test_share_one_is_plain_training():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(10, 3), torch.arange(10) % 2
    method = SelectiveMixup().setup(model, om.Classification(2), om.Table(label=y), generator=generator())
    method.ratio = Constant(1.0)
    anchors, guests = method.rows(torch.arange(10))
    rows = torch.cat((anchors, guests.T.reshape(-1)))
    loss = method.loss(model, om.Batch(x[rows], y[rows], index=rows, anchors=10))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(x), y))


def test_lisa_is_the_mixture_of_two_criteria():
    cells = torch.arange(4).repeat_interleave(torch.tensor([40, 10, 20, 30]))
    table = om.Table(label=cells // 2, domain=cells % 2)
    method = om.create("lisa", p=0.8).setup(nn.Linear(2, 2), om.Classification(2), table, generator=generator())
    index = torch.arange(100).repeat(200)
    partner = method.pairing.draw(index, generator(1)).squeeze(1)
    same_class = table["label"][index] == table["label"][partner]
    same_domain = table["domain"][index] == table["domain"][partner]
    assert (same_class ^ same_domain).all()
    assert float(same_class.double().mean()) == pytest.approx(0.8, abs=0.015)


def test_either_refuses_pairings_of_different_size():
    second = Criterion()
    second.k = 3
    with pytest.raises(ValueError, match="k = 2 and 3"):
        Either(Criterion(), second)


def test_a_partner_loader_brings_partners_of_the_other_class():
    y = torch.tensor([0] * 30 + [1] * 3)
    method = om.create("selective-mixup").setup(nn.Linear(1, 2), om.Classification(2), om.Table(label=y))
    data = torch.utils.data.TensorDataset(torch.arange(33.0)[:, None], y)
    for batch in om.partner_loader(data, method, 8, generator=generator()):
        own, partner = batch.y[: len(batch)], batch.y[len(batch) :]
        assert torch.equal(own, 1 - partner)
