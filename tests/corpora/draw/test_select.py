import numpy as np
import pytest
import torch

from omnimix.corpora import Mixture
from omnimix.corpora.draw import select_documents

DOMAIN = ["a", "b", "a", "b", "a", "b"]
TOKENS = [10, 10, 20, 30, 40, 10]


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
    ],
)
def test_refusals(change, message):
    given = {"domain": DOMAIN, "tokens": TOKENS, "mixture": {"a": 1.0}, "budget": 10, "score": [1] * 6, **change}
    with pytest.raises(ValueError, match=message):
        select_documents(**given)
