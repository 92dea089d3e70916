"""`omnimix weigh annotate` and `weigh samplemix`: from documents to copies, continued, refused with a reason."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from omnimix.cli import weigh_annotate  # noqa: F401  (adds its verbs)
from omnimix.cli.console import app
from omnimix.compare.engine import local
from omnimix.corpora.discover.embed import Tfidf
from omnimix.corpora.discover.linear import TfidfClassifier
from omnimix.corpora.discover.taxonomy import Taxonomy, TaxonomyClassifier

WORDS = {"sea": ["ship", "wave", "sail", "tide"], "law": ["court", "judge", "trial", "jury"]}


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(local, "IN_PROCESS", True)


def documents(n=60):
    random = np.random.default_rng(0)
    return [
        {"text": " ".join(random.choice(WORDS["sea" if i % 2 else "law"], size=12)), "topic_id": i % 2, "q": i % 5}
        for i in range(n)
    ]


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    return file


def call(*arguments):
    return CliRunner().invoke(app, ["weigh", *map(str, arguments), "--jobs", "1"])


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def samplemix(corpus, out, *more):
    return call("samplemix", corpus, "-o", out, "--dimensions", 3, "--clusters", 4, "--json", "-q", *more)


def test_quality_and_taxonomy_are_written_beside_the_documents(corpus, tmp_path):
    found = documents()
    taxonomy = Taxonomy("topic", {"law": "", "sea": ""})
    targets = taxonomy.soft([d["topic_id"] for d in found])
    model = TaxonomyClassifier(taxonomy, TfidfClassifier(Tfidf(least=1))).fit(found, targets)
    model.save(tmp_path / "classifier")
    done = call(
        "annotate", corpus, "--taxonomy", tmp_path / "classifier", "--quality", "q", "--quality", "topic_id",
        "-o", tmp_path / "out", "--json", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["documents"] == 60
    for row, document in zip(rows(tmp_path / "out" / corpus.name), found, strict=True):
        assert row["topic"] == ("law", "sea")[document["topic_id"]]
        assert row["quality"] == document["q"] + document["topic_id"]
        assert {name: row[name] for name in document} == document


def test_copies_for_a_budget_and_another_one_from_the_same_ratings(corpus, tmp_path):
    size = sum(len(d["text"]) for d in documents())
    done = samplemix(corpus, tmp_path / "m", "--quality", "q", "--budget", 3 * size)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["documents"], found["tokens"], found["epochs"]) == (60, size, 3)
    assert len(found["clusters"]) == 4
    assert found["clusters"][0]["diversity"] == 1 >= found["clusters"][-1]["diversity"] == 0
    ratings = (tmp_path / "m" / "ratings" / corpus.name).stat().st_mtime_ns
    assert json.loads(samplemix(corpus, tmp_path / "m", "--quality", "q", "--budget", size).stdout)["epochs"] == 1
    assert (tmp_path / "m" / "ratings" / corpus.name).stat().st_mtime_ns == ratings
    done = call("annotate", corpus, "--samplemix", tmp_path / "m", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    drawn = sum(row["samplemix_copies"] * len(row["text"]) for row in rows(tmp_path / "out" / corpus.name))
    assert drawn == pytest.approx(size, rel=0.25)
    refused = samplemix(corpus, tmp_path / "m", "--quality", "topic_id", "--budget", size)
    assert refused.exit_code == 2
    assert "another quality" in refused.output


def test_quality_is_learned_from_rated_documents(corpus, tmp_path):
    done = samplemix(
        corpus, tmp_path / "m", "--rated", corpus, "--rating", "q", "--levels", 4, "--budget", 1e3, "--alpha", 0.5
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["alpha"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to annotate with"),
        (("--quality", "text"), "line 1: document 0: column 'text' must hold a number"),
        (("--quality", "q", "--keep", "cost"), "line 1: no column 'cost'"),
        (("--samplemix", "nowhere"), "nowhere holds no SampleMix"),
        (("--taxonomy", "nowhere"), "nowhere: not a classifier"),
        (("--quality", "q", "--engine", "dask"), "engine must be one of"),
        (("--groups", "nowhere"), "--groups nowhere: there is no such file"),
        (("--quality", "q", "--rename", "quality=q"), "column 'q' is in the documents already"),
        (("--quality", "q", "--rename", "topic=t"), "no new column 'topic' to rename; new are quality"),
        (("--quality", "q", "--rename", "quality"), "--rename is NEW=NAME"),
    ],
)
def test_what_cannot_be_done_is_said(corpus, tmp_path, arguments, said):
    done = call("annotate", corpus, "-o", tmp_path / "out", "-q", *arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_a_column_that_is_there_gets_another_name(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a", "quality": 3}\n')
    refused = call("annotate", file, "--quality", "quality", "-o", tmp_path / "no", "-q")
    assert refused.exit_code == 2
    assert "line 1: Together: column 'quality' is in the documents already" in refused.output
    assert "--rename quality=NAME" in refused.output
    done = call("annotate", file, "--quality", "quality", "--rename", "quality=q2", "-o", tmp_path / "out", "-q")
    assert done.exit_code == 0, done.output
    assert rows(tmp_path / "out" / "d.jsonl") == [{"text": "a", "quality": 3, "q2": 3.0}]


def written(file, found):
    file.write_text("".join(json.dumps(document) + "\n" for document in found))
    return file


def test_what_samplemix_cannot_read_is_named_by_file_and_row(corpus, tmp_path):
    found = documents()
    found[7]["text"] = None
    broken = written(tmp_path / "broken.jsonl", found)
    rated = ("--rated", broken, "--rating", "q", "--levels", 4)
    for arguments in ((broken, tmp_path / "m", "--quality", "q"), (corpus, tmp_path / "m", *rated)):
        refused = samplemix(*arguments, "--budget", 100)
        assert refused.exit_code == 2
        assert f"{broken}, line 8: column 'text' must hold text, got None" in refused.output
    found = documents()
    found[3]["q"] = 9
    rated = ("--rated", written(broken, found), "--rating", "q", "--levels", 4)
    refused = samplemix(corpus, tmp_path / "m", *rated, "--budget", 100)
    assert f"{broken}, line 4: its rating is 9" in refused.output


def test_changed_ratings_are_noticed(corpus, tmp_path):
    rated = written(tmp_path / "rated.jsonl", documents())
    arguments = ("--rated", rated, "--rating", "q", "--levels", 4, "--budget", 1e3)
    assert samplemix(corpus, tmp_path / "m", *arguments).exit_code == 0
    assert samplemix(corpus, tmp_path / "m", *arguments).exit_code == 0
    written(rated, documents()[:50])
    refused = samplemix(corpus, tmp_path / "m", *arguments)
    assert refused.exit_code == 2
    assert "another content of the rated files" in refused.output


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "d.jsonl: there is no document in it"),
        (documents(1), "1 documents with 1 different values of 'text' are too few for 4 clusters"),
        (documents(1) * 50, "50 documents with 1 different values of 'text' are too few for 4 clusters"),
    ],
)
def test_a_corpus_that_is_too_small_is_refused_in_a_line(tmp_path, recwarn, found, said):
    refused = samplemix(written(tmp_path / "d.jsonl", found), tmp_path / "m", "--quality", "q", "--budget", 100)
    assert refused.exit_code == 2
    assert said in refused.output
    assert refused.output.count("\n") == 1
    assert not recwarn.list


def test_an_output_that_is_a_file_is_refused(corpus):
    for verb in (("annotate",), ("samplemix", "--budget", 9)):
        refused = call(*verb, corpus, "--quality", "q", "-o", corpus)
        assert refused.exit_code == 2
        assert f"--out {corpus} is a file" in refused.output
