"""Domain2Vec: the card's mixture for every distance, oracles, caps, the search, and laws through vectors."""

import numpy as np
import pytest
import torch

from omnimix.corpora.discover.vectors import DatasetVectors
from omnimix.corpora.weigh.base import Regressor
from omnimix.corpora.weigh.domain2vec import (
    DISTANCES,
    Alignment,
    ThroughVectors,
    align,
    domain2vec,
    domain2vec_regmix,
    interval,
    meta_law,
)
from omnimix.corpora.weigh.linear import OLS
from omnimix.corpora.weigh.mixing_laws import MixingLaw
from omnimix.corpora.weigh.run_table import RunTable

V = np.array([[0.8, 0.1], [0.1, 0.3], [0.1, 0.6]])
R0 = np.array([3 / 7, 4 / 7])


def problems(count, n=12, k=5, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.dirichlet(np.ones(n), k).T, rng.dirichlet(np.ones(n))


def vectors(matrix, unit="documents"):
    n, k = matrix.shape
    meta, names = tuple(f"m{i}" for i in range(n)), tuple(f"d{i}" for i in range(k))
    return DatasetVectors(meta, names, matrix, (1000,) * k, unit)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_card_s_mixture_comes_back(distance):
    assert pytest.approx([0.4, 0.2142857, 0.3857143], abs=1e-7) == V @ R0
    assert align(V, V @ R0, distance=distance) == pytest.approx(R0, abs=1e-4)
    # the unconstrained least squares of the card, (.429632, .567310), sums to less than 1
    free = np.linalg.lstsq(V, np.array([0.4, 0.22, 0.38]), rcond=None)[0]
    assert free == pytest.approx([0.429632, 0.567310], abs=1e-6)
    near = align(V, np.array([0.4, 0.22, 0.38]), distance=distance)
    assert near.sum() == pytest.approx(1, abs=1e-9)
    assert (near >= 0).all()
    grid = np.linspace(0, 1, 100_001)
    objective = Alignment(V, np.array([0.4, 0.22, 0.38]), distance)
    best = grid[objective.predict(np.stack([grid, 1 - grid], 1)).argmin()]
    assert near[0] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_limits(distance):
    (matrix, q) = next(problems(1, n=6, k=6))
    assert align(np.eye(6), q, distance=distance) == pytest.approx(q, abs=1e-4)
    assert align(matrix[:, :1], q, distance=distance) == pytest.approx([1])
    for j in range(3):
        assert align(matrix, matrix[:, j], distance=distance) == pytest.approx(np.eye(6)[j], abs=1e-4)
    r = align(matrix, q, distance=distance)
    order, other = np.array([3, 0, 5, 1, 4, 2]), np.array([1, 0, 2, 5, 4, 3])
    assert align(matrix[:, order], q, distance=distance) == pytest.approx(r[order], abs=1e-4)
    assert align(matrix[other], q[other], distance=distance) == pytest.approx(r, abs=1e-4)


def test_the_gradient_is_the_derivative():
    for matrix, q in problems(5):
        r = np.random.default_rng(1).dirichlet(np.ones(5))
        for distance in DISTANCES:
            objective = Alignment(matrix, q, distance)
            slope, step = objective.gradient(r), 1e-6
            for j in range(5):
                up, down = r + step * np.eye(5)[j], r - step * np.eye(5)[j]
                truth = (objective.predict(up[None]) - objective.predict(down[None]))[0] / (2 * step)
                assert slope[j] == pytest.approx(truth, rel=1e-4, abs=1e-7)


def test_distances_by_hand():
    q, r = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0])
    # d = V r - q = (.3, -.2, -.1)
    expected = {"l1": 0.6, "l2": 0.07, "huber": 0.1 * (0.25 + 0.15) + 0.005}
    for distance, value in expected.items():
        assert Alignment(V, q, distance, delta=0.1).predict(r[None])[0] == pytest.approx(value)
    p, m = V @ r, (V @ r + q) / 2
    js = ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2
    assert Alignment(V, q, "js").predict(r[None])[0] == pytest.approx(js)
    # a large delta is L2: probabilities never differ by more than 1
    assert Alignment(V, q, "huber", 1.0).predict(r[None]) == pytest.approx(Alignment(V, q, "l2").predict(r[None]))


def test_never_worse_than_the_search():
    for number, (matrix, q) in enumerate(problems(50)):
        drawn, distance = np.random.default_rng(2).dirichlet(np.ones(5), 2000), DISTANCES[number % 4]
        objective = Alignment(matrix, q, distance)
        exact = objective.predict(align(matrix, q, distance=distance)[None])[0]
        assert exact <= objective.predict(drawn).min() + 1e-9


def test_least_squares_oracle():
    from scipy.optimize import nnls

    for matrix, q in problems(10, seed=3):
        # a heavy row makes the sum 1
        oracle = nnls(np.vstack([matrix, np.full((1, 5), 1e4)]), np.append(q, 1e4))[0]
        assert align(matrix, q, distance="l2") == pytest.approx(oracle, abs=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_data_sets_that_are_alike_share_as_the_prior_says(distance):
    matrix = np.column_stack([V[:, 0], V[:, 0], V[:, 1]])
    equal = align(matrix, V @ R0, distance=distance)
    assert equal == pytest.approx([R0[0] / 2, R0[0] / 2, R0[1]], abs=1e-3)
    skewed = align(matrix, V @ R0, distance=distance, prior=np.array([3.0, 1, 4]))
    assert skewed == pytest.approx([0.75 * R0[0], 0.25 * R0[0], R0[1]], abs=1e-3)
    same = np.repeat(V[:, :1], 3, axis=1)
    assert align(same, V @ R0, distance=distance, prior=np.array([2.0, 1, 1])) == pytest.approx(
        [0.5, 0.25, 0.25], abs=1e-3
    )


def test_caps_from_sizes():
    found = domain2vec(vectors(V), V @ R0, sizes={"d0": 10, "d1": 90}, budget=100)
    assert found.weights["d0"] == pytest.approx(0.1, abs=1e-9)
    for distance in DISTANCES:
        r = align(V, V @ R0, distance=distance, caps=np.array([0.1, 1.0]))
        assert r == pytest.approx([0.1, 0.9], abs=1e-6)
    drawn = domain2vec(
        vectors(V), V @ R0, sizes={"d0": 10, "d1": 90}, budget=50, solver="search", draws=2000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert 0.19 < drawn.weights["d0"] <= 0.2
    with pytest.raises(ValueError, match="sum is 1 or more"):
        domain2vec(vectors(V), V @ R0, sizes={"d0": 10, "d1": 90}, budget=200)
    assert domain2vec(vectors(V), V @ R0, sizes={"d0": 90, "d1": 90}, budget=200, max_epochs=2).weights["d0"] < 0.5
    with pytest.raises(ValueError, match="a budget needs sizes"):
        domain2vec(vectors(V), V @ R0, budget=200)


def test_the_search_is_the_best_of_its_draws_and_says_what_it_reached():
    def search(top=1):
        generator = torch.Generator().manual_seed(4)
        return domain2vec(vectors(V, "tokens"), V @ R0, solver="search", draws=3000, top=top, generator=generator)

    found = search()
    assert found.vector() == pytest.approx(R0, abs=0.01)
    assert found == search()
    assert found.unit == "tokens"
    assert search(100).weights != found.weights
    facts = found.provenance
    assert facts["reached"] == pytest.approx(Alignment(V, V @ R0).predict(found.vector()[None])[0])
    assert 0 <= facts["nearest"] < facts["reached"]
    assert (facts["method"], facts["meta_domains"], facts["documents"]) == ("domain2vec", 3, {"d0": 1000, "d1": 1000})


def test_few_validation_documents_leave_much_open():
    rng = np.random.default_rng(5)
    documents = rng.dirichlet(5 * (V @ R0), 400)
    widths = {}
    for count in (40, 400):
        low, high = interval(V, documents[:count], resamples=40, generator=torch.Generator().manual_seed(0))
        widths[count] = (high - low)[0]
        assert low[0] <= R0[0] <= high[0]
        assert high[0] + low[1] == pytest.approx(1, abs=1e-6)
    assert widths[400] < widths[40] / 2


class Linear(Regressor):
    """a . x, without an intercept."""

    def _fit(self, x, y):
        self.a = np.linalg.lstsq(x, y, rcond=None)[0]

    def predict(self, weights):
        return weights @ self.a


def runs(metrics, seed=6, count=40):
    rng = np.random.default_rng(seed)
    x = rng.dirichlet(np.ones(3), count)
    return RunTable(
        ("m0", "m1", "m2"), metrics, x, x @ rng.normal(size=(3, len(metrics))) + 5, tuple(map(str, range(count)))
    )


def test_linear_laws_have_their_optimum_at_a_vertex():
    table = runs(("loss/m0", "loss/m1", "loss/m2"))
    q = np.array([0.5, 0.2, 0.3])
    matrix = np.random.default_rng(7).dirichlet(np.ones(3), 4).T
    law = meta_law(table, ("m0", "m1", "m2"), q, Linear)
    best = int(ThroughVectors(law, matrix).predict(np.eye(4)).argmin())
    # by hand: a_j from the runs, sum_j q_j a_j . V r
    a = np.linalg.lstsq(table.weights, table.losses, rcond=None)[0]
    assert int((matrix.T @ a @ q).argmin()) == best
    found = domain2vec_regmix(
        table, vectors(matrix), q, make=Linear, draws=20_000, top=1, generator=torch.Generator().manual_seed(0)
    )
    assert max(found.weights, key=found.weights.get) == f"d{best}"
    assert found.weights[f"d{best}"] > 0.95
    sizes = dict.fromkeys(vectors(matrix).datasets, 30.0)
    capped = domain2vec_regmix(
        table, vectors(matrix), q, make=Linear, sizes=sizes, budget=60, draws=20_000, top=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert 0.45 < capped.weights[f"d{best}"] <= 0.5


def test_the_identity_is_plain_regmix():
    pytest.importorskip("lightgbm")
    from omnimix.corpora.weigh.design import MixtureDesign
    from omnimix.corpora.weigh.propose import simulate
    from omnimix.corpora.weigh.regmix import LightGBM

    table, q = runs(("loss/m0", "loss/m2"), count=60), np.array([1.0, 0.0, 0.0])
    model = LightGBM(rounds=50, leaf=5).fit(table.weights, table.loss("loss/m0"))
    design = MixtureDesign(dict.fromkeys("abc", 1.0), temperature=1, strength=(1, 1), strengths=1, cap=None)
    plain = simulate(model, design.candidates(1000, torch.Generator().manual_seed(1)), 20)
    found = domain2vec_regmix(
        table, vectors(np.eye(3)), q, make=lambda: LightGBM(rounds=50, leaf=5), draws=1000, top=20,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert found.vector() == pytest.approx(plain, abs=1e-12)
    with pytest.raises(ValueError, match="no loss on m1"):
        meta_law(table, ("m0", "m1", "m2"), np.array([0.5, 0.5, 0]), OLS)


def test_a_convex_law_stays_convex_through_vectors():
    rng = np.random.default_rng(8)
    x = rng.dirichlet(np.ones(3), 60)
    y = 2 + np.exp(-2 * x[:, 0]) + np.exp(-3 * x[:, 1] - x[:, 2])
    table = RunTable(("m0", "m1", "m2"), ("m0", "m1"), x, np.stack([y, y], 1), tuple(map(str, range(60))))
    matrix = rng.dirichlet(np.ones(3), 4).T
    found = domain2vec_regmix(table, vectors(matrix), np.array([1.0, 0, 0]), make=MixingLaw)
    law = ThroughVectors(meta_law(table, ("m0", "m1", "m2"), np.array([1.0, 0, 0]), MixingLaw), matrix)
    drawn = rng.dirichlet(np.ones(4), 5000)
    assert found.provenance["predicted"] <= law.predict(drawn).min() + 1e-6


def test_refused():
    with pytest.raises(ValueError, match="the matrix must hold distributions"):
        align(2 * V, V @ R0)
    with pytest.raises(ValueError, match=r"must be \(n, k\) and the target \(n,\)"):
        align(V, np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="distance must be one of"):
        align(V, V @ R0, distance="cosine")
    with pytest.raises(ValueError, match="nothing to fit"):
        Alignment(V, V @ R0).fit(np.ones((3, 2)), np.ones(3))


def test_one_data_set_is_all_there_is_and_sizes_are_of_every_data_set():
    one = domain2vec(vectors(V[:, :1]), V @ R0, solver="search", top=100, draws=200)
    assert one.weights == {"d0": 1}
    table, q = runs(("loss/m0", "loss/m1", "loss/m2")), V @ R0
    assert domain2vec_regmix(table, vectors(V[:, :1]), q, make=Linear, draws=200).weights == {"d0": 1}
    with pytest.raises(ValueError, match="sizes has no number for d0"):
        domain2vec(vectors(V), V @ R0, sizes={"D0": 10, "d1": 90})
