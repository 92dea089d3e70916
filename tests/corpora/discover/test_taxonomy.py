"""Taxonomies: soft labels, the linear classifier against scikit-learn, two stages, agreement, products, saving."""

import numpy as np
import pytest
from scipy.special import softmax

from omnimix.corpora import Mixture
from omnimix.corpora.annotation import annotated
from omnimix.corpora.discover.embed import Tfidf
from omnimix.corpora.discover.linear import TfidfClassifier
from omnimix.corpora.discover.product import Product, product
from omnimix.corpora.discover.taxonomy import Taxonomy, TaxonomyClassifier, agreement
from omnimix.corpora.discover.vectors import DatasetVectors, mean_vector, sampled, vectorize
from omnimix.corpora.weigh.propose import water_fill

from .texts import FORMATS, TOPICS, documents

TOPIC = Taxonomy("topic", dict.fromkeys(TOPICS, "made up"))
FORMAT = Taxonomy("format", dict.fromkeys(FORMATS, ""))


def soft(taxonomy, given, confidence=None):
    return taxonomy.soft([one[taxonomy.name] for one in given], confidence)


@pytest.fixture(scope="module")
def trained():
    given = documents(200)
    return {
        taxonomy.name: TaxonomyClassifier(taxonomy).fit(given, soft(taxonomy, given)) for taxonomy in (TOPIC, FORMAT)
    }


def test_soft_labels():
    assert TOPIC.soft(["sports", 0], [0.8, 0.5]) == pytest.approx(np.array([[0.1, 0.8, 0.1], [0.5, 0.25, 0.25]]))
    assert TOPIC.soft(["space"]).tolist() == [[0, 0, 1]]
    with pytest.raises(
        ValueError, match="document 1: topic is 'sport'; allowed are 'food', 'sports', 'space', or 0 to 2"
    ):
        TOPIC.soft(["food", "sport"])
    for wrong in (3, -1, None, True):
        with pytest.raises(ValueError, match="document 0: topic is"):
            TOPIC.ids([wrong])
    with pytest.raises(ValueError, match="confidence must be a number in"):
        TOPIC.soft(["food"], [1.2])
    with pytest.raises(ValueError, match="two labels or more"):
        Taxonomy("x", {"a": ""})
    assert Taxonomy("x", ["a", "b"]).labels == {"a": "", "b": ""}
    with pytest.raises(ValueError, match="labels must differ"):
        Taxonomy("x", ["a", "a"])


def test_hard_labels_give_scikit_learn_s_optimum():
    from sklearn.linear_model import LogisticRegression

    given = documents(90)
    texts, y = [one["text"] for one in given], TOPIC.ids([one["topic"] for one in given])
    model = TfidfClassifier(strength=0.5, tolerance=1e-8).fit(texts, np.eye(3)[y])
    x = Tfidf().fit_transform(texts).astype(np.float64)
    oracle = LogisticRegression(C=2.0, tol=1e-9, max_iter=1000).fit(x, y)
    assert model.probabilities(texts) == pytest.approx(oracle.predict_proba(x), abs=2e-4)


def test_soft_labels_are_the_weighted_mean_of_hard_ones():
    from sklearn.linear_model import LogisticRegression

    given = documents(60)
    texts = [one["text"] for one in given]
    t = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    model = TfidfClassifier(strength=0.5, tolerance=1e-8).fit(texts, t)
    x = Tfidf().fit_transform(texts).astype(np.float64).toarray()
    oracle = LogisticRegression(C=2.0, tol=1e-9, max_iter=1000)
    oracle.fit(np.tile(x, (3, 1)), np.repeat(np.arange(3), 60), sample_weight=t.T.ravel())
    assert model.probabilities(texts) == pytest.approx(oracle.predict_proba(x), abs=2e-4)


def test_it_learns_and_its_columns_do_not_depend_on_the_batch(trained):
    fresh = documents(100, seed=1)
    for name, classifier in trained.items():
        columns = annotated(classifier, [{"text": one["text"]} for one in fresh])
        assert set(columns) == {name, f"{name}_confidence"}
        right = np.mean([a == one[name] for a, one in zip(columns[name], fresh, strict=True)])
        assert right > (0.95 if name == "topic" else 0.85)
        assert all(1 / len(classifier.taxonomy) <= c <= 1 for c in columns[f"{name}_confidence"])
        alone = classifier.annotate(fresh[5:6])
        assert alone[name] == columns[name][5:6]
        assert alone[f"{name}_confidence"] == pytest.approx(columns[f"{name}_confidence"][5:6], abs=1e-6)
    with pytest.raises(ValueError, match="column 'topic' is in the documents already"):
        annotated(trained["topic"], fresh)


def test_a_second_stage_starts_from_the_first():
    cheap, strong, fresh = documents(200), documents(12, seed=1), documents(150, seed=2)
    rng = np.random.default_rng(0)
    labels = [one["topic"] if rng.random() < 0.9 else rng.choice(list(TOPICS)) for one in cheap]
    classifier = TaxonomyClassifier(TOPIC, TfidfClassifier()).fit(cheap, TOPIC.soft(labels, np.full(200, 0.8)))
    first = classifier.model.weight.copy()
    few = TaxonomyClassifier(TOPIC, TfidfClassifier(Tfidf(least=1))).fit(strong, soft(TOPIC, strong))
    classifier.fit(strong, soft(TOPIC, strong))
    moved = np.abs(classifier.model.weight - first).max()
    assert 0 < moved < np.abs(first).max()

    def accuracy(model):
        return agreement(TOPIC, model.probabilities(fresh), soft(TOPIC, fresh)).accuracy

    assert accuracy(classifier) > accuracy(few) + 0.02
    # a strong prior holds the weights where they are
    classifier.model.strength = 1e6
    before = classifier.model.weight.copy()
    classifier.fit(strong, soft(TOPIC, strong))
    assert classifier.model.weight == pytest.approx(before, abs=1e-4)


def test_temperature_and_confidence_of_the_annotations():
    class Keeps:
        def fit(self, texts, targets, validation=None, generator=None):
            self.texts, self.targets, self.validation = texts, targets, validation

    given, model = documents(4), Keeps()
    targets = np.array([[0.64, 0.32, 0.04], [0.4, 0.3, 0.3], [0, 0, 1.0], [0.2, 0.6, 0.2]])
    TaxonomyClassifier(TOPIC, model, temperature=2.0, least_confidence=0.6).fit(
        given, targets, validation=(given[:1], targets[:1])
    )
    assert model.texts == [given[i]["text"] for i in (0, 2, 3)]
    assert model.targets[0] == pytest.approx([0.510958, 0.361302, 0.127740], abs=1e-6)
    assert model.targets[1].tolist() == [0, 0, 1]
    assert np.array_equal(model.validation[1], targets[:1])  # which is compared, not learned
    with pytest.raises(ValueError, match="no annotation is as sure"):
        TaxonomyClassifier(TOPIC, model, least_confidence=0.9).fit(given[:2], targets[:2])
    with pytest.warns(UserWarning, match="no example of sports"):
        TaxonomyClassifier(TOPIC, model).fit(given[:3], targets[:3])


def test_columns_are_joined():
    class Keeps:
        def probabilities(self, texts):
            self.texts = texts
            return np.full((len(texts), 3), 1 / 3)

    model = Keeps()
    classifier = TaxonomyClassifier(TOPIC, model, columns=("url", "text"))
    classifier.annotate([{"url": "a.example/b", "text": "words"}])
    assert model.texts == ["a.example/b\n\nwords"]
    with pytest.raises(ValueError, match="document 1: column 'url' must hold text"):
        classifier.annotate([{"url": "a", "text": "b"}, {"text": "c"}])


def test_agreement_by_hand():
    t = TOPIC.soft([0, 0, 0, 0, 1, 1], [0.9, 0.9, 0.9, 0.6, 0.8, 0.6])
    p = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    found = agreement(TOPIC, p, t)
    assert (found.n, found.accuracy, found.macro) == (6, pytest.approx(4 / 6), pytest.approx((0.75 + 0.5) / 2))
    assert (found.worst_label, found.worst) == ("sports", 0.5)
    assert found.by_label == {"food": (0.75, 4), "sports": (0.5, 2)}  # space does not occur, and counts as nothing
    assert found.majority == pytest.approx(4 / 6)
    assert found.few == ("food", "sports")
    # Wilson: (k + z^2/2) / (n + z^2) -+ z / (n + z^2) sqrt(k (n - k) / n + z^2 / 4)
    z, n, k = 1.959964, 6, 4
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    assert found.interval == pytest.approx(((k + z**2 / 2) / (n + z**2) - half, (k + z**2 / 2) / (n + z**2) + half))
    assert agreement(TOPIC, p, t, 0.75).accuracy == 1
    assert agreement(TOPIC, p, t, 0.75).n == 4
    with pytest.raises(ValueError, match="no annotation is as sure"):
        agreement(TOPIC, p, t, 0.95)


def test_what_is_saved_answers_the_same(trained, tmp_path):
    given = documents(20, seed=3)
    classifier = trained["topic"]
    classifier.save(tmp_path / "topic")
    again = TaxonomyClassifier.load(tmp_path / "topic")
    assert again.taxonomy == classifier.taxonomy
    assert np.array_equal(again.probabilities(given), classifier.probabilities(given))
    assert sorted(file.name for file in (tmp_path / "topic").iterdir()) == ["classifier.json", "model.safetensors"]
    with pytest.raises(ValueError, match="not a classifier that omnimix saved"):
        TaxonomyClassifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text("[]")
    with pytest.raises(ValueError, match="its format is \\[\\]"):
        TaxonomyClassifier.load(tmp_path)
    TOPIC.save(tmp_path / "topic.json")
    assert Taxonomy.load(tmp_path / "topic.json") == TOPIC
    (tmp_path / "bad.json").write_text('{"labels": ["a", "b"]}')
    with pytest.raises(ValueError, match=r"bad\.json: a taxonomy is"):
        Taxonomy.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.ones((2, 2)), r"targets must be \(2, 3\) probabilities"),
        (np.array([[1.0, 0, 0], [0.5, 0.2, 0]]), "document 1: its target is no distribution"),
        (np.array([[np.nan, 0, 0], [1, 0, 0]]), "document 0: its target is no distribution"),
        (np.array([[1.5, -0.5, 0], [1, 0, 0]]), "document 0: its target is no distribution"),
    ],
)
def test_refused_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        TaxonomyClassifier(TOPIC).fit(documents(2), targets)


def test_a_classifier_is_fitted_before_it_is_used():
    with pytest.raises(ValueError, match="fit the classifier first"):
        TaxonomyClassifier(TOPIC).annotate(documents(1))


def test_pairs_of_topic_and_format(trained):
    given = [{"text": one["text"]} for one in documents(6, seed=4)]
    columns = annotated(Product(trained), given)
    assert set(columns) == {"topic", "topic_confidence", "format", "format_confidence", "domain"}
    assert columns["domain"] == [f"{a} / {b}" for a, b in zip(columns["topic"], columns["format"], strict=True)]
    with pytest.raises(ValueError, match="the annotator of 'kind' must write that column"):
        Product({"kind": trained["topic"], "format": trained["format"]}).annotate(given)
    with pytest.raises(ValueError, match="two annotators or more"):
        Product({"topic": trained["topic"]})


def test_the_mixture_of_pairs():
    a, b = Mixture({"x": 0.7, "y": 0.3}), Mixture({"u": 0.4, "v": 0.6})
    w = product(a, b)
    assert w.weights == pytest.approx({"x / u": 0.28, "x / v": 0.42, "y / u": 0.12, "y / v": 0.18})
    sizes = {"x / u": 10.0, "x / v": 60, "y / u": 60, "y / v": 60}
    capped = product(a, b, sizes=sizes, budget=100)
    # x / u may give 10; the others keep their ratios
    assert capped.weights == pytest.approx(
        {"x / u": 0.1, **{d: w.weights[d] * 0.9 / 0.72 for d in ("x / v", "y / u", "y / v")}}
    )
    with pytest.raises(ValueError, match=r"may take 0\.95 of the run at most"):
        product(a, b, sizes=sizes, budget=200)
    assert product(a, b, sizes=sizes, budget=200, max_epochs=2).weights == pytest.approx(capped.weights)
    with pytest.raises(ValueError, match="one unit"):
        product(a, Mixture({"u": 1.0}, unit="documents"))


def test_water_filling_lifts_no_cell_above_its_cap():
    rng = np.random.default_rng(0)
    for _ in range(50):
        w, caps = rng.dirichlet(np.ones(20) * 0.5), rng.uniform(0, 0.15, 20)
        if caps.sum() < 1:
            continue
        found = water_fill(w, caps)
        assert found.sum() == pytest.approx(1)
        assert (found <= caps + 1e-12).all()
        free = found < caps - 1e-12
        assert np.ptp(found[free] / w[free]) < 1e-9 * (found[free] / w[free]).max() + 1e-12
    # one pass of dividing by the sum, which is not what is done, breaks a cap here
    once = np.minimum([0.6, 0.3, 0.1], [0.4, 0.35, 1.0])
    assert (once / once.sum())[1] > 0.35
    assert water_fill(np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.35, 1.0])) == pytest.approx([0.4, 0.35, 0.25])
    assert water_fill(np.array([1.0, 0.0]), np.array([1.0, 1.0])).tolist() == [1, 0]


def test_vectors_of_data_sets(trained):
    sets = {"a": documents(60, seed=5), "b": [one for one in documents(60, seed=6) if one["topic"] == "food"]}
    classifier = trained["topic"]
    found = vectorize(sets, classifier, TOPIC.names)
    assert found.matrix.sum(0) == pytest.approx([1, 1])
    assert found["a"] == pytest.approx(classifier.probabilities(sets["a"]).mean(0))
    assert found["b"].argmax() == 0
    assert found.counts == (60, len(sets["b"]))
    assert found.unit == "documents"


def test_the_distance_of_vectors_ranks_mixtures_as_word_models_trained_on_them(trained):
    from omnimix.corpora.weigh.domain2vec import Alignment
    from omnimix.corpora.weigh.scores import spearman

    pages, rng = documents(240, seed=7), np.random.default_rng(0)
    order = sorted(range(240), key=lambda i: pages[i]["topic"])  # data sets of mostly one topic each
    sets = {f"set {i}": [pages[j] for j in order[i * 40 : (i + 1) * 40]] for i in range(6)}
    validation = [one for one in documents(200, seed=8) if one["topic"] != "space"]

    def words(rows):
        counts = np.zeros(len(known))
        np.add.at(counts, [known[word] for row in rows for word in row["text"].split()], 1.0)
        return counts

    known = {word: i for i, word in enumerate(sorted({w for one in pages + validation for w in one["text"].split()}))}
    models = np.stack([(words(rows) + 1) / (words(rows) + 1).sum() for rows in sets.values()])
    mixtures, held_out = rng.dirichlet(np.ones(6), 100), words(validation) / words(validation).sum()
    losses = -np.log(mixtures @ models) @ held_out
    vectors = vectorize(sets, trained["topic"], TOPIC.names)
    target = mean_vector(trained["topic"].probabilities(validation))
    found = spearman(Alignment(vectors.matrix, target).predict(mixtures), losses)
    assert found > 0.9
    blind = spearman(((mixtures - 1 / 6) ** 2).sum(1), losses)  # knows nothing of the validation set
    assert found > blind + 0.2


def test_a_constant_classifier_gives_its_constant_and_lengths_weigh():
    class Constant:
        def probabilities(self, documents):
            return np.tile([0.2, 0.5, 0.3], (len(documents), 1))

    given = [{"text": "", "n": n} for n in (1, 2, 5)]
    assert vectorize({"a": given}, Constant(), TOPIC.names)["a"] == pytest.approx([0.2, 0.5, 0.3])
    by_tokens = vectorize({"a": given}, Constant(), TOPIC.names, length="n")
    assert by_tokens.unit == "tokens"
    p = np.array([[1.0, 0], [0, 1], [0.5, 0.5]])
    assert mean_vector(p) == pytest.approx([0.5, 0.5])
    assert mean_vector(p, [2, 1, 1]) == pytest.approx([0.625, 0.375])
    # the mean of probabilities is not the share of hard labels
    assert mean_vector(np.array([[0.6, 0.4], [0.6, 0.4]])) == pytest.approx([0.6, 0.4])
    with pytest.raises(ValueError, match="are they logits"):
        mean_vector(np.array([[3.0, 1.0]]))
    with pytest.raises(ValueError, match="no column 'm'"):
        vectorize({"a": given}, Constant(), TOPIC.names, length="m")


def test_sampling_documents():
    import torch

    rows = list(range(50))
    assert sampled(rows, 50) == rows
    assert sampled(rows, 1000) == rows
    draws = [sampled(rows, 20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 20


def test_tables_of_vectors(tmp_path):
    p = softmax(np.random.default_rng(0).normal(size=(3, 2)), axis=0)
    one, two = (
        DatasetVectors(("x", "y", "z"), ("a", "b"), p, (5, 7)),
        DatasetVectors(("x", "y", "z"), ("c",), p[:, :1], (9,)),
    )
    joined = one.joined(two)
    assert joined.datasets == ("a", "b", "c")
    assert joined.counts == (5, 7, 9)
    joined.save(tmp_path / "v.json")
    again = DatasetVectors.load(tmp_path / "v.json")
    assert np.array_equal(again.matrix, joined.matrix)
    assert (again.meta, again.datasets, again.counts, again.unit) == (
        joined.meta,
        joined.datasets,
        joined.counts,
        "documents",
    )
    with pytest.raises(ValueError, match="in both tables: a"):
        joined.joined(one)
    with pytest.raises(ValueError, match="the vector of 'a' must be >= 0 and sum to 1"):
        DatasetVectors(("x", "y"), ("a",), np.array([[0.5], [0.2]]), (1,))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json: not data set vectors"):
        DatasetVectors.load(tmp_path / "bad.json")
