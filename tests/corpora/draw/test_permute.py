import numpy as np
import pytest

from omnimix.corpora.draw import permuted


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_every_row_comes_once(n):
    assert sorted(permuted(np.arange(n), n, 3, 1, 4).tolist()) == list(range(n))


def test_the_order_follows_from_the_key_alone():
    place = np.arange(500)
    assert np.array_equal(permuted(place, 500, 1, 2), np.array([permuted(np.array([i]), 500, 1, 2)[0] for i in place]))
    others = [permuted(place, 500, *key) for key in ((2, 1), (1, 3), (1,), (1, 2, 0))]
    assert all((permuted(place, 500, 1, 2) == other).mean() < 0.05 for other in others)


def test_first_rows_are_uniform_over_keys():
    first = np.array([permuted(np.array([0, 7]), 10, key) for key in range(4000)])
    for column in first.T:
        expected = len(first) / 10
        chi2 = ((np.bincount(column, minlength=10) - expected) ** 2 / expected).sum()
        assert chi2 < 27.9  # the .999 quantile with 9 degrees of freedom
    assert (first[:, 0] != first[:, 1]).all()


def test_neighbours_are_scattered_among_very_many_rows():
    row = permuted(np.arange(2000), 10**12, 5)
    assert row.max() > 0.99e12
    assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.1
    assert len(set(row.tolist())) == 2000


@pytest.mark.parametrize("place", [[-1], [5]])
def test_places_outside_are_refused(place):
    with pytest.raises(ValueError, match=r"0\.\.4"):
        permuted(np.array(place), 5, 0)


def test_several_orders_at_once_are_those_orders():
    random = np.random.default_rng(0)
    sizes = np.array([1, 5, 1000, 70_000])
    which, epoch = random.integers(0, 4, 200), random.integers(0, 3, 200)
    place = random.integers(0, sizes[which])
    found = permuted(place, sizes[which], 7, which, epoch)
    for domain in range(4):
        for number in range(3):
            own = (which == domain) & (epoch == number)
            assert (found[own] == permuted(place[own], int(sizes[domain]), 7, domain, number)).all()
    with pytest.raises(ValueError, match="places must lie"):
        permuted(np.array([0, 5]), np.array([1, 5]), 0)
