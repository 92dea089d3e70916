import pytest
import torch

from omnimix.core.distinct import distinct


@pytest.mark.parametrize("most", [None, 4, 50])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_as_unique_finds_them_with_places_left_over(size, most):
    ids = 3 * torch.randint(4, (size,), generator=torch.Generator().manual_seed(size)) - 2
    known, places, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    found, place, count = distinct(ids, most)
    assert len(found) == len(count) == min(size, most or size)
    assert torch.equal(found[: len(known)], known)
    assert torch.equal(place, places)
    assert torch.equal(count[: len(known)], counts)
    assert not count[len(known) :].any()
    assert (found[len(known) :] == known[0]).all()


def test_no_rows():
    assert [len(t) for t in distinct(torch.zeros(0, dtype=torch.long))] == [0, 0, 0]
