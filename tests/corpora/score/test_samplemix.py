"""SampleMix over documents: quality from ratings and columns, clusters, saved and loaded, the same in any order."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from omnimix.corpora.annotate import annotate
from omnimix.corpora.discover.embed import Tfidf, TfidfSVD
from omnimix.corpora.proxy.documents import objects
from omnimix.corpora.score import OrdinalQuality, QualityColumns, SampleMix, qualities
from omnimix.corpora.score.ordinal import expected, ordinal_targets, surface
from omnimix.corpora.score.samplemix import read_ratings

WORDS = {
    "sea": ["ship", "wave", "harbour", "sail", "tide", "anchor"],
    "law": ["court", "judge", "trial", "appeal", "verdict", "jury"],
}


def documents(n=120, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for i in range(n):
        rating, words = int(random.integers(0, 5)), WORDS["sea" if i % 2 else "law"]
        good = " ".join(random.choice(words, size=6 + 4 * rating)) + "."
        found.append({"text": good + " buy now" * (4 - rating), "rating": rating, "cost": int(random.integers(5, 50))})
    return found


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def rater():
    found = documents()
    quality = OrdinalQuality(4, tfidf=Tfidf(least=1)).fit(found[:80], [d["rating"] for d in found[:80]])
    return SampleMix.fit(
        found, quality, clusters=4, embedder=TfidfSVD(4, Tfidf(least=1)), tokens="cost", generator=generator()
    )


def test_ordinal_targets_and_expectation():
    assert ordinal_targets(np.array([3]))[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    logits = np.random.default_rng(0).normal(size=(5, 10))
    q = expected(logits)
    assert ((q > 0) & (q < 10)).all()
    assert q == pytest.approx((1 / (1 + np.exp(-logits))).sum(1))
    for level in range(10):
        assert (expected(logits + np.eye(10)[level]) > q).all()


def test_ratings_are_learned_with_their_order(rater):
    test = documents(seed=1)
    rating = np.array([d["rating"] for d in test])
    found = qualities(rater.quality, test)
    assert np.abs(found - rating).mean() < 0.6 < np.abs(rating - rating.mean()).mean()
    assert np.isfinite(surface(["", "\n", "é"])).all()
    again = OrdinalQuality.from_state(rater.quality.state_dict())
    assert (again.annotate(test)["quality"] == found).all()


@pytest.mark.parametrize(
    ("ratings", "said"), [([1, 7], "document 1: its rating is 7"), ([1, 1.5], "1.5"), ([2, 2], "same")]
)
def test_wrong_ratings_are_refused(ratings, said):
    with pytest.raises(ValueError, match=said):
        OrdinalQuality(4, tfidf=Tfidf(least=1)).fit(documents(2), ratings)


def test_columns_are_summed_and_wrong_values_named():
    rows = [{"a": 1, "b": 2.5}, {"a": 0, "b": 1}]
    assert qualities(QualityColumns("a", "b"), rows).tolist() == [3.5, 1]
    with pytest.raises(ValueError, match=r"document 0: column 'b' must hold a number of 0 to 2, got 2\.5"):
        QualityColumns(highest={"a": 1, "b": 2}).annotate(rows)
    for value in (None, "1", float("nan"), True):
        with pytest.raises(ValueError, match="document 0: column 'a' must hold a number, got"):
            QualityColumns("a").annotate([{"a": value}])
    with pytest.raises(ValueError, match="one column, or 'quality'"):
        qualities(type("Two", (), {"annotate": lambda self, d: {"a": [1], "b": [2]}})(), [{}])


def test_ratings_of_a_corpus_go_from_shards_to_copies(rater, tmp_path):
    found = documents()
    lines = [json.dumps(d) + "\n" for d in found]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(lines[:70]))
    (tmp_path / "in" / "b.jsonl").write_text("".join(lines[70:]))
    annotate(tmp_path / "in", rater, tmp_path / "rated", keep=())
    files = sorted((tmp_path / "rated").glob("*.jsonl"))
    whole = rater.rate(found)
    for column, other in zip(zip(*read_ratings(files), strict=True), whole, strict=True):
        assert np.concatenate(column) == pytest.approx(other)
    budget = 2.0 * sum(d["cost"] for d in found)
    model = rater.measured(lambda: read_ratings(files), budget)
    model.save(tmp_path / "model")
    loaded = SampleMix.load(tmp_path / "model")
    annotate(tmp_path / "in", loaded, tmp_path / "out")
    rows = [row for name in ("a", "b") for _, row in objects(tmp_path / "out" / f"{name}.jsonl")]
    direct = model.annotate(found)
    for name, values in direct.items():
        assert [row[name] for row in rows] == pytest.approx(values)
    drawn = sum(row["samplemix_copies"] * row["cost"] for row in rows)
    assert drawn == pytest.approx(budget, rel=0.1)
    backwards = model.annotate(found[::-1])
    assert backwards["samplemix_copies"][::-1] == direct["samplemix_copies"]


def test_a_column_of_embeddings_takes_the_place_of_the_text():
    random = np.random.default_rng(0)
    rows = [{"v": random.normal(i % 3 * 9, 1, size=2).tolist(), "q": float(i), "text": "ab"} for i in range(30)]
    model = SampleMix.fit(rows, QualityColumns("q"), clusters=3, embedding="v", generator=generator())
    found = model.rate(rows)
    assert len(set(found.cluster)) == 3
    assert (found.cluster == np.array([found.cluster[i % 3] for i in range(30)])).all()
    assert found.tokens.tolist() == [2] * 30
    x = np.array([row["v"] for row in rows])
    centre = x[found.cluster == 0].mean(0)
    assert found.distance[found.cluster == 0] == pytest.approx(
        np.linalg.norm(x[found.cluster == 0] - centre, axis=1), rel=1e-4
    )
    with pytest.raises(ValueError, match="document 1: column 'v' must hold an embedding"):
        model.rate([rows[0], {**rows[1], "v": None}])


def test_what_cannot_be_saved_is_said(rater, tmp_path):
    with pytest.raises(ValueError, match="cannot be saved"):
        SampleMix(rater.groups, type("Mine", (), {})()).save(tmp_path)
    with pytest.raises(ValueError, match="holds no SampleMix"):
        SampleMix.load(tmp_path)


def test_an_empty_shard_has_no_ratings(rater, tmp_path):
    (tmp_path / "in").mkdir()
    for name, rows in (("a", documents()), ("b", documents()[:0])):
        table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(documents()).schema)
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    assert annotate(tmp_path / "in", rater, tmp_path / "rated", keep=())["rows"] == 120
    files = sorted((tmp_path / "rated").glob("*.parquet"))
    assert rater.measured(lambda: read_ratings(files), 1e3).sampling.documents == 120
