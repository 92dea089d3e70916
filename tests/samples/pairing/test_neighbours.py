"""Neighbour lists and uniform draws from them."""

import pytest
import torch

import omnimix as om
from omnimix.core.pairing import NONE
from omnimix.samples.pairing import neighbours
from omnimix.samples.pairing.neighbours import Neighbours, nearest_others, standardised


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prepared(nearest, feature):
    pairing = Neighbours(nearest)
    pairing.prepare(om.Table(feature=feature), generator())
    return pairing


def lists(feature, count):
    return nearest_others(standardised(feature), torch.arange(len(feature)), count)


def test_lists_of_four_points_on_a_line():
    points = torch.tensor([0.0, 1.0, 3.0, 7.0])
    assert points[lists(points, 3)].tolist() == [[1, 3, 7], [0, 3, 7], [1, 0, 7], [3, 1, 0]]


def test_duplicates_are_each_others_first_neighbour():
    x = torch.randn(30, 4, generator=generator())
    x[17] = x[4]
    found = lists(x, 1).squeeze(1)
    assert found[17] == 4
    assert found[4] == 17


@pytest.mark.parametrize("count", [1, 2, 3, 7, 23])
def test_ties_are_broken_by_index(count):
    steps = torch.cartesian_prod(torch.arange(6.0), torch.arange(4.0)).double()
    z = standardised(steps)
    distance = torch.cdist(z, z).mul(1e6).round().fill_diagonal_(torch.inf)
    grid = steps / 10 + 100  # in doubles, equal distances now differ by rounding
    assert torch.equal(lists(grid, count), distance.argsort(dim=1, stable=True)[:, :count])


def test_lists_agree_with_brute_force():
    x = torch.randn(60, 3, generator=generator(1)) * torch.tensor([1.0, 100.0, 1e-3])
    z = (x - x.mean(0)) / x.std(0)
    distance = (z[:, None] - z[None]).square().sum(-1).fill_diagonal_(torch.inf)
    assert torch.equal(lists(x, 59), distance.argsort(dim=1)[:, :59])


def test_neighbourhood_is_not_mutual():
    near = lists(torch.tensor([0.0, 1.0, 1.4, 9.0]), 1).squeeze(1)
    assert near[3] == 2
    assert near[2] == 1


def test_constant_columns_count_for_nothing():
    x = torch.randn(40, 2, generator=generator(2))
    assert torch.equal(lists(torch.cat((x, torch.full((40, 1), 0.1)), dim=1), 5), lists(x, 5))
    assert torch.equal(standardised(torch.full((5, 1), 0.1)), torch.zeros(5, 1, dtype=torch.float64))


@pytest.mark.parametrize("nearest", [1, 3, 8, 18, 19])
def test_draws_are_uniform_over_the_first_k_others(nearest):
    x, times = torch.randn(20, 2, generator=generator(3)), 4000
    pairing = prepared(nearest, x)
    partner = pairing.draw(torch.arange(20).repeat_interleave(times), generator(4)).view(20, times)
    allowed = lists(x, nearest)
    for i in range(20):
        count = partner[i].bincount(minlength=20)
        assert count[allowed[i]].sum() == times
        mean = times / nearest
        chi2 = float((count[allowed[i]] - mean).square().sum() / mean)
        assert chi2 < (nearest - 1) + 5 * (2 * (nearest - 1)) ** 0.5 + 1e-9


def test_all_others_need_no_list():
    assert prepared(19, torch.randn(20, 2, generator=generator(3)))._lists.shape[1] == 0


def test_each_sample_has_its_own_k():
    x = torch.randn(6, 2, generator=generator(5))
    k = torch.tensor([0, 1, 2, 3, 4, 5])
    pairing = prepared(k, x)
    partner = pairing.draw(torch.arange(6).repeat_interleave(500), generator(6)).view(6, 500)
    assert (partner[0] == NONE).all()
    for i in range(1, 6):
        assert set(partner[i].tolist()) == set(lists(x, 5)[i, :i].tolist())


def test_long_lists_are_searched_anew_for_each_batch(monkeypatch):
    x, index = torch.randn(50, 3, generator=generator(7)), torch.tensor([4, 9, 4, 30, 11])
    k = torch.randint(0, 50, (50,), generator=generator(8))
    expected = prepared(k, x).draw(index, generator(9))
    monkeypatch.setattr(neighbours, "LISTED", 10)
    searched = prepared(k, x)
    assert searched._lists.shape[1] == 0
    assert torch.equal(searched.draw(index, generator(9)), expected)


def test_bad_arguments_are_named():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"nearest must lie in 0\.\.4, .* got 5\.\.5"):
        prepared(5, x)
    with pytest.raises(ValueError, match="nearest must be an integer >= 0, got -1"):
        Neighbours(-1)
    with pytest.raises(ValueError, match=r"nearest must be an integer or hold one a training sample \(5\)"):
        prepared(torch.tensor([1, 2]), x)
    with pytest.raises(ValueError, match="NaN or infinite"):
        prepared(1, torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match="whole training set"):
        Neighbours(1).prepare(None, generator())


def test_a_single_sample_has_no_neighbour():
    assert prepared(0, torch.randn(1, 2)).draw(torch.zeros(3, dtype=torch.long), generator()).tolist() == [[NONE]] * 3


def test_no_neighbours_are_sought_for_rows_without_any(monkeypatch):
    x, sought, search = torch.randn(20, 2, generator=generator(3)), [], nearest_others

    def watched(z, index, count):
        sought.extend(index.tolist())
        return search(z, index, count)

    monkeypatch.setattr(neighbours, "nearest_others", watched)
    assert (prepared(0, x).draw(torch.arange(20), generator()) == NONE).all()
    assert sought == []
