import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from omnimix.corpora import Mixture
from omnimix.corpora.draw import implicit_mixture, select_documents

DOMAIN = ["a", "b", "a", "b", "a", "b"]
TOKENS = [10, 10, 20, 30, 40, 10]
PICKED = [0, 1, 2, 10]


def test_the_best_documents_of_each_domain_by_hand():
    found = select_documents(DOMAIN, TOKENS, {"a": 0.5, "b": 0.5}, 80, score=[1, 5, 3, 4, 2, 9])
    # a: 2 (20), then 4 (40) gives 60, 20 from 40 as 20 is: not taken; b: 5 (10), 1 (10), then 3 (30) gives 50, nearer
    assert found.index.tolist() == [1, 2, 3, 5]
    assert found.tokens == {"a": 20, "b": 50}
    assert found.short == ()


def test_what_a_domain_lacks_goes_to_the_others():
    found = select_documents(["a"] * 2 + ["b"] * 20, [5] * 22, {"a": 0.5, "b": 0.5}, 60, score=np.arange(22))
    assert found.tokens == {"a": 10, "b": 50}
    assert found.short == ("a",)
    assert found.index.tolist() == [0, 1, *range(12, 22)]


def test_quotas_at_random_are_near_the_shares():
    source = np.random.default_rng(0)
    domain, tokens = source.choice(["a", "b", "c"], 5000), source.integers(1, 50, 5000)
    found = select_documents(
        domain, tokens, Mixture({"a": 0.6, "b": 0.4}), 30_000, generator=torch.Generator().manual_seed(1)
    )
    assert abs(found.tokens["a"] - 18_000) <= 25
    assert abs(found.tokens["b"] - 12_000) <= 25
    assert len(set(found.index.tolist())) == len(found.index)
    assert set(domain[found.index]) == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [0, 1, 1, 1, 1, 1]}, "tokens"),
        ({"mixture": {"c": 1.0}}, "'c'"),
        ({"score": [float("nan")] * 6}, "NaN"),
        ({"score": None}, "generator"),
        ({"budget": 0}, "budget"),
        ({"mixture": Mixture({"a": 1.0}, unit="documents")}, "to_unit"),
        ({"domain": ["a"]}, "equal length"),
        ({"tau": 1.0}, "at random, ids of the documents or a generator"),
        ({"tau": 0.0, "ids": range(6)}, "tau"),
        ({"score": None, "tau": 1.0}, "tau=1.0 divides scores"),
        ({"ids": range(5)}, "ids must name each of the 6"),
        ({"ids": range(6), "generator": torch.Generator()}, "not both"),
        ({"shortage": "ignore"}, "shortage must be one of"),
    ],
)
def test_refusals(change, message):
    given = {"domain": DOMAIN, "tokens": TOKENS, "mixture": {"a": 1.0}, "budget": 10, "score": [1] * 6, **change}
    with pytest.raises(ValueError, match=message):
        select_documents(**given)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_first_pick_of_gumbel_selection_is_softmax(tau):
    score, generator = np.array([0.0, 0.5, 1.0, -1.0]), torch.Generator().manual_seed(0)
    given = (["a"] * 4, [1] * 4, {"a": 1.0}, 1)
    first = [select_documents(*given, score=score, tau=tau, generator=generator).index[0] for _ in range(1500)]
    p = np.exp(score / tau) / np.exp(score / tau).sum()
    assert chisquare(np.bincount(first, minlength=4), 1500 * p).pvalue > 1e-3


def test_gumbel_selection_between_uniform_and_the_best():
    score, generator = np.arange(6.0) * 100, torch.Generator().manual_seed(1)
    given = (["a"] * 6, [1] * 6, {"a": 1.0}, 2)
    pairs = np.zeros((6, 6))
    for _ in range(2000):
        pairs[tuple(select_documents(*given, score=score, tau=float("inf"), generator=generator).index)] += 1
    assert chisquare(pairs[np.triu_indices(6, 1)]).pvalue > 1e-3
    for ids in (None, range(6)):
        found = select_documents(*given, score=score, tau=1e-9, ids=ids, generator=None if ids else generator)
        assert found.index.tolist() == [4, 5]


@pytest.mark.parametrize("how", [{}, {"score": True}, {"score": True, "tau": 0.7}])
def test_documents_with_ids_are_chosen_in_any_order(how):
    source = np.random.default_rng(0)
    n = 400
    domain, tokens = source.choice(["a", "b"], n), source.integers(1, 50, n)
    score = source.integers(0, 3, n).astype(float)  # many ties
    ids = np.array([f"doc-{i % 390}" for i in range(n)])  # ten ids are there twice
    place = source.permutation(n)

    def chosen(rows, seed=42):
        given = {**how, **({"score": score[rows]} if "score" in how else {})}
        found = select_documents(
            domain[rows], tokens[rows], {"a": 0.7, "b": 0.3}, 2000, ids=ids[rows], seed=seed, **given
        )
        return set(rows[found.index].tolist())

    assert chosen(np.arange(n)) == chosen(place)
    assert chosen(np.arange(n)) != chosen(np.arange(n), seed=43)


def test_keys_of_ids_are_uniform_and_the_same_in_every_process():
    found = select_documents(["a"] * 12, [1] * 12, {"a": 1.0}, 4, ids=[f"page {i}" for i in range(12)])
    assert found.index.tolist() == PICKED
    taken = [
        select_documents(["a"] * 8, [1] * 8, {"a": 1.0}, 2, ids=["same"] * 2 + list("bcdefg"), seed=s).index
        for s in range(1500)
    ]
    counts = np.bincount(np.concatenate(taken), minlength=8)
    assert abs(counts[:2].sum() - 750) < 100  # two with the same id have chances of their own, like the others
    assert chisquare(counts[2:]).pvalue > 1e-3
    assert 0 < sum(one.tolist() == [0, 1] for one in taken) < 120


def test_a_shortage_raises_or_repeats():
    given = (["a"] * 2 + ["b"] * 20, [5, 4] + [5] * 20, {"a": 0.5, "b": 0.5}, 50)
    with pytest.raises(ValueError, match="'a' has 9 tokens, its share of the budget is 25"):
        select_documents(*given, score=np.arange(22), shortage="raise")
    found = select_documents(*given, score=np.arange(22), shortage="repeat")
    # twice both are 18; 4 more of the better one is 22, and 27 with the other: 22 and 27 miss 25 by 3 and 2
    assert found.index.tolist() == [0, 0, 0, 1, 1, 1, *range(17, 22)]
    assert found.tokens == {"a": 27, "b": 25}
    assert found.short == ("a",)
    enough = select_documents(*given[:3], 18, score=np.arange(22), shortage="raise")
    assert enough.tokens == {"a": 9, "b": 10}
    assert enough.short == ()


def test_the_mixture_that_a_filter_makes():
    domain, tokens = ["a", "b", "a", "c"], [10, 30, 20, 40]
    assert implicit_mixture(domain, tokens, [1.0] * 4, 37).weights == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.4})
    found = implicit_mixture(domain, tokens, [3, 3, 1, 0], 50)
    assert found.weights == pytest.approx({"a": 0.4, "b": 0.6, "c": 0.0})  # 10 and 30, and half of 20
    with pytest.raises(ValueError, match="100 tokens, less than the budget of 101"):
        implicit_mixture(domain, tokens, [3, 3, 1, 0], 101)
