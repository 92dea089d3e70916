import pytest
import torch

import omnimix as om
from omnimix.samples.pairing import Derangement


def partners(rows, k, seed):
    batch = om.Batch(torch.zeros(rows, 1), torch.zeros(rows))
    return Derangement(k)(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "k"), [(2, 2), (5, 2), (5, 3), (3, 3)])
def test_nobody_meets_itself_or_anybody_twice(rows, k):
    for seed in range(20):
        found = partners(rows, k, seed)
        assert all(len(set(row)) == k for row in found.tolist())
        assert all(sorted(column) == list(range(rows)) for column in found.T.tolist())


def test_every_cycle_is_as_likely():
    found = [tuple(partners(4, 2, seed)[:, 1].tolist()) for seed in range(600)]
    counts = torch.tensor([found.count(cycle) for cycle in set(found)])
    assert len(counts) == 6
    assert int(counts.min()) > 60


def test_a_row_alone_is_its_own_partner():
    assert partners(1, 3, 0).tolist() == [[0, 0, 0]]
    with pytest.raises(ValueError, match="k must be"):
        Derangement(1)
