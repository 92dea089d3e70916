"""Regrouping: known clusters, the silhouette by hand, new documents, reports, and what is saved."""

import numpy as np
import pytest
import torch

from omnimix.corpora.annotation import Annotator, annotated
from omnimix.corpora.discover.embed import Tfidf, TfidfSVD, embed, unit_rows
from omnimix.corpora.discover.regroup import Groups, _silhouette, overlap, regroup
from omnimix.corpora.weigh.r_and_b import RAndB

from .texts import TOPICS, documents


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(sizes=(60, 40, 20), seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 5]])
    which = np.repeat(np.arange(3), sizes)
    order = rng.permutation(len(which))
    return (centres[which] + rng.normal(size=(len(which), 3)))[order], which[order], centres


def test_three_blobs_are_three_clusters():
    x, which, centres = blobs()
    groups, clusters = regroup(embeddings=x, k=range(2, 8), generator=draw())
    assert len(groups) == 3
    assert max(groups.silhouettes, key=groups.silhouettes.get) == 3
    assert set(groups.silhouettes) == set(range(2, 8))
    # the largest cluster comes first
    assert np.array_equal(clusters, which)
    assert groups.centroids == pytest.approx(centres, abs=0.6)
    assert groups.names == ("cluster-00", "cluster-01", "cluster-02")


def test_new_documents_go_to_the_nearest_training_centroid():
    x, _, centres = blobs()
    groups, _ = regroup(embeddings=x, k=3, generator=draw())
    evaluation = np.array([[9.0, 1, 0], [11, 0, 1], [4, 0, 0], [0, 8, 4]])
    truth = ((evaluation[:, None] - centres) ** 2).sum(2).argmin(1)
    assert np.array_equal(groups.assign(evaluation), truth)
    q = groups.mixture(groups.assign(evaluation))
    assert q.weights == {"cluster-00": 0.25, "cluster-01": 0.5, "cluster-02": 0.25}
    assert q.unit == "documents"
    RAndB(q.weights)  # which takes it as its target
    tokens = groups.mixture(groups.assign(evaluation), lengths=np.array([10, 10, 20, 60]))
    assert tokens.weights == {"cluster-00": 0.2, "cluster-01": 0.2, "cluster-02": 0.6}
    assert tokens.unit == "tokens"


def test_the_silhouette_by_hand():
    x, clusters = np.array([[0.0], [1.0], [5.0], [7.0]]), np.array([0, 0, 1, 1])
    distances = np.abs(x - x.T)
    # a = 1, b = 6; a = 1, b = 5; a = 2, b = 4.5; a = 2, b = 6.5
    expected = np.mean([5 / 6, 4 / 5, 2.5 / 4.5, 4.5 / 6.5])
    assert _silhouette(distances, clusters, 2) == pytest.approx(expected)
    with pytest.raises(ValueError, match="the 4 documents for the silhouette are all alike"):
        _silhouette(distances, np.zeros(4, dtype=int), 2)


def test_the_same_generator_gives_the_same_groups():
    x, _, _ = blobs()
    a, first = regroup(embeddings=x, k=[3, 4], subsample=50, generator=draw(3))
    b, second = regroup(embeddings=x, k=[4, 3], subsample=50, generator=draw(3))
    assert np.array_equal(a.centroids, b.centroids)
    assert np.array_equal(first, second)
    assert a.silhouettes == b.silhouettes


def test_many_documents_are_clustered_in_batches():
    x, which, _ = blobs((600, 400, 200))
    kept = x.copy()
    groups, clusters = regroup(embeddings=x, k=3, subsample=200, minibatch_above=500, generator=draw())
    assert np.array_equal(clusters, which)
    assert len(groups) == 3
    assert np.array_equal(x, kept)


def test_a_regrouping_that_is_not_worth_it_is_told():
    # points on the corners of a high simplex are all as far from one another
    with pytest.warns(UserWarning, match="hardly worth it"):
        groups, _ = regroup(embeddings=np.eye(40), k=[3], generator=draw())
    assert groups.silhouettes[3] <= 1e-6


def test_texts_find_their_topics():
    given = documents(240)
    names = [one["topic"] for one in given]
    embedder = TfidfSVD(4, Tfidf(least=2))
    groups, clusters = regroup([one["text"] for one in given], embedder=embedder, k=[2, 3, 6], generator=draw())
    found = overlap(clusters, names)
    assert len(groups) == 3
    assert found.purity > 0.95
    assert found.nmi > 0.8
    for words, row in zip(embedder.describe(groups.centroids), found.table, strict=True):
        topic = found.domains[row.argmax()]
        assert len(set(words) & set(TOPICS[topic].split())) >= 4
    fresh = documents(60, seed=1)
    assert overlap(groups.clusters([one["text"] for one in fresh]), [one["topic"] for one in fresh]).purity > 0.9


def test_it_is_an_annotator_that_ignores_the_batch(tmp_path):
    given = documents(120)
    groups, _ = regroup([one["text"] for one in given], embedder=TfidfSVD(4), k=3, generator=draw())
    assert isinstance(groups, Annotator)
    together = annotated(groups, given[:7])
    assert together["cluster"] == [annotated(groups, [one])["cluster"][0] for one in given[:7]]
    assert groups.annotate([]) == {"cluster": []}
    groups.save(tmp_path / "groups.safetensors")
    again = Groups.load(tmp_path / "groups.safetensors")
    assert again.annotate(given) == groups.annotate(given)
    assert again.silhouettes == groups.silhouettes
    with pytest.raises(ValueError, match=r"document 0: column 'text' must hold text, got None; its columns are body"):
        groups.annotate([{"body": "x"}])


def test_a_user_s_embedder_is_given_again(tmp_path):
    def lengths(texts):
        return np.array([[len(text), text.count("e")] for text in texts], dtype=float)

    texts = ["a" * n + "e" * (n % 3) for n in range(1, 40)]
    groups, clusters = regroup(texts, embedder=lengths, k=2, generator=draw())
    groups.save(tmp_path / "g")
    again = Groups.load(tmp_path / "g", embedder=lengths)
    assert np.array_equal(again.clusters(texts), clusters)
    with pytest.raises(ValueError, match="give an embedder"):
        Groups.load(tmp_path / "g").clusters(texts)


def test_overlap_by_hand():
    found = overlap(np.array([0, 0, 0, 1, 1, 1]), ["a", "a", "b", "b", "b", "b"], k=3)
    assert found.table.tolist() == [[2, 1], [0, 3], [0, 0]]
    assert found.purity == pytest.approx(5 / 6)
    assert found.purities == pytest.approx([2 / 3, 1, 0])
    assert found.chance == pytest.approx(4 / 6)
    assert found.sizes.tolist() == [3, 3, 0]
    # independent partitions share no information, equal ones all
    assert overlap(np.array([0, 0, 1, 1]), ["a", "b", "a", "b"]).nmi == pytest.approx(0, abs=1e-12)
    assert overlap(np.array([1, 1, 0, 0]), ["a", "a", "b", "b"]).nmi == pytest.approx(1)


def test_tfidf_by_hand_and_saved():
    texts = ["red red blue", "blue green", "green green red"]
    tfidf = Tfidf(least=1).fit(texts)
    assert tfidf.terms == ["blue", "green", "red"]
    idf = np.log(4 / 3) + 1  # each word is in two of the three
    row = np.array([1.0, 0, 1 + np.log(2)]) * idf
    assert tfidf(texts).toarray()[0] == pytest.approx(row / np.linalg.norm(row), abs=1e-6)
    again = Tfidf.from_state(tfidf.state_dict())
    assert np.array_equal(again(texts).toarray(), tfidf(texts).toarray())
    assert tfidf(["unknown"]).nnz == 0
    assert Tfidf(least=1, characters=3).fit(texts).terms == ["blu", "gre", "red"]
    with pytest.raises(ValueError, match="no word is in 5 or more of the 3 texts"):
        Tfidf(least=5).fit(texts)


def test_svd_rows_are_the_best_low_rank_ones():
    texts = [one["text"] for one in documents(40)]
    tfidf = Tfidf()
    embedder = TfidfSVD(5, tfidf).fit(texts, draw())
    x = tfidf(texts).toarray()
    right = np.linalg.svd(x)[2][:5]
    truth = unit_rows(x @ right.T)
    assert embedder(texts) @ embedder(texts).T == pytest.approx(truth @ truth.T, abs=1e-2)
    assert not embedder(["unknown"]).any()
    assert np.array_equal(embed(texts, embedder, block=7), embed(texts, embedder, block=40))
    with pytest.raises(ValueError, match="fewer than 65 directions"):
        TfidfSVD().fit(texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either documents or their embeddings"),
        ({"documents": ["a"], "embeddings": np.ones((3, 2))}, "either documents or their embeddings"),
        ({"embeddings": np.ones(3)}, r"embeddings must be \(N, D\)"),
        ({"embeddings": np.array([[1, 2], [np.nan, 0], [1, 1]]), "k": 2}, "must be finite, row 1 is not"),
        ({"embeddings": np.ones((5, 2)), "k": 5}, "k must be 2 to 4"),
        ({"embeddings": np.ones((5, 2)), "k": [1, 2]}, "k must be 2 to 4"),
        ({"documents": ["a", "b"], "embedder": lambda texts: np.ones((1, 2))}, "2 finite rows for as many texts"),
        ({"documents": ["a", "b"], "embedder": lambda texts: np.full((2, 2), np.nan)}, "2 finite rows"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        regroup(**arguments)


def test_wrong_width_and_wrong_file(tmp_path):
    groups, _ = regroup(embeddings=blobs()[0], k=3, generator=draw())
    with pytest.raises(ValueError, match=r"embeddings must be \(N, 3\) as in the fit, got \(2, 4\)"):
        groups.assign(np.ones((2, 4)))
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        Groups.load(tmp_path / "x")
