import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnimix.compare.statistics import bootstrap_interval, estimate, holm, paired_p, summarise


def test_estimate_by_hand():
    found = estimate([1.0, 2.0, 6.0])
    assert (found.n, found.mean) == (3, 3.0)
    assert found.sd == pytest.approx(math.sqrt(7))
    assert found.ci95 is None
    assert estimate([1.0, 2.0, 6.0, 7.0]).ci95 is not None
    assert estimate([2.0]).sd is None
    assert estimate([2.0]).ci95 is None
    with pytest.raises(ValueError):
        estimate([])


def test_interval_against_all_resamples_of_five():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    means = sorted(sum(draw) / 5 for draw in itertools.product(values, repeat=5))
    # t(4, 0.975) = 2.776445; sqrt(5 / 4) times it is the normal quantile of 0.000954; 3125 * 0.000954 = 2.98
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(means[2])
    assert high == pytest.approx(means[-3])


def test_interval_of_many_values_nears_the_normal_one():
    values = np.random.default_rng(1).normal(size=200).tolist()
    low, high = bootstrap_interval(values)
    half = 1.972 * np.std(values, ddof=1) / math.sqrt(200)
    assert low == pytest.approx(np.mean(values) - half, abs=0.02)
    assert high == pytest.approx(np.mean(values) + half, abs=0.02)
    assert (low, high) == bootstrap_interval(values)
    with pytest.raises(ValueError):
        bootstrap_interval([1.0, 2.0, 3.0])


def test_interval_covers_the_mean_of_few_normal_values_nearly_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(size=5).tolist())
        hits += low <= 0 <= high
    assert hits / 300 > 0.88  # the plain percentile interval: about 0.83


def test_paired_p_by_hand():
    # differences 1..5: mean 3, sd sqrt(2.5), t = 3 / (sqrt(2.5) / sqrt(5)) = 4.2426; p of t(4) is 0.013236
    assert paired_p([1, 2, 3, 4, 5]) == pytest.approx(0.0132356, abs=1e-6)
    assert paired_p([1, -1]) == pytest.approx(1.0)
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([0.5, 0.5, 0.5]) == 0.25  # no spread: the sign-flip p
    assert paired_p([1.0]) is None


def test_paired_p_is_uniform_when_there_is_nothing():
    rng = np.random.default_rng(0)
    low = np.mean([paired_p(rng.normal(size=5).tolist()) < 0.05 for _ in range(2000)])
    assert low == pytest.approx(0.05, abs=0.02)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": None}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1))
def test_holm_lies_between_the_raw_p_and_bonferroni_and_keeps_the_order(raw):
    corrected = holm(raw)
    for name, value in raw.items():
        assert value <= corrected[name] + 1e-12
        assert corrected[name] <= min(1.0, len(raw) * value) + 1e-12
    ordered = sorted(raw, key=raw.get)
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(ordered))


def test_summaries_pair_by_seed_and_leave_out_what_is_missing():
    runs = {
        "erm": {0: {"rmse": 2.0, "mape": None}, 1: {"rmse": 3.0, "mape": 1.0}, 2: {"rmse": 4.0, "mape": 2.0}},
        "mixup": {2: {"rmse": 4.5, "mape": 5.0}, 0: {"rmse": 2.1, "mape": 4.0}},
        "other": {},
    }
    steps = {"erm": {0: 1.0, 1: 1.0, 2: 2.0}, "mixup": {0: 2.0, 2: 6.0}}
    erm, mixup, other = summarise(runs, "erm", "rmse", steps)
    assert (erm.n, mixup.n, other.n) == (3, 2, 0)
    assert erm.metrics["mape"].n == 2
    assert erm.difference == {}
    assert erm.holm is None
    assert mixup.difference["rmse"].mean == pytest.approx(0.3)
    assert mixup.difference["mape"].n == 1
    assert mixup.p["rmse"] == pytest.approx(mixup.holm)
    assert "mape" not in mixup.p
    assert (erm.cost, mixup.cost, other.cost) == (1.0, 2.5, None)


def test_summaries_correct_for_the_number_of_methods():
    base = {seed: {"rmse": float(seed)} for seed in range(5)}
    worse = {seed: {"rmse": seed + 1.0 + 0.1 * seed} for seed in range(5)}
    noise = {seed: {"rmse": seed + (-1) ** seed * 0.1} for seed in range(5)}
    _, first, second = summarise({"erm": base, "a": worse, "b": noise}, "erm", "rmse", {})
    assert first.holm == pytest.approx(2 * first.p["rmse"])
    assert second.holm == pytest.approx(second.p["rmse"])
