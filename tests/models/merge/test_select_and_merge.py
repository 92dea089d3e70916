"""SaM: which experts are chosen, what is merged, how answers are joined."""

import pytest
import torch

from omnimix.models import merge
from omnimix.models.merge.select_and_merge import SelectAndMerge, integrate, micro_f1, vote

X, Y = ("X", "PER"), ("Y", "LOC")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sam():
    made = SelectAndMerge({"w": torch.zeros(4)}, merge.Ties(density=0.5), m=2)
    deltas = torch.tensor([[2, -1, 0.1, 0.5], [1, 3, -0.2, -0.4], [-0.5, 2, 0.05, 0.6]])
    for i, name in enumerate(("a", "b", "c")):
        made.add(name, {"w": deltas[i]}, noise(5, 8, seed=i) + 3)
    return made


def test_the_merged_model_by_hand(sam):
    torch.testing.assert_close(sam.merged(["a", "b", "c"])["w"], torch.tensor([1.5, 2.5, 0, 0.6]))
    assert torch.equal(sam.merged(["c", "a", "b"])["w"], sam.merged(["a", "b", "c"])["w"])
    one = SelectAndMerge({"w": torch.zeros(4)}, merge.TaskArithmetic(normalize=True))
    for name, expert in sam.experts.items():
        one.add(name, expert, noise(2, 8))
    torch.testing.assert_close(one.merged(["a", "b", "c"])["w"], torch.tensor([2.5 / 3, 4 / 3, -0.05 / 3, 0.7 / 3]))
    assert torch.equal(one.merged(["b"])["w"], sam.experts["b"]["w"])


def test_the_expert_of_the_same_texts_comes_first(sam):
    for i, name in enumerate(("a", "b", "c")):
        found = sam.by_similarity(noise(5, 8, seed=i) + 3)
        assert len(found) == 2
        assert next(iter(found)) == name
        assert found[name] > 0.5


def test_votes_and_scores_by_hand(sam):
    predictions = {"a": [{"a", "b"}], "b": [{"a", "c"}], "c": [{"a", "b"}]}
    assert vote([*predictions.values()]) == [{"a", "b"}]
    assert [micro_f1(one, [{"a", "b"}]) for one in predictions.values()] == [1, 0.5, 1]
    assert sam.by_samples(predictions) == {"a": 1, "c": 1}
    assert sam.by_samples(predictions, [{"c"}]) == {"b": 2 / 3, "a": 0}
    assert sam.by_samples(predictions, alone=True)["a"] == pytest.approx(2 / 3)  # the others agree on "a" alone
    assert micro_f1([set()], [set()]) == 0


def test_answers_are_joined():
    assert integrate({X}, {X, Y}) == {X, Y}
    assert integrate({X}, {X, Y}, how="intersection") == {X}
    assert integrate({("X", "ORG")}, {X, Y}) == {("X", "ORG"), Y}


def test_merged_models_are_kept_until_an_expert_goes(sam):
    calls = []
    merged = sam.merger.__class__.__call__

    class Counting(merge.Ties):
        def __call__(self, *given, **options):
            calls.append(1)
            return merged(self, *given, **options)

    sam.merger = Counting(density=0.5)
    first, second = sam.merged(["a", "b"]), sam.merged(["b", "c"])
    assert sam.merged(["b", "a"]) is first
    assert len(calls) == 2
    sam.remove("a")
    assert sam.merged(["b", "c"]) is second
    assert len(calls) == 2
    with pytest.raises(ValueError, match="there is no expert 'a'"):
        sam.merged(["a", "b"])
    sam.kept = 1
    sam.merged(["b"])
    sam.merged(["b", "c"])
    assert len(calls) == 4


def test_answers_take_the_better_set_first(sam):
    predictions = {"a": [{X}], "b": [{X}], "c": [{("X", "ORG")}]}
    seen = []

    def predict(state):
        seen.append(state["w"])
        return [{("X", "ORG")} if len(seen) == 1 else {X}]

    sam.m = 1
    # the texts are those of c, the samples speak for a: its answer wins
    assert sam.answers(noise(5, 8, seed=2) + 3, predictions, predict) == [{X}]
    assert torch.equal(seen[0], sam.merged(["c"])["w"])
    assert torch.equal(seen[1], sam.merged(["a"])["w"])


def test_bad_arguments_are_named(sam):
    empty = SelectAndMerge({"w": torch.zeros(2)})
    for call, message in (
        (lambda: SelectAndMerge({}, merge.Linear()), "merger must be one that takes a base"),
        (lambda: SelectAndMerge({}, m=0), "m must be an integer >= 1"),
        (lambda: sam.add("a", {}, noise(2, 8)), "there is an expert 'a' already"),
        (lambda: sam.add("d", {}, noise(8)), r"embeddings must be of shape \(sentences, d\), got \(8,\)"),
        (lambda: empty.by_similarity(noise(2, 8)), "there are no experts yet"),
        (lambda: sam.by_samples({"a": [], "b": []}), "predictions must hold every expert, 'c' is missing"),
        (lambda: integrate(set(), set(), how="first"), "how must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
