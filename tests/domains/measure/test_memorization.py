import math

import pytest
import torch
import torch.nn.functional as F

from omnimix.data import flip_labels
from omnimix.domains.measure import Memorization


def test_a_table_of_labels_remembers_and_one_who_knows_does_not():
    draw = torch.Generator().manual_seed(0)
    clean = torch.arange(200) % 2
    noisy, flipped = flip_labels(clean, 2, 0.25, draw, other=True)
    hard = torch.arange(200) < 20
    tracker = Memorization(noisy, flipped, hard)
    order = torch.randperm(200, generator=draw)
    table = tracker.record(1, F.one_hot(noisy[order], 2).float(), order)
    assert table == {"step": 1, "memorised": 1.0, "clean": 1.0, "hard": 1.0}
    knows = tracker.record(2, F.one_hot(clean, 2).float())
    assert knows == {"step": 2, "memorised": 0.0, "clean": 1.0, "hard": (~flipped)[:20].double().mean().item()}
    some = order[:30]
    half = tracker.record(3, F.one_hot(clean[some], 2).float(), some)
    assert half["hard"] == pytest.approx((noisy == clean)[some][hard[some]].double().mean().item())
    assert tracker.history == [table, knows, half]


def test_rows_count_alike_whatever_the_domain():
    """Ten flipped rows of one domain and two of another: the share is over twelve rows."""
    y = torch.zeros(100, dtype=torch.int64)
    flipped = torch.zeros(100, dtype=torch.bool)
    flipped[:10] = flipped[60:62] = True
    output = torch.tensor([[0.0, 1.0]]).repeat(100, 1)
    output[60:62, 0] = 2.0
    assert Memorization(y, flipped).record(0, output)["memorised"] == pytest.approx(2 / 12)


def test_parts_without_rows_and_refusals():
    y, none = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    assert math.isnan(Memorization(y, none).record(0, torch.rand(4, 2))["memorised"])
    with pytest.raises(ValueError, match="mask"):
        Memorization(y, none[:3])
    with pytest.raises(ValueError, match="hard"):
        Memorization(y, none, y)
    with pytest.raises(ValueError, match="4 rows"):
        Memorization(y, none).record(0, torch.rand(3, 2))
