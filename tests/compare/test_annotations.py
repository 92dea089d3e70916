"""Annotation on the engines: what they give is what one process gives; a shard that fails takes no other with it."""

import json
from contextlib import contextmanager

import pytest

from omnimix.compare.annotations import Fault, run_annotation
from omnimix.compare.engine import local
from omnimix.corpora.annotate import WORK, annotate, prepare


class Length:
    """Counts characters; does not take a document without text."""

    def annotate(self, documents):
        for row, document in enumerate(documents):
            if document["text"] is None:
                raise ValueError(f"document {row} has no text")
        return {"characters": [len(document["text"]) for document in documents]}


Length.__module__ = Length.annotate.__module__ = "__main__"  # as if a user's script had made it


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, rows in {"a": 30, "b": 9, "c": 21}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": "x" * i}) + "\n" for i in range(rows)))
    return folder


def outputs(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and WORK not in p.parts}


def run(corpus, out, **how):
    return run_annotation(prepare(corpus, out, "length", batch=4, chunk=8), Length(), workers=2, **how)


def test_units_are_told_of_and_give_what_one_process_gives(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "IN_PROCESS", True)
    annotate(corpus, Length(), tmp_path / "alone", identity="length", batch=4, chunk=8)
    told = []

    @contextmanager
    def watch(share, shards):
        assert (share(), shards) == (0, 3)
        yield lambda outcome: told.append((outcome.name, outcome.rows))
        assert share() == pytest.approx(3)

    job = prepare(corpus, tmp_path / "engine", "length", batch=4, chunk=8)
    manifest = run_annotation(job, Length(), workers=1, watch=watch)
    assert told == [("a.jsonl", 30), ("c.jsonl", 21), ("b.jsonl", 9)]
    assert manifest["rows"] == 60
    assert outputs(tmp_path / "engine") == outputs(tmp_path / "alone")


def test_a_shard_that_fails_is_named_and_the_others_are_kept(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "IN_PROCESS", True)
    with open(corpus / "a.jsonl", "a") as file:
        file.write('{"text": null}\n')
    told = []

    @contextmanager
    def watch(share, shards):
        yield told.append

    job = prepare(corpus, tmp_path / "out", "length")
    with pytest.raises(ValueError, match=r"(?s)1 of 3 shards failed.*a.jsonl, line 31: document 0 has no text"):
        run_annotation(job, Length(), workers=1, watch=watch)
    assert [isinstance(outcome, Fault) for outcome in told] == [True, False, False]
    assert set(outputs(tmp_path / "out")) == {"b.jsonl", "c.jsonl"}


def test_wrong_engines_are_refused_before_anything_runs(corpus, tmp_path):
    for how, said in (({"engine": "dask"}, "engine"), ({"address": "auto"}, "Ray"), ({"device": "tpu"}, "device")):
        with pytest.raises(ValueError, match=said):
            run(corpus, tmp_path / "out", **how)


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(corpus, tmp_path):
    pytest.importorskip("ray", reason='Ray is not installed: pip install "omnimix[cluster]"')
    annotate(corpus, Length(), tmp_path / "alone", identity="length", batch=4, chunk=8)
    run(corpus, tmp_path / "ray", engine="ray")
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "alone")
