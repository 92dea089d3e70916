"""Proposers: known optima, caps, the proof of the gap, and exact pruning of trees."""

import numpy as np
import pytest
import torch

from omnimix.corpora.weigh.base import Mean, Regressor
from omnimix.corpora.weigh.design import MixtureDesign
from omnimix.corpora.weigh.linear import OLS, Ridge
from omnimix.corpora.weigh.propose import convex, fill, gap, simulate, slsqp

COSTS = np.array([3.0, 1.0, 2.0, 5.0])


class Quadratic(Regressor):
    """sum_i (w_i - aim_i)^2"""

    convex = True

    def __init__(self, aim):
        self.aim = np.array(aim)

    def _fit(self, x, y): ...

    def predict(self, weights):
        return ((weights - self.aim) ** 2).sum(1)

    def gradient(self, weights):
        return 2 * (weights - self.aim)


@pytest.fixture(scope="module")
def linear():
    x = np.random.default_rng(0).dirichlet(np.ones(4), 30)
    return OLS().fit(x, x @ COSTS + 7)


def candidates(count=20_000, cap=None):
    design = MixtureDesign(dict.fromkeys("abcd", 1.0), temperature=1, strength=(1, 1), cap=cap)
    return design.candidates(count, torch.Generator().manual_seed(0))


def test_linear_truth_by_simulation(linear):
    w = simulate(linear, candidates(), 128)
    assert w.argmax() == 1
    assert w[1] > 0.9
    assert w.sum() == pytest.approx(1, abs=1e-12)
    bounded = simulate(linear, candidates(cap=2.0), 128)
    assert 0.45 < bounded[1] <= 0.5


def test_top_one_is_the_best_draw(linear):
    drawn = candidates(500)
    best = drawn[linear.predict(drawn).argmin()]
    assert simulate(linear, drawn, 1) == pytest.approx(best, abs=1e-15)


def test_linear_truth_exactly(linear):
    assert convex(linear, 4) == pytest.approx([0, 1, 0, 0], abs=1e-6)
    assert convex(linear, 4, np.array([1, 0.5, 0.3, 1])) == pytest.approx([0.2, 0.5, 0.3, 0], abs=1e-6)


def test_fill_is_the_linear_programme():
    from scipy.optimize import linprog

    rng = np.random.default_rng(1)
    for _ in range(20):
        costs, caps = rng.normal(size=6), rng.uniform(0.1, 0.6, 6)
        truth = linprog(costs, A_eq=np.ones((1, 6)), b_eq=[1.0], bounds=list(zip([0] * 6, caps, strict=True)))
        if truth.success:
            w = fill(costs, caps)
            assert w.sum() == pytest.approx(1)
            assert costs @ w == pytest.approx(truth.fun, abs=1e-9)


def test_gap_bounds_the_distance_to_the_optimum():
    rng, aim = np.random.default_rng(2), [0.1, 0.2, 0.3, 0.4]
    objective = Quadratic(aim)
    for w in rng.dirichlet(np.ones(4), 50):
        assert gap(objective.gradient(w), w, np.ones(4)) >= objective.predict(w[None])[0] - 1e-12
    assert convex(objective, 4, tolerance=1e-10) == pytest.approx(aim, abs=1e-5)
    # the projection onto the simplex of a point outside of it
    assert convex(Quadratic([0.9, 0.9, -1, -1]), 4, tolerance=1e-10) == pytest.approx([0.5, 0.5, 0, 0], abs=1e-5)


def test_convex_against_a_grid():
    grid = MixtureDesign(dict.fromkeys("abc", 1.0), kind="grid", minimum=0.01)._grid()
    rng = np.random.default_rng(3)
    for _ in range(5):
        objective, caps = Quadratic(rng.normal(size=3)), np.array([0.7, 0.5, 0.6])
        inside = grid[(grid <= caps + 1e-9).all(1)]
        w = convex(objective, 3, caps)
        assert (w <= caps + 1e-9).all()
        assert objective.predict(w[None])[0] <= objective.predict(inside).min() + 1e-6


def test_divergence_from_the_prior(linear):
    prior = np.array([0.4, 0.1, 0.2, 0.3])
    # min <costs, w> + kl KL(w || p) is w ~ p exp(-costs / kl)
    for kl in (0.5, 5.0, 1e4):
        truth = prior * np.exp(-COSTS / kl)
        assert convex(linear, 4, prior=prior, kl=kl) == pytest.approx(truth / truth.sum(), abs=2e-3)
    with pytest.raises(ValueError, match="prior with a share > 0"):
        convex(linear, 4, kl=1.0)


def test_slsqp_finds_the_better_of_two_valleys():
    class Valleys(Quadratic):
        convex = False

        def predict(self, weights):
            return np.sin(6 * weights[:, 0]) + weights[:, 1]

        def gradient(self, weights):
            slope = np.zeros(len(weights))
            slope[0], slope[1] = 6 * np.cos(6 * weights[0]), 1.0
            return slope

    grid = MixtureDesign(dict.fromkeys("abc", 1.0), kind="grid", minimum=0.005)._grid()
    found = Valleys([0, 0, 0]).predict(slsqp(Valleys([0, 0, 0]), 3, generator=torch.Generator().manual_seed(0))[None])
    assert found[0] <= Valleys([0, 0, 0]).predict(grid).min() + 1e-4
    with pytest.raises(ValueError, match="is not convex: propose by simulation"):
        convex(Valleys([0, 0, 0]), 3)


def test_caps_that_leave_too_little_are_refused(linear):
    with pytest.raises(ValueError, match="whose sum is 1 or more"):
        convex(linear, 4, np.full(4, 0.2))


def test_ridge_and_ols_against_scikit_learn():
    from sklearn import linear_model

    rng = np.random.default_rng(4)
    x = rng.dirichlet(np.ones(5), 40)
    y = x @ rng.normal(size=5) + 0.1 * rng.normal(size=40)
    probe = rng.dirichlet(np.ones(5), 10)
    for alpha in (0.01, 1.0, 10.0):
        truth = linear_model.Ridge(alpha=alpha).fit(x, y).predict(probe)
        assert Ridge(alpha).fit(x, y).predict(probe) == pytest.approx(truth, abs=1e-9)
    assert OLS().fit(x, y).predict(probe) == pytest.approx(linear_model.LinearRegression().fit(x, y).predict(probe))


def test_the_mean_of_targets():
    x = np.random.default_rng(5).dirichlet(np.ones(3), 20)
    a, b = OLS().fit(x, x[:, 0]), OLS().fit(x, x[:, 1] * 2)
    both = Mean([a, b], [1, 3])
    assert both.predict(x) == pytest.approx(0.25 * x[:, 0] + 1.5 * x[:, 1])
    assert both.convex
    assert both.gradient(x[0]) == pytest.approx(0.25 * a.gradient(x[0]) + 0.75 * b.gradient(x[0]))


def test_refused_runs():
    with pytest.raises(ValueError, match="two runs or more"):
        OLS().fit(np.ones((1, 2)), np.ones(1))
    with pytest.raises(ValueError, match="must be finite"):
        OLS().fit(np.ones((2, 2)), np.array([1, np.nan]))


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(7) * 0.5, 400)
    return x, (x @ np.arange(7.0)) ** 2 + np.sin(5 * x[:, 0]) + 0.05 * rng.normal(size=400)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_pruned_search_is_exact(data, threads):
    from omnimix.corpora.weigh.regmix import LightGBM

    model = LightGBM(rounds=300).fit(*data)
    many = np.random.default_rng(1).dirichlet(np.ones(7) * 0.5, 10_000)
    assert np.array_equal(model.lowest(many, 50, threads=threads), Regressor.lowest(model, many, 50))


def test_few_runs_give_a_constant(data):
    from omnimix.corpora.weigh.regmix import LightGBM
    from omnimix.corpora.weigh.scores import score

    x, y = data
    model = LightGBM().fit(x[:32], y[:32])
    with pytest.warns(UserWarning, match="all predictions are equal"):
        found = score(model.predict(x[32:]), y[32:])
    assert np.isnan(found.spearman)
    assert found.to_dict()["spearman"] is None
    assert np.isfinite(found.mae)
