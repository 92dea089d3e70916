"""Weights without runs: temperature, UniMax, and the schedule of domain upsampling."""

import math

import numpy as np
import pytest

from omnimix.corpora import Mixture
from omnimix.corpora.weigh.domain_upsampling import PAPER, branch_point, branches, domain_upsampling, grouped
from omnimix.corpora.weigh.temperature import proportional, temperature, uniform
from omnimix.corpora.weigh.unimax import unimax


def test_temperature():
    sizes = {"a": 0.64, "b": 0.32, "c": 0.04}
    assert proportional({"a": 1, "b": 1, "c": 2}).weights == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert temperature(sizes, 2).weights == pytest.approx({"a": 0.510958, "b": 0.361302, "c": 0.127740}, abs=1e-6)
    assert temperature(sizes, 1e9).weights == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=1e-6)
    assert temperature(sizes, math.inf).weights == uniform(list("abc")).weights == dict.fromkeys("abc", 1 / 3)
    assert temperature({"a": 1, "b": 0}, math.inf).weights == {"a": 1.0, "b": 0.0}
    with pytest.raises(ValueError, match="t must be a number >= 1"):
        temperature(sizes, 0.5)


def test_unimax_by_hand():
    # 60 units, 2 epochs: a takes 2, b its 20, c the rest
    assert unimax({"a": 1, "b": 10, "c": 100}, 60, 2).weights == pytest.approx(
        {"a": 2 / 60, "b": 20 / 60, "c": 38 / 60}
    )
    assert unimax({"a": 1, "b": 10, "c": 100}, 3, 4).weights == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_unimax_keeps_its_cap_and_is_as_uniform_as_that_allows():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = {f"d{i}": float(n) for i, n in enumerate(rng.lognormal(3, 2, 8))}
        budget = 0.7 * 4 * sum(sizes.values())
        mixture = unimax(sizes, budget, 4)
        mixture.epochs(budget, sizes, max_epochs=4)
        drawn = mixture.consumption(budget)
        free = [drawn[d] for d in sizes if drawn[d] < 4 * sizes[d] * (1 - 1e-9)]
        assert max(free) == pytest.approx(min(free))
        assert max(free) >= max(drawn[d] for d in sizes if drawn[d] >= 4 * sizes[d] * (1 - 1e-9)) - 1e-6


def test_unimax_refuses_what_there_is_not():
    with pytest.raises(ValueError, match="raise max_epochs to 5"):
        unimax({"a": 1, "b": 1}, 10, 4)


def test_consumption_of_the_paper():
    drawn = domain_upsampling(PAPER["before"], PAPER["after"], 0.2).consumption(100)
    assert drawn == pytest.approx({"large-cc": 27.48, "small-cc": 35.36, "domain-specific": 12.736, "code": 24.424})


def test_limits_of_the_fraction():
    before, after = PAPER["before"], PAPER["after"]
    assert domain_upsampling(before, after, 0).weights == pytest.approx(Mixture(before).weights)
    assert domain_upsampling(before, after, 1).weights == pytest.approx(Mixture(after).weights)
    assert domain_upsampling(before, after, 0.2).at(0.8)["large-cc"] == 0


def test_arms():
    arms = branches(PAPER["before"], PAPER["after"], (0.0, 0.2), removed=["code"])
    assert list(arms) == ["f=0", "f=0.2", "static f=0.2", "reversed f=0.2", "f=0.2 without code"]
    whole = arms["f=0.2"].consumption(1.0)
    assert arms["static f=0.2"].constant
    assert arms["static f=0.2"].consumption(1.0) == pytest.approx(whole)
    assert arms["reversed f=0.2"].consumption(1.0) == pytest.approx(whole)
    assert arms["reversed f=0.2"].at(0.0) == arms["f=0.2"].at(1.0)
    rest = arms["f=0.2 without code"].at(1.0)
    assert rest["small-cc"] / rest["domain-specific"] == pytest.approx(30 / 35)
    assert rest["code"] == 0
    late = [arms[name] for name in ("f=0", "f=0.2", "f=0.2 without code")]
    assert branch_point(late) == pytest.approx(0.8)
    assert branch_point([arms["f=0"]]) == 1.0
    assert branch_point([arms["f=0.2"], arms["reversed f=0.2"]]) == 0.0


def test_groups_share_by_size_in_every_phase():
    weights = grouped({"web": 0.8, "rest": 0.2}, {"web": ["a", "b"], "rest": ["c"]}, {"a": 3, "b": 1, "c": 7})
    assert weights == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    with pytest.raises(ValueError, match="in two groups"):
        grouped({"x": 1, "y": 1}, {"x": ["a"], "y": ["a"]}, {"a": 1})
