"""Draws: shares follow the weights, each sequence once an epoch, weights may change, exact resume."""

import numpy as np
import pytest
import torch

from omnimix.corpora.proxy.draw import Draw

SIZES = np.array([7, 5, 11])


def test_every_sequence_comes_once_before_any_comes_again_whatever_the_weights_do():
    draw, random = Draw(SIZES, 3), np.random.default_rng(0)
    seen = [[], [], []]
    for _ in range(60):
        domain, index = draw.by_weights(torch.from_numpy(random.dirichlet([1, 1, 1])), 4)
        for d, i in zip(domain, index, strict=True):
            seen[d].append(i)
    assert draw.drawn.tolist() == [len(one) for one in seen]
    for size, found in zip(SIZES, seen, strict=True):
        for start in range(0, len(found), size):
            piece = found[start : start + size]
            assert len(set(piece)) == len(piece)
            if len(piece) == size:
                assert sorted(piece) == list(range(size))


def test_shares_follow_the_weights():
    draw = Draw(SIZES, 0)
    domain, _ = draw.by_weights(torch.tensor([0.5, 0.3, 0.2]), 100_000)
    assert np.bincount(domain) / 1e5 == pytest.approx([0.5, 0.3, 0.2], abs=0.006)
    single = [draw.one_domain(torch.tensor([0.5, 0.5, 0.0]), 3)[0] for _ in range(50)]
    assert all(len(set(one)) == 1 and one[0] < 2 for one in single)


def test_equal_draws():
    domain, _ = Draw(SIZES, 0).equally(np.array([0, 2]), 9)
    assert sorted(np.bincount(domain, minlength=3).tolist()) == [0, 4, 5]


def test_resume_is_exact_across_an_epoch():
    weights = torch.tensor([0.2, 0.3, 0.5])
    one, two = Draw(SIZES, 5), Draw(SIZES, 5)
    for _ in range(9):
        one.by_weights(weights, 3)
    two.load_state_dict(one.state_dict())
    for _ in range(9):
        a, b = one.by_weights(weights, 3), two.by_weights(weights, 3)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_bad_weights_are_refused():
    draw = Draw(np.array([3, 0]), 0)
    for weights in ([1.0, float("nan")], [0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="finite, >= 0 and not all 0"):
            draw.by_weights(torch.tensor(weights), 2)
    with pytest.raises(ValueError, match="domain 1 has a weight, but no sequences"):
        draw.by_weights(torch.tensor([0.0, 1.0]), 2)
