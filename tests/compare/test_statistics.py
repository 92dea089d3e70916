import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnimix.compare.statistics import (
    Timing,
    bootstrap_interval,
    estimate,
    holm,
    paired_p,
    power_of,
    relative_cost,
    resolved,
    seeds_needed,
    summarise,
    wilcoxon_p,
)


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
    timings = {name: {seed: Timing(step, 10, 5) for seed, step in found.items()} for name, found in steps.items()}
    erm, mixup, other = summarise(runs, "erm", "rmse", timings)
    assert (erm.n, mixup.n, other.n) == (3, 2, 0)
    assert erm.metrics["mape"].n == 2
    assert erm.difference == {}
    assert erm.holm is None
    assert mixup.difference["rmse"].mean == pytest.approx(0.3)
    assert mixup.difference["mape"].n == 1
    assert mixup.difference["rmse"].p_uncorrected == mixup.difference["rmse"].p_holm == mixup.holm
    assert mixup.difference["mape"].p_uncorrected is None
    assert (erm.cost, mixup.cost, other.cost) == (1.0, 2.5, None)


def test_summaries_correct_for_the_number_of_methods():
    base = {seed: {"rmse": float(seed)} for seed in range(5)}
    worse = {seed: {"rmse": seed + 1.0 + 0.1 * seed} for seed in range(5)}
    noise = {seed: {"rmse": seed + (-1) ** seed * 0.1} for seed in range(5)}
    _, first, second = summarise({"erm": base, "a": worse, "b": noise}, "erm", "rmse", {})
    assert first.holm == pytest.approx(2 * first.difference["rmse"].p_uncorrected)
    assert second.holm == pytest.approx(second.difference["rmse"].p_uncorrected)
    assert first.difference["rmse"].p_wilcoxon_uncorrected == 0.0625
    assert first.difference["rmse"].p_wilcoxon_holm == 0.125
    assert first.difference["rmse"].power.level == 0.025


def test_wilcoxon_against_all_signs():
    differences = [0.3, -0.1, 0.7, 0.2, 0.9, 0.4, -0.5]
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1

    def statistic(signs):
        return sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign > 0)

    found, centre = statistic(differences), sum(ranks) / 2
    signs = list(itertools.product((-1, 1), repeat=7))
    extreme = sum(abs(statistic(s) - centre) >= abs(found - centre) for s in signs)
    assert wilcoxon_p(differences) == pytest.approx(extreme / len(signs))


def test_wilcoxon_needs_six_seeds_and_knows_ties_and_zeros():
    assert wilcoxon_p([1, 2, 3, 4, 5]) == 0.0625
    assert wilcoxon_p([1, 2, 3, 4, 5, 6]) == 0.03125
    assert wilcoxon_p([0.5] * 5) == 0.0625
    assert wilcoxon_p([0.0, 0.0]) == 1.0
    assert wilcoxon_p([0.0, 0.0, 1.0]) == 1.0
    assert wilcoxon_p([1.0]) is None
    assert wilcoxon_p([3 / 40, 4 / 40 - 1 / 40, -2 / 40]) == wilcoxon_p([3, 3, -2])


@pytest.mark.parametrize("count", [5, 16])
def test_wilcoxon_with_ties_counts_all_signs(count):
    sizes = np.resize([1.0, 1.0, 2.0, 3.0, 3.0], count)
    signs = np.resize([1, -1, 1, 1, 1, 1, -1], count)
    ranks = np.array([np.mean(np.flatnonzero(np.sort(sizes) == size)) + 1 for size in sizes])
    bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    away = np.abs(bits @ ranks - ranks.sum() / 2)
    found = abs(ranks[signs > 0].sum() - ranks.sum() / 2)
    assert wilcoxon_p((sizes * signs).tolist()) == pytest.approx(np.mean(away >= found - 1e-9), rel=1e-9)


def test_wilcoxon_of_many_differences_agrees_with_scipy():
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(3)
    some, many = rng.normal(0.2, 1, 40), np.round(rng.normal(0.1, 1, 150), 1)
    assert wilcoxon_p(some.tolist()) == pytest.approx(wilcoxon(some, method="exact").pvalue)
    assert wilcoxon_p(many.tolist()) == pytest.approx(wilcoxon(many).pvalue, rel=1e-6)
    assert wilcoxon_p(many[:100].tolist()) == pytest.approx(wilcoxon(many[:100]).pvalue, rel=0.05)


def test_power_against_tables_and_simulation():
    # the usual tables for the paired t-test, two-sided 0.05, power 0.8
    assert [seeds_needed(effect, 1.0) for effect in (1.0, 0.5, 0.3, 0.2)] == [10, 34, 90, 199]
    assert seeds_needed(-3.0, 3.0) == 10
    assert power_of(1.0, 10) == pytest.approx(0.8031, abs=1e-4)
    assert power_of(0.0, 7) == pytest.approx(0.05)
    drawn = np.random.default_rng(0).normal(0.8, 1, (4000, 6))
    t = drawn.mean(1) / drawn.std(1, ddof=1) * math.sqrt(6)
    assert power_of(0.8, 6) == pytest.approx(np.mean(np.abs(t) > 2.5706), abs=0.02)
    assert power_of(50.0, 2) == pytest.approx(1.0)  # where the routine for noncentral t gives NaN


def test_seeds_needed_has_limits():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-4, 1.0) is None
    assert seeds_needed(100.0, 1.0) == 2
    assert seeds_needed(1.0, 1.0, level=0.01) > 10
    with pytest.raises(ValueError, match="sd must be > 0"):
        seeds_needed(1.0, 0.0)


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_what_is_resolved_has_just_the_power(n):
    smallest = resolved(0.5, n)
    assert power_of(smallest / 0.5, n) == pytest.approx(0.8)
    assert seeds_needed(1.0001 * smallest, 0.5) == n


def test_what_is_not_told_apart_needs_more_seeds_than_there_are():
    rng, unclear = np.random.default_rng(0), 0
    for count in (4, 5, 6) * 8:
        runs = {"erm": {seed: {"rmse": 0.0} for seed in range(count)}}
        for name in ("a", "b"):
            runs[name] = {seed: {"rmse": value} for seed, value in enumerate(rng.normal(1, 0.7, count).tolist())}
        for summary in summarise(runs, "erm", "rmse", {})[1:]:
            power = summary.difference["rmse"].power
            if summary.holm >= 0.05:
                unclear += 1
                assert power.seeds > count
                assert power.resolved > power.difference
    assert unclear > 10


def test_step_times_of_short_runs_or_runs_made_differently_are_not_compared():
    def runs(step, seconds=5.0, epochs=10, together=None):
        return {seed: Timing(step, seconds, epochs, together) for seed in range(3)}

    assert relative_cost(runs(3.0), runs(2.0)) == 1.5
    assert relative_cost(runs(3.0, seconds=0.5), runs(2.0)) is None
    assert relative_cost(runs(3.0), runs(2.0, epochs=2)) is None
    assert relative_cost(runs(3.0, together="5"), runs(2.0)) is None
    assert relative_cost(runs(3.0, together="5"), runs(2.0, together="5")) == 1.5
    mixed = {**runs(2.0), 0: Timing(8.0, 5.0, 10, "2")}
    assert relative_cost({**runs(3.0), 0: Timing(4.0, 5.0, 10, "2")}, mixed) == 1.5  # 0.5, 1.5, 1.5
    assert relative_cost({}, runs(2.0)) is None
