"""The language model as annotator: prompts, strict answers, retries, refusals, and permuted options."""

import re

import numpy as np
import pytest

from omnimix.corpora.annotation import Annotator, annotated, shown, texts
from omnimix.corpora.discover.annotator import TaxonomyAnnotator
from omnimix.corpora.discover.product import Product
from omnimix.corpora.discover.taxonomy import Taxonomy, TaxonomyClassifier

from .texts import documents

KINDS = Taxonomy("kind", {"news": "reports", "forum": "", "shop": "prices", "poem": ""}, "what kind of page it is")
MANY = Taxonomy("kind", [f"kind {i}" for i in range(30)])
MANY_NAMED = Taxonomy("other", MANY.names)


def options(prompt):
    """sign -> label of a prompt."""
    return dict(re.findall(r"^([A-Z]|\d+): ([\w ]+?)(?: \(|$)", prompt, re.MULTILINE))


def always(label):
    """A language model that answers with the sign of one label."""

    def ask(prompts):
        return [{name: sign for sign, name in options(prompt).items()}[label] for prompt in prompts]

    return ask


def pages(count=20):
    return [{"text": f"page {i}"} for i in range(count)]


@pytest.mark.parametrize("label", KINDS.names)
def test_answers_are_mapped_back_whatever_the_order_of_the_options(label):
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        return always(label)(prompts)

    annotator = TaxonomyAnnotator(KINDS, ask)
    assert isinstance(annotator, Annotator)
    assert annotated(annotator, pages()) == {"kind": [label] * 20}
    shown = {tuple(options(prompt).values()) for prompt in asked}
    assert len(shown) > 5  # of the 24 orders
    assert all(sorted(order) == sorted(KINDS.names) for order in shown)


def test_the_prompt_of_a_document_does_not_depend_on_where_it_stands():
    first, second = [], []
    TaxonomyAnnotator(KINDS, lambda p: first.extend(p) or ["A"] * len(p)).annotate(pages())
    TaxonomyAnnotator(KINDS, lambda p: second.extend(p) or ["A"] * len(p)).annotate(pages()[::-1])
    assert first == second[::-1]
    other = TaxonomyAnnotator(KINDS, always("news"), seed=1)
    assert [other.prompt(f"page {i}") for i in range(20)] != first
    assert "what kind of page it is" in first[0]
    assert "page 0" in first[0]
    assert re.search("news \\(reports\\)", first[0])


def test_letters_are_asked_equally_often():
    counts = {sign: set() for sign in "ABCD"}
    annotator = TaxonomyAnnotator(KINDS, always("news"))
    for i in range(40):
        for sign, label in options(annotator.prompt(f"page {i}")).items():
            counts[sign].add(label)
    assert all(labels == set(KINDS.names) for labels in counts.values())


@pytest.mark.parametrize(
    ("answer", "sign"),
    [
        ("B", "B"), (" C\n", "C"), ("D.", "D"), ("(A)", "A"), ("B: since it lists prices", "B"), ("**C**", "C"),
        ("A\nbecause", "A"), ('"D"', "D"), ("A page about shopping", None), ("E", None), ("a", None), ("", None),
        ("I cannot judge this text.", None), ("The answer is B", None), ("BC", None), ("B or C", None),
        ("D - it rhymes", "D"), ("A-level tests", None), ("A.I.", None), ("A, B", None), ("C, as an AI", None),
        ("**B.** prices", "B"),
    ],
)  # fmt: skip
def test_only_a_clear_answer_counts(answer, sign):
    at = TaxonomyAnnotator(KINDS, always("news")).parse(answer)
    assert at == (None if sign is None else "ABCD".index(sign))


def test_more_than_26_labels_have_numbers():
    annotator = TaxonomyAnnotator(MANY, always("kind 17"))
    assert annotator.annotate(pages(5)) == {"kind": ["kind 17"] * 5}
    assert annotator.parse("30") == 29
    assert annotator.parse("31") is None
    assert annotator.parse("3 or 4") is None


def test_bad_answers_are_asked_again_and_told_why():
    rounds = []

    def ask(prompts):
        rounds.append(list(prompts))
        return [
            "no idea" if len(rounds) == 1 and "page 3" in p else a
            for p, a in zip(prompts, always("shop")(prompts), strict=True)
        ]

    annotator = TaxonomyAnnotator(KINDS, ask)
    assert annotator.annotate(pages(5)) == {"kind": ["shop"] * 5}
    assert [len(prompts) for prompts in rounds] == [5, 1]
    assert rounds[1][0].startswith(rounds[0][3])
    assert "'no idea'" in rounds[1][0]
    assert annotator.counts == {"asked": 5, "asked again": 1, "refused": 0}


def test_refusals_are_told_or_counted():
    def ask(prompts):
        return ["I would rather not." if "page 1" in p else "A" for p in prompts]

    with pytest.raises(
        ValueError, match=r"document 1 \('page 1'\): the answer for kind is 'I would rather not\.' after 2"
    ) as told:
        TaxonomyAnnotator(KINDS, ask).annotate(pages(3))
    assert "allowed is one of A, B, C, D. 1 of 3 documents have no valid answer" in str(told.value)
    annotator = TaxonomyAnnotator(KINDS, ask, refusal="skip", retries=1)
    labels = annotator.annotate(pages(3))["kind"]
    assert labels[1] is None
    assert None not in (labels[0], labels[2])
    assert annotator.counts == {"asked": 3, "asked again": 1, "refused": 1}


def test_soft_labels_from_log_probabilities():
    truth = np.log([0.1, 0.2, 0.3, 0.4])  # by label

    def score(prompts, answers):
        assert answers == ["A", "B", "C", "D"]
        return np.array([[truth[KINDS.names.index(options(p)[sign])] - 3 for sign in answers] for p in prompts])

    annotator = TaxonomyAnnotator(KINDS, score=score)
    p = annotator.probabilities(pages())
    assert p == pytest.approx(np.tile([0.1, 0.2, 0.3, 0.4], (20, 1)))
    columns = annotator.annotate(pages(2))
    assert columns["kind"] == ["poem", "poem"]
    assert columns["kind_confidence"] == pytest.approx([0.4, 0.4])
    with pytest.raises(ValueError, match=r"score must give \(2, 4\) log-probabilities"):
        TaxonomyAnnotator(KINDS, score=lambda p, a: np.full((2, 4), np.nan)).annotate(pages(2))


def test_a_classifier_learns_from_the_annotator():
    topics = Taxonomy("topic", ["food", "sports", "space"])
    given = documents(120)
    by_text = {one["text"]: one["topic"] for one in given}

    def score(prompts, answers):
        rows = []
        for prompt in prompts:
            topic = by_text[re.search(r"<<<\n(.*)\n>>>\n\nAnswer with", prompt)[1]]
            rows.append([0.0 if options(prompt)[sign] == topic else -2.0 for sign in answers])
        return np.array(rows)

    annotator = TaxonomyAnnotator(topics, score=score)
    classifier = TaxonomyClassifier(topics).fit(given, annotator.probabilities(given))
    fresh = documents(60, seed=1)
    assert np.mean([a == b["topic"] for a, b in zip(classifier.annotate(fresh)["topic"], fresh, strict=True)]) > 0.95


def test_examples_are_shown_solved_with_the_signs_of_the_prompt():
    annotator = TaxonomyAnnotator(KINDS, always("news"), examples=[("roses are red", "poem"), ("only 5 euros", "shop")])
    orders = set()
    for i in range(10):
        prompt = annotator.prompt(f"page {i}")
        signs = {name: sign for sign, name in options(prompt).items()}
        assert f"roses are red\n>>>\n\nAnswer: {signs['poem']}" in prompt
        assert f"only 5 euros\n>>>\n\nAnswer: {signs['shop']}" in prompt
        orders.add(prompt.index("roses") < prompt.index("euros"))
    assert orders == {True, False}
    with pytest.raises(ValueError, match="document 0: kind is 'novel'"):
        TaxonomyAnnotator(KINDS, always("news"), examples=[("x", "novel")])


def test_long_texts_are_cut():
    prompt = TaxonomyAnnotator(KINDS, always("news"), characters=10).prompt("abcdefghijKLMN")
    assert "abcdefghij... (cut)" in prompt
    assert "KLMN" not in prompt


def test_refused_settings():
    with pytest.raises(ValueError, match="give either ask"):
        TaxonomyAnnotator(KINDS)
    with pytest.raises(ValueError, match="refusal must be one of 'raise', 'skip'"):
        TaxonomyAnnotator(KINDS, always("news"), refusal="ignore")
    with pytest.raises(ValueError, match="ask must give 3 texts for as many prompts, got 1"):
        TaxonomyAnnotator(KINDS, lambda p: ["A"]).annotate(pages(3))
    with pytest.raises(ValueError, match="soft labels need score"):
        TaxonomyAnnotator(KINDS, always("news")).probabilities(pages(1))
    assert TaxonomyAnnotator(KINDS, always("news")).annotate([]) == {"kind": []}


def test_annotated_checks_what_an_annotator_gives():
    class Short:
        def annotate(self, documents):
            return {"a": [1]}

    class Nothing:
        def annotate(self, documents):
            return {}

    with pytest.raises(ValueError, match="Short: column 'a' has 1 values for 2 documents"):
        annotated(Short(), pages(2))
    with pytest.raises(ValueError, match="Nothing gave no column"):
        annotated(Nothing(), pages(2))
    assert annotated(Short(), pages(1)) == {"a": [1]}
    assert texts([{"a": "x", "b": "y"}], ("b", "a")) == ["y\n\nx"]


def test_a_document_without_a_label_has_no_pair():
    unsure = TaxonomyAnnotator(KINDS, lambda p: ["?"] * len(p), refusal="skip")
    sure = TaxonomyAnnotator(MANY_NAMED, always("kind 3"))
    assert Product({"kind": unsure, "other": sure}).annotate(pages(1))["domain"] == [None]


def test_long_values_are_cut_in_messages():
    with pytest.raises(ValueError, match="must hold text, got") as refused:
        texts([{"text": list(range(10_000))}])
    assert len(str(refused.value)) < 200
    assert shown("x" * 78) == repr("x" * 78)
    assert shown("x" * 500) == "'" + "x" * 79 + "..."
