"""Scores, learning curves, and a study from runs to a proposal."""

import numpy as np
import pytest

from omnimix.corpora.weigh import OLS, MixingLaw, RunTable, domain_ranking, flops, learning_curve, score, study
from omnimix.corpora.weigh.study import How, epoch_caps, invariance, parse


def table(n, seed, shift=0.0, metrics=("loss/a", "loss/b")):
    x = np.random.default_rng(seed).dirichlet(np.ones(3), n)
    y = np.stack([2 + np.exp(-2 * x[:, 0] + 0.3 * x[:, 1]), 3 + np.exp(-x[:, 1])], axis=1) + shift
    return RunTable(("a", "b", "c"), metrics, x, y, tuple(map(str, range(n))))


def test_scores_by_hand():
    found = score(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    assert (found.n, found.mae, found.mse) == (3, pytest.approx(1.0), pytest.approx(5 / 3))
    assert found.spearman == pytest.approx(0.5)
    assert found.pearson == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])


def test_the_ranking_is_chosen_by_strength_with_its_sign():
    x = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    low, high = domain_ranking(x, -x[:, 1]), domain_ranking(x, x[:, 2])
    assert (low.domain, low.sign) == (1, -1)
    assert (high.domain, high.sign) == (2, 1)
    assert np.array_equal(low.ranks(x), -x[:, 1])
    with pytest.raises(ValueError, match="no domain's weight can rank"):
        domain_ranking(np.ones((3, 2)) / 2, np.arange(3.0))


def test_the_learning_curve_rises():
    runs, test = table(64, 0), table(50, 1)

    def make(rows):
        return MixingLaw().fit(runs.weights[rows], runs.loss("loss/a")[rows]).predict

    curve = learning_curve(make, 64, [(test.weights, test.loss("loss/a"))], [5, 64], repeats=3)
    assert [(n, len(values[0])) for n, values in curve] == [(5, 3), (64, 1)]
    assert curve[1][1][0][0] > 0.999
    assert np.mean(curve[0][1][0]) <= curve[1][1][0][0]


def test_a_study_from_runs_to_a_mixture():
    other = table(40, 1)
    bigger = RunTable(other.domains, other.metrics, other.weights, other.losses * 0.5 - 1, other.runs)
    tests = [("same", other), ("bigger", bigger.ordered(("c", "a", "b")))]
    found = study(table(40, 0), "loss/a", "mixing-law", parse("mixing-law", {}), tests)
    assert [t.score.spearman for t in found.tests] == pytest.approx([1, 1])
    assert found.tests[0].score.mae < 1e-4
    assert found.tests[1].score.mae > 0.5
    assert found.tests[0].place_of_best == 1
    assert max(found.proposal.weights, key=found.proposal.weights.get) == "a"
    assert found.predicted["proposal"] < min(found.predicted["uniform"], found.predicted["proportional"])
    assert invariance(found.tests, [t for _, t in tests]) == [("same", "bigger", 40, pytest.approx(1))]


def test_the_average_target_weighs_both_losses():
    runs = table(40, 0)
    found = study(runs, "average", "mixing-law", parse("mixing-law", {}), [("again", runs)], How(extrapolate=True))
    grid = np.random.default_rng(2).dirichlet(np.ones(3), 20_000)
    best = (2 + np.exp(-2 * grid[:, 0] + 0.3 * grid[:, 1]) + 3 + np.exp(-grid[:, 1])).min() / 2
    assert found.predicted["proposal"] == pytest.approx(best, abs=2e-3)
    assert found.tests[0].score.mae < 1e-4


def test_caps_of_a_proposal():
    caps = epoch_caps(("a", "b", "c"), {"a": 10, "b": 100, "c": 100}, budget=100, max_epochs=2)
    assert caps.tolist() == [0.2, 1, 1]
    found = study(
        table(40, 0), "loss/a", "ols", parse("ols", {}), (), How(proposer="convex", caps=caps, extrapolate=True)
    )
    assert found.proposal.weights["a"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="sizes has no number for c"):
        epoch_caps(("a", "c"), {"a": 10}, 100, 2)
    with pytest.raises(ValueError, match="belongs to the proposers convex and kl-search"):
        study(table(40, 0), "loss/a", "ols", parse("ols", {}), (), How(kl=1.0, candidates=100, top=5))


def test_laws_of_an_own_domain_need_its_name():
    assert parse("bimix", {"floor": 0.01})(2).domain == 2
    with pytest.raises(ValueError, match="no domain is named like 'loss/x'"):
        study(table(40, 0, metrics=("loss/x", "loss/y")), "loss/x", "bimix", parse("bimix", {}))
    assert isinstance(parse("ols", {})(None), OLS)


def test_flops():
    assert flops(1e6, 1e9, 512) == pytest.approx(3.072e18)
    with pytest.raises(ValueError, match="parameters must be a number > 0"):
        flops(0, 1)
