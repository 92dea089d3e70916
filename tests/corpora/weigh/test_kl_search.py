"""WebOrganizer's search: RegMix's simulation as its limit, the known optimum of a line with a KL term, caps."""

import numpy as np
import pytest
import torch

from omnimix.corpora.weigh import MixtureDesign, kl_search, simulate
from omnimix.corpora.weigh.base import Regressor

PRIOR = np.array([0.5, 0.3, 0.15, 0.05])
COSTS = np.array([3.0, 1.0, 2.0, 5.0])


class Line(Regressor):
    def __init__(self, costs=COSTS):
        self.costs = costs

    def _fit(self, x, y): ...

    def predict(self, weights):
        return weights @ self.costs


def search(regressor=None, prior=PRIOR, caps=None, seed=0, **changed):
    given = {"candidates": 4000, "top": 32, **changed}
    return kl_search(regressor or Line(), prior, caps, generator=torch.Generator().manual_seed(seed), **given)


def test_one_round_without_kl_is_the_simulation_of_regmix():
    found = search(kl=0.0, upsampling=np.inf, iterations=1, pull=1.0, strength=(1.0, 1.0))
    design = MixtureDesign(dict(zip("abcd", PRIOR, strict=True)), temperature=1, strength=(1, 1), cap=None)
    drawn = design.candidates(4000, torch.Generator().manual_seed(0))
    assert found == pytest.approx(simulate(Line(), drawn, 32), abs=1e-9)


def test_the_step_of_the_centre_by_hand():
    one = {"kl": 0.0, "upsampling": np.inf, "iterations": 1}
    best = search(pull=1.0, **one)
    assert search(pull=0.2, **one) == pytest.approx(0.8 * PRIOR + 0.2 * best)
    assert search(pull=0.0, **{**one, "iterations": 3}) == pytest.approx(PRIOR)


def test_the_optimum_of_a_line_with_a_kl_term():
    # min <costs, w> + kl KL(w || p) is w ~ p exp(-costs / kl): here (.159 .707 .130 .004)
    truth = PRIOR * np.exp(-COSTS)
    found = search(kl=1.0, upsampling=np.inf, iterations=40, top=8, candidates=8000)
    assert found == pytest.approx(truth / truth.sum(), abs=0.02)
    assert np.abs(search(kl=1e4, upsampling=np.inf, top=1, candidates=8000) - PRIOR).max() < 0.03


def test_no_domain_above_its_caps():
    found = search(kl=0.0, upsampling=1.5)
    assert found == pytest.approx([0.325, 0.45, 0.225, 0.0], abs=0.02)  # b and c at their caps
    assert (found <= 1.5 * PRIOR + 1e-12).all()
    caps = np.array([0.2, 0.3, 1.0, 1.0])
    found = search(caps=caps)
    assert (found <= np.minimum(caps, 6.5 * PRIOR) + 1e-12).all()
    assert found.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"upsampling=6.5 times the share is one, leave 0.625 of the weight"):
        search(caps=np.array([0.1, 0.1, 0.1, 1.0]))


def test_the_pruned_search_of_trees_is_the_plain_one():
    pytest.importorskip("lightgbm")
    from omnimix.corpora.weigh import LightGBM

    source = np.random.default_rng(0)
    x = source.dirichlet(np.ones(4), 200)
    trees = LightGBM(rounds=120).fit(x, x @ COSTS + 0.1 * source.normal(size=200))
    many, penalty = source.dirichlet(np.ones(4), 6000), source.random(6000)
    for threads in (1, 2):
        found = trees.lowest(many, 20, penalty, threads)
        assert np.array_equal(found, Regressor.lowest(trees, many, 20, penalty))
    assert not np.array_equal(found, trees.lowest(many, 20))


def test_refusals():
    with pytest.raises(ValueError, match="share > 0"):
        search(prior=np.array([0.5, 0.5, 0.0, 0.0]))
    with pytest.raises(ValueError, match="top must be at most the number of candidates, 10, got 32"):
        search(candidates=10)
    with pytest.raises(ValueError, match="pull"):
        search(pull=1.5)
