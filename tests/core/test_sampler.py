"""Batches that hold equally many rows of every group."""

import pytest
import torch

from omnimix.core.sampler import by_group


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_batch_holds_the_same_number_of_every_group():
    group = torch.tensor([5] * 3 + [1] * 20 + [9] * 7)
    batches = by_group(group, 13, 11, _generator())
    assert len(batches) == 11
    for batch in batches:
        assert torch.unique(group[batch], return_counts=True)[1].tolist() == [4, 4, 4]


def test_a_group_is_gone_through_before_any_row_comes_again():
    group = torch.arange(2).repeat(12)
    batches = by_group(group, 8, 6, _generator())
    rows = torch.cat([batch[:4] for batch in batches])
    assert sorted(rows[:12].tolist()) == sorted(rows[12:].tolist()) == list(range(0, 24, 2))
    assert rows[:12].tolist() != rows[12:].tolist()


def test_batches_follow_from_the_generator():
    group = torch.arange(3).repeat(9)
    same = [torch.stack(by_group(group, 6, 5, _generator(s))) for s in (1, 1, 2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_a_batch_may_hold_some_groups_only():
    group = torch.arange(6).repeat(8)
    batches = by_group(group, 9, 40, _generator(), some=2)
    seen = torch.zeros(6)
    for batch in batches:
        ids, counts = torch.unique(group[batch], return_counts=True)
        assert counts.tolist() == [4, 4]
        seen[ids] += 1
    assert seen.sum() == 80
    assert seen.min() > 5
    for one in range(6):  # two visits go through a group
        rows = torch.cat([batch[group[batch] == one] for batch in batches])
        assert sorted(rows[:8].tolist()) == list(range(one, 48, 6))
    every = by_group(group, 12, 3, _generator(), some=9)
    assert all(torch.equal(a, b) for a, b in zip(every, by_group(group, 12, 3, _generator()), strict=True))
    with pytest.raises(ValueError, match="some"):
        by_group(group, 12, 3, _generator(), some=0)


def test_too_small_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size = 2 has no room for a row of each of the 3 groups"):
        by_group(torch.arange(3), 2, 1, _generator())
