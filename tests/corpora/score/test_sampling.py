"""SampleMix's arithmetic: the card's values, limiting cases, budgets, caps, rounding, clusters."""

import numpy as np
import pytest
import torch

from omnimix.corpora import Mixture
from omnimix.corpora.score import Ratings, diversity, drawn, expected_copies, measure, round_copies
from omnimix.corpora.score.sampling import scaled

DIVERSITY, QUALITY = np.array([0.1, 0.5, 0.9]), np.array([10.0, 4.0, 7.0])
TOKENS = np.array([100, 200, 300])
CENTROIDS = np.array([[0.0, 0], [3, 4], [0, 8]])


def ratings(n=400, seed=0):
    random = np.random.default_rng(seed)
    return Ratings(
        random.uniform(0, 10, n), random.integers(0, 3, n), random.exponential(1, n), random.integers(1, 500, n)
    )


def blocks(whole, size=90):
    return lambda: (Ratings(*(a[i : i + size] for a in whole)) for i in range(0, len(whole.quality), size))


def test_three_documents_worked_out_by_hand():
    q, d = (np.interp(v, *scaled(v, np.ones(3))) for v in (QUALITY, DIVERSITY))
    assert q == pytest.approx([1, 0, 0.5])
    assert d == pytest.approx([0, 0.5, 1])
    p = 0.8 * d + 0.2 * q
    assert p == pytest.approx([0.2, 0.4, 0.9])
    for tau, expected in ((0.2, [0.027149, 0.073799, 0.899052]), (1.0, [0.236119, 0.288396, 0.475485])):
        c = expected_copies(p, np.ones(3), 1.0, tau)  # with equal lengths, the softmax
        assert c == pytest.approx(expected, abs=1e-6)
    c = expected_copies(p, TOKENS, 1200, 0.2)
    assert c == pytest.approx([0.113440, 0.308362, 3.756612], abs=1e-6)
    assert c @ TOKENS == pytest.approx(1200, rel=1e-12)


@pytest.mark.parametrize("tau", [1e-3, 0.2, 1e6])
def test_the_budget_is_met_and_a_hot_softmax_is_proportional(tau):
    score, tokens = np.random.default_rng(0).uniform(0, 1, 50), np.arange(1, 51)
    c = expected_copies(score, tokens, 333.0, tau)
    assert c @ tokens == pytest.approx(333, rel=1e-9)
    if tau == 1e6:
        assert c == pytest.approx(np.full(50, 333 / tokens.sum()), rel=1e-5)
    if tau == 1e-3:
        assert c.argmax() == score.argmax()


@pytest.mark.parametrize("cap", [1.0, 1.5, 4.0])
def test_what_a_cap_takes_goes_to_the_others_in_proportion(cap):
    score, tokens = np.random.default_rng(1).uniform(0, 1, 40), np.arange(1, 41)
    budget = 0.9 * tokens.sum()
    free, c = expected_copies(score, tokens, budget), expected_copies(score, tokens, budget, cap=cap)
    assert c @ tokens == pytest.approx(budget, rel=1e-9)
    assert c.max() <= cap
    assert (c == cap).sum() >= (free > cap).sum()
    assert np.ptp((c / free)[c < cap]) < 1e-9
    with pytest.raises(ValueError, match="less than the budget"):
        expected_copies(score, tokens, 1.01 * cap * tokens.sum(), cap=cap)
    assert expected_copies(score, tokens, cap * tokens.sum(), cap=cap) == pytest.approx(np.full(40, cap))


def test_copies_are_the_floor_or_one_more_and_right_on_average():
    c = np.array([0.0, 0.25, 1.0, 3.756612, 0.4])
    found = np.array([round_copies(c, torch.Generator().manual_seed(s)) for s in range(2000)])
    assert set(np.unique(found - np.floor(c))) == {0, 1}
    assert (found[:, 0] == 0).all()
    assert (found[:, 2] == 1).all()
    assert found.mean(0) == pytest.approx(c, abs=4 * 0.5 / 2000**0.5)


def test_compactness_times_separation():
    """Distances of the centroids: 5, 8, 5."""
    d = diversity(np.array([2, 4, 1]), np.array([2.0, 12.0, 0.0]), CENTROIDS)
    assert d == pytest.approx([1 * (5 + 8) / 2, 3 * (5 + 5) / 2, 0])
    without = diversity(np.array([2, 0, 1]), np.array([2.0, 0.0, 0.5]), CENTROIDS)
    assert without == pytest.approx([8, 0, 4])  # an empty cluster separates nobody
    with pytest.raises(ValueError, match="two clusters"):
        diversity(np.array([2, 0, 0]), np.array([2.0, 0.0, 0.0]), CENTROIDS)


def test_a_duplicate_lowers_nobody_s_diversity_but_by_the_statistics_of_its_cluster():
    counts, apart = np.array([2, 4, 1]), np.array([2.0, 12.0, 0.0])
    d = diversity(counts, apart, CENTROIDS)
    for distance in (0.5, 3.0, 9.0):  # of the second cluster's document that is there again
        again = diversity(np.add(counts, [0, 1, 0]), np.add(apart, [0, distance, 0]), CENTROIDS)
        assert again[[0, 2]] == pytest.approx(d[[0, 2]], abs=1e-12)
        assert again[1] == pytest.approx((12 + distance) / 5 * 5)
    # two far, tight clusters and a loose one in the middle: 0.1 * (10 + 20) / 2 and 6 * 10
    middle = np.array([[-10.0, 0], [0, 0], [10, 0]])
    assert diversity(np.array([5, 5, 5]), np.array([0.5, 30, 0.5]), middle) == pytest.approx([1.5, 60, 1.5])


@pytest.mark.parametrize("scale", ["min-max", "clipped", "rank"])
@pytest.mark.parametrize("cap", [np.inf, 1.2])
def test_a_corpus_in_blocks_is_the_corpus_in_one(scale, cap):
    whole = ratings()
    budget = 0.5 * whole.tokens.sum()
    found = measure(blocks(whole), CENTROIDS, budget, cap=cap, scale=scale)
    score = found.score(whole.quality, whole.cluster)
    assert 0 <= score.min() <= score.max() <= 1
    c = found.copies(score)
    assert c == pytest.approx(expected_copies(score, whole.tokens, budget, cap=cap))
    assert c @ whole.tokens == pytest.approx(budget)
    counts = np.bincount(whole.cluster)
    d = diversity(counts, np.bincount(whole.cluster, whole.distance), CENTROIDS)
    assert (found.documents, found.tokens) == (400, whole.tokens.sum())
    assert found.diversity == pytest.approx(d)
    if scale == "min-max":
        q = (whole.quality - whole.quality.min()) / np.ptp(whole.quality)
        assert score == pytest.approx(0.8 * ((d - d.min()) / np.ptp(d))[whole.cluster] + 0.2 * q)


def test_scales_bend_to_outliers_or_not():
    values = np.append(np.linspace(0, 1, 200), 100.0)
    levels = {
        scale: np.interp(values, *scaled(values, np.ones(201), scale)) for scale in ("min-max", "clipped", "rank")
    }
    assert levels["min-max"][199] == pytest.approx(0.01)
    assert levels["clipped"][[100, 199, 200]] == pytest.approx([0.5, 1, 1], abs=0.02)
    assert levels["rank"] == pytest.approx((np.arange(201) + 0.5) / 201)
    assert np.interp([3.0], *scaled(np.array([3.0, 3.0]), np.ones(2))) == [0]


def test_units_of_quality_and_distance_do_not_matter_and_alpha_chooses_between_them():
    whole, budget = ratings(), 1e4
    base = measure(blocks(whole), CENTROIDS, budget)
    other = whole._replace(quality=3 * whole.quality - 7, distance=4 * whole.distance)
    moved = measure(blocks(other), 4 * CENTROIDS, budget)
    assert moved.score(other.quality, other.cluster) == pytest.approx(base.score(whole.quality, whole.cluster))
    quality_only, diversity_only = (measure(blocks(whole), CENTROIDS, budget, alpha=a) for a in (0.0, 1.0))
    shuffled = whole.cluster[::-1]
    assert (quality_only.score(whole.quality, whole.cluster) == quality_only.score(whole.quality, shuffled)).all()
    assert len(np.unique(diversity_only.score(whole.quality, whole.cluster))) == 3


def test_copies_in_the_stream_are_apart_and_make_a_mixture():
    copies, tokens = np.array([3, 1, 0, 10, 2] * 4), np.arange(1, 21)
    domain = np.array(["a", "b"] * 10)
    found = drawn(copies, tokens, domain, torch.Generator().manual_seed(0))
    assert (np.bincount(found.index, minlength=20) == copies).all()
    gaps = np.diff(np.flatnonzero(found.index == 3))
    assert gaps.min() > 1
    assert found.tokens == {name: int((copies * tokens)[domain == name].sum()) for name in ("a", "b")}
    assert Mixture(found.tokens).weights["a"] == pytest.approx(found.tokens["a"] / (copies @ tokens))
    again = drawn(copies, tokens, domain, torch.Generator().manual_seed(0))
    assert (found.index == again.index).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"alpha": 1.1}, "alpha"),
        ({"tau": 0}, "tau"),
        ({"cap": 0}, "cap"),
        ({"scale": "z"}, "scale"),
        ({"budget": 0}, "bu"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        measure(blocks(ratings()), CENTROIDS, **{"budget": 1e3, **wrong})


def test_numbers_that_are_none_are_refused():
    whole = ratings(5)
    for wrong in (
        whole._replace(quality=np.full(5, np.nan)),
        whole._replace(distance=np.full(5, np.inf)),
        whole._replace(tokens=-whole.tokens),
    ):
        with pytest.raises(ValueError, match="must be finite numbers, tokens >= 0"):
            measure(blocks(wrong), CENTROIDS, 1e3)
    for score, tokens in (([0.1, np.nan], [1, 2]), ([0.1, 0.2], [-1, 2]), ([0.1, 0.2], [1])):
        with pytest.raises(ValueError, match="a finite score, and tokens >= 0"):
            expected_copies(np.array(score), np.array(tokens), 3.0)
    for copies in (np.nan, -1.0, 1e30):
        with pytest.raises(ValueError, match="copies must be numbers of 0 to"):
            round_copies(np.array([copies, 0.5]), np.array([0.1, 0.2]))
