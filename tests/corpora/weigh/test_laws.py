"""Laws: recovery of known constants, hand values, limits, gradients, convexity."""

import warnings

import numpy as np
import pytest

from omnimix.corpora.weigh.autoscale import autoscale
from omnimix.corpora.weigh.base import Mean
from omnimix.corpora.weigh.bimix import BiMix, conditional_entropy, entropy_mixture, shannon_entropy
from omnimix.corpora.weigh.dmo import AtBudget, TransferLaw, _beta, optimal, optimal_range, perturbations
from omnimix.corpora.weigh.mixing_laws import MixingLaw, nested
from omnimix.corpora.weigh.power_law import PowerLaws
from omnimix.corpora.weigh.propose import convex

FACTORS = np.array([1 / 3, 0.5, 1, 2, 3])
PUBLISHED = {
    "if": (0.051, 1.156484, 0.197807, 0.475964, 1.096446),
    "math": (0.043, 0.750850, 0.040025, 0.435039, 1.493743),
    "code": (0.0439, 0.982818, 0.126060, 0.467028, 1.267061),
}


def laws():
    return {name: TransferLaw.of(i, *constants) for i, (name, constants) in enumerate(PUBLISHED.items())}


def slope_error(law, w):
    """Largest difference of the gradient to central differences."""
    h = 1e-6
    numeric = [
        (law.predict((w + h * e)[None])[0] - law.predict((w - h * e)[None])[0]) / (2 * h) for e in np.eye(len(w))
    ]
    return np.abs(law.gradient(w) - numeric).max()


class TestMixingLaw:
    def test_recovers_its_constants(self):
        x = np.random.default_rng(0).dirichlet(np.ones(3), 30)
        t = np.array([-2.0, 0.5, 1.5])
        law = MixingLaw().fit(x, 1.2 + 0.8 * np.exp(x @ t))
        assert law.c == pytest.approx(1.2, rel=1e-3)
        assert law.k == pytest.approx(0.8, rel=1e-3)
        assert law.t == pytest.approx(t, rel=1e-3)

    def test_a_constant_added_to_t_is_part_of_k(self):
        x = np.random.default_rng(1).dirichlet(np.ones(3), 30)
        law = MixingLaw().fit(x, 2 + 0.5 * np.exp(x @ np.array([1.0, 2.0, 6.0])))
        assert law.t == pytest.approx([-2, -1, 3], rel=1e-3)
        assert law.k == pytest.approx(0.5 * np.exp(3), rel=1e-3)

    def test_an_outlier_moves_it_little(self):
        x = np.random.default_rng(2).dirichlet(np.ones(3), 40)
        y = 1.2 + 0.8 * np.exp(x @ np.array([-1.0, 0.0, 1.0]))
        y[7] += 1.0
        assert np.abs(MixingLaw().fit(x, y).predict(x) - y)[np.arange(40) != 7].max() < 0.02

    def test_gradient_and_convexity(self):
        x = np.random.default_rng(3).dirichlet(np.ones(3), 30)
        law = MixingLaw().fit(x, 1.2 + 0.8 * np.exp(x @ np.array([-2.0, 0.5, 1.5])))
        inward = law.gradient(x[0]) - law.gradient(x[0]).mean()
        h = 1e-6
        for d in np.array([[1, -1, 0], [0, 1, -1]]):
            numeric = (law.predict((x[0] + h * d)[None])[0] - law.predict((x[0] - h * d)[None])[0]) / (2 * h)
            assert inward @ d == pytest.approx(numeric, rel=1e-5)
        a, b = x[:15], x[15:]
        assert (law.predict((a + b) / 2) <= (law.predict(a) + law.predict(b)) / 2 + 1e-12).all()

    def test_losses_must_be_positive(self):
        with pytest.raises(ValueError, match="losses > 0"):
            MixingLaw().fit(np.eye(3), np.array([1.0, 0.0, 1.0]))

    def test_nested_power_laws(self):
        sizes, steps, rng = np.array([70e6, 160e6, 410e6]), np.array([1e4, 2e4, 3e4, 4e4]), np.random.default_rng(4)
        floor, gain = rng.uniform(1.5, 2, 6), rng.uniform(20, 30, 6)
        at_size = floor[:, None] + gain[:, None] * sizes**-0.2
        losses = at_size[:, :, None] + 30 * steps**-0.4
        found = nested(losses, sizes, steps, 1e9, 1e5)
        assert found == pytest.approx(floor + gain * 1e9**-0.2 + 30 * 1e5**-0.4, rel=1e-5)
        with pytest.raises(ValueError, match=r"losses must be \(runs, 3, 4\)"):
            nested(losses[:, :2], sizes, steps, 1e9, 1e5)


def test_power_laws_share_an_exponent():
    s = np.array([1e3, 3e3, 1e4, 3e4, 1e5])
    fitted = PowerLaws().fit(s, np.stack([1.5 + 20 * s**-0.4, 2.5 + 5 * s**-0.4]))
    assert fitted.alpha == pytest.approx(0.4, rel=1e-5)
    assert fitted.floor == pytest.approx([1.5, 2.5], rel=1e-5)
    assert fitted.predict(1e6) == pytest.approx([1.5 + 20 * 1e6**-0.4, 2.5 + 5 * 1e6**-0.4], rel=1e-6)
    with pytest.raises(ValueError, match="three sizes or more"):
        PowerLaws().fit(s[:2], np.ones((1, 2)))


class TestBiMix:
    def test_recovers_its_constants(self):
        rng = np.random.default_rng(0)
        w, s = rng.dirichlet(np.ones(3), 40), rng.choice([1e3, 5e3, 2e4, 1e5], 40)
        law = BiMix(1).fit_volumes(w, s, w[:, 1] ** -0.07 * (40 * s**-0.45 + 1.9))
        assert (law.alpha, law.beta, law.b, law.c) == pytest.approx((0.07, 0.45, 40, 1.9), rel=1e-3)
        assert law.at(2e5).predict(w) == pytest.approx(w[:, 1] ** -0.07 * (40 * 2e5**-0.45 + 1.9), rel=1e-6)

    def test_the_optimum_in_closed_form(self):
        # sum_i K_i w_i^-a with one a: w_i ~ K_i^(1 / (1 + a))
        parts = []
        for i, level in enumerate((1.0, 2.0, 4.0)):
            law = BiMix(i)
            law.alpha, law.level = 0.1, level
            parts.append(law)
        truth = np.array([1.0, 2.0, 4.0]) ** (1 / 1.1)
        assert convex(Mean(parts), 3) == pytest.approx(truth / truth.sum(), abs=1e-4)
        assert slope_error(parts[1], np.array([0.2, 0.3, 0.5])) < 1e-6

    def test_a_weight_of_zero_is_refused_unless_there_is_a_floor(self):
        x, y = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]), np.array([3.0, 2.0, 1.9])
        with pytest.raises(ValueError, match=r"not defined for a weight of 0 \(domain 0, row 0\)"):
            BiMix(0).fit(x, y)
        assert BiMix(0, floor=0.01).fit(x, y).alpha > 0

    def test_entropies(self):
        assert shannon_entropy(np.array([0, 1, 2, 3])) == pytest.approx(np.log(4))
        assert conditional_entropy(np.array([0, 1] * 50)) == pytest.approx(0, abs=1e-9)
        mixed = np.random.default_rng(0).integers(0, 4, 100_000)
        assert conditional_entropy(mixed) == pytest.approx(np.log(4), abs=1e-3)
        weights = entropy_mixture({"a": 2000.0 + np.log(3), "b": 2000.0}).weights
        assert weights == pytest.approx({"a": 0.75, "b": 0.25})


class TestTransferLaw:
    def test_hand_values(self):
        losses = 2 * (FACTORS + 0.7) ** -0.3 + 1
        assert losses == pytest.approx([2.980423, 2.893545, 2.705671, 2.484639, 2.350733], abs=5e-7)
        assert (losses[0] - losses[2]) / (losses[2] - losses[4]) == pytest.approx(0.774082, abs=1e-6)
        assert _beta(FACTORS, losses, 2.0) == pytest.approx((0.3, 0.7), abs=1e-3)
        assert _beta(FACTORS, 5 * losses + 2, 2.0) == pytest.approx((0.3, 0.7), abs=1e-3)
        assert TransferLaw.of(0, 0.1, 1, 0.5, 0.5, 0).effective(np.array([[50.0, 150.0]])) == pytest.approx(56.123724)

    @pytest.mark.parametrize(
        ("budget", "weights", "objective"),
        [
            (5, (0.4118, 0.2683, 0.3199), 6.66053),
            (20, (0.4202, 0.2572, 0.3226), 6.492995),
            (200, (0.4233, 0.2512, 0.3255), 6.230204),
            (500, (0.4229, 0.2507, 0.3265), 6.132112),
        ],
    )
    def test_published_constants(self, budget, weights, objective):
        w = optimal(laws(), budget).vector()
        assert w == pytest.approx(weights, abs=1e-4)
        total = sum(law.predict(w[None] * budget)[0] for law in laws().values())
        assert total == pytest.approx(objective, abs=1e-5)

    @pytest.mark.parametrize("budget", [1.0, 7.0, 1000.0])
    def test_without_transfer_the_optimum_is_closed(self, budget):
        two = {
            name: TransferLaw.of(i, 0.1, c, 0.0, 0.5, 0.0) for i, (name, c) in enumerate({"a": 1.0, "b": 2.0}.items())
        }
        assert optimal(two, budget).weights == pytest.approx({"a": 0.34748, "b": 0.65252}, abs=1e-4)

    def test_identical_domains_and_order(self):
        same = {name: TransferLaw.of(i, 0.1, 1, 0.2, 0.5, 1) for i, name in enumerate("abc")}
        assert optimal(same, 5).vector() == pytest.approx([1 / 3] * 3, abs=1e-4)
        turned = {name: TransferLaw.of(i, *PUBLISHED[name]) for i, name in enumerate(("code", "if", "math"))}
        assert optimal(turned, 20).weights == pytest.approx(optimal(laws(), 20).weights, abs=1e-4)

    def test_importance_of_one_domain(self):
        assert optimal(laws(), 20, {"math": 1.0}).weights["math"] > 0.99

    def test_convex_and_refused_outside_of_its_ranges(self):
        rng = np.random.default_rng(0)
        a, b = rng.dirichlet(np.ones(3), 1000), rng.dirichlet(np.ones(3), 1000)
        total = Mean(list(laws().values()))
        assert (total.predict((a + b) * 10) <= (total.predict(20 * a) + total.predict(20 * b)) / 2 + 1e-12).all()
        with pytest.raises(ValueError, match="beta must be a number >= 0"):
            TransferLaw.of(0, -0.1, 1, 0.2, 0.5, 1)
        bent = TransferLaw.of(0, 0.1, 1, 0.2, 0.5, 1)
        bent.beta = -0.5
        assert (bent.predict((a + b) * 10) > (bent.predict(20 * a) + bent.predict(20 * b)) / 2 + 1e-9).any()

    def test_gradient(self):
        for law in laws().values():
            assert slope_error(law, np.array([2.0, 3.0, 4.0])) < 1e-7
        assert slope_error(AtBudget(laws()["if"], 20), np.array([0.2, 0.3, 0.5])) < 1e-6

    def test_the_runs_of_the_design(self):
        runs = perturbations(["a", "b", "c"], 0.66)
        assert runs.shape == (4 * 3 + 1, 3)
        assert (runs[0] == 0.66).all()
        assert ((runs[1:] != 0.66).sum(1) == 1).all()

    @pytest.mark.parametrize("which", ["own", "all"])
    def test_fit_recovers_the_curve(self, which):
        truth = TransferLaw.of(1, 0.3, 2.0, 0.6, 0.4, 1.0)
        runs = perturbations(["a", "b", "c"], 1.0)
        law = TransferLaw(1, runs=which).fit(runs, truth.predict(runs))
        own = (np.delete(runs, 1, axis=1) == 1.0).all(1)
        assert law.predict(runs[own]) == pytest.approx(truth.predict(runs[own]), abs=1e-5)
        assert law.beta == pytest.approx(0.3, abs=1e-3)
        assert law.gamma * 2.0**law.alpha == pytest.approx(0.6 * 2.0**0.4, abs=1e-3)
        if which == "all":
            assert law.alpha == pytest.approx(0.4, abs=1e-3)
            assert law.predict(50 * runs) == pytest.approx(truth.predict(50 * runs), rel=1e-4)

    def test_released_losses_of_a_language_model(self):
        # Llama-3.2-3B, instruction following, 0.66 M tokens a domain
        losses = [2.3094, 2.2920, 2.2601, 2.2253, 2.2078]
        runs = perturbations(["if", "math", "code"], 0.66)
        y = np.full(len(runs), np.nan)
        for factor, loss in zip(FACTORS, losses, strict=True):
            y[np.isclose(runs[:, 0], factor * 0.66) & (runs[:, 1:] == 0.66).all(1)] = loss
        own = np.isfinite(y)
        law = TransferLaw(0).fit(runs[own], y[own])
        assert np.abs(law.predict(runs[own]) - y[own]).max() < 1e-3
        assert law.e >= 0

    def test_noise_is_told_and_flat_losses_are_refused(self):
        losses = 2 * (FACTORS + 0.7) ** -0.3 + 1
        losses[2] = losses[0] + 0.01
        with pytest.warns(UserWarning, match="1 of 6 pairs of runs are left out"):
            _beta(FACTORS, losses, 2.0)
        with pytest.raises(ValueError, match="do not fall"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _beta(FACTORS, np.arange(5.0), 2.0)
        with pytest.raises(ValueError, match="four runs or more that differ in domain 0 only"):
            TransferLaw(0).fit(np.ones((5, 2)), np.ones(5))

    def test_what_alpha_decides(self):
        fitted = laws()
        for law in fitted.values():
            law.others = 1.32
        near, far = optimal_range(fitted, 1.98), optimal_range(fitted, 500)
        width = {name: high - low for name, (low, high) in near.items()}
        assert all(high - low > width[name] for name, (low, high) in far.items())


def test_autoscale():
    mixture = autoscale({"a": 1, "b": 4}, {"a": 2, "b": 6}, budget=13)
    assert mixture.weights == pytest.approx({"a": 4 / 13, "b": 9 / 13})
    assert autoscale({"a": 1, "b": 4}, {"a": 2, "b": 6}, budget=8).weights == pytest.approx({"a": 0.25, "b": 0.75})
    with pytest.raises(ValueError, match="budgets must grow"):
        autoscale({"a": 2, "b": 6}, {"a": 1, "b": 4}, budget=13)
