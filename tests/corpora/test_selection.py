"""Selection file by file: the same documents as in memory, whatever the files; kills, ties, flat memory, refusals."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from omnimix.corpora import Mixture
from omnimix.corpora import selection as module
from omnimix.corpora.draw import select_documents
from omnimix.corpora.selection import Fields, select_shards

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
FIELDS = Fields(tokens="n", id="id")


def documents(n, seed=0):
    source = np.random.default_rng(seed)
    return [
        {"id": f"d{i}", "domain": str(source.choice(list("abcx"))), "n": int(source.integers(1, 40)),
         "q": float(source.integers(0, 4)), "text": "é" * (i % 5 + 1)}
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    """600 documents in a plain, a packed and a Parquet file."""
    rows, folder = documents(600), tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:250]))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(row) for row in rows[250:300]))
    parquet.write_table(pa.Table.from_pylist(rows[300:]), folder / "sub" / "c.parquet", row_group_size=70)
    return folder, rows


def read(folder):
    found = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    found += [json.loads(line) for line in gzip.decompress((folder / "b.jsonl.gz").read_bytes()).splitlines()]
    return found + parquet.read_table(folder / "sub" / "c.parquet").to_pylist()


@pytest.mark.parametrize("few", [1, 1 << 16])
@pytest.mark.parametrize(
    "how", [{}, {"score": "q"}, {"score": "q", "tau": 0.7}, {"score": "q", "budget": 9000.0, "shortage": "repeat"},
            {"budget": 9000.0}]
)  # fmt: skip
def test_the_same_documents_as_in_memory(corpus, tmp_path, monkeypatch, how, few):
    folder, rows = corpus
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(module._cut, "__defaults__", (few,))
    given = {"budget": 3000.0, **how}
    budget, score = given.pop("budget"), given.pop("score", None)
    manifest = select_shards(
        folder, WEIGHTS, budget, tmp_path / "out", fields=Fields(tokens="n", id="id", score=score), **given
    )
    truth = select_documents(
        [r["domain"] for r in rows], [r["n"] for r in rows], WEIGHTS, budget,
        score=score and [r["q"] for r in rows], ids=[r["id"] for r in rows], **given,
    )  # fmt: skip
    found = read(tmp_path / "out")
    index, copies = np.unique(truth.index, return_counts=True)
    assert [one["id"] for one in found] == [rows[i]["id"] for i in index]
    assert {name: row["selected"] for name, row in manifest["domains"].items()} == truth.tokens
    assert manifest["short"] == list(truth.short)
    assert manifest["without weight"] == sum(r["domain"] == "x" for r in rows)
    if "shortage" in given:
        assert [one["copies"] for one in found] == copies.tolist()
        assert max(copies) > 1
    else:
        assert set(found[0]) == set(rows[0])


def test_ties_are_cut_at_the_quota(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"domain": "a", "n": 10, "id": "same"}\n' * 9)
    found = select_shards(tmp_path / "a.jsonl", {"a": 1.0}, 34, tmp_path / "out", fields=FIELDS)
    assert found["documents"] == 3
    assert found["domains"]["a"] == {
        "weight": 1.0, "quota": 34.0, "selected": 30, "share": 1.0, "documents": 3, "available": 90
    }  # fmt: skip


def test_quotas_in_documents_and_in_bytes(corpus, tmp_path):
    folder, rows = corpus
    found = select_shards(folder, Mixture(WEIGHTS, unit="documents"), 100, tmp_path / "d", keep=["id"])
    assert {name: row["documents"] for name, row in found["domains"].items()} == {"a": 50, "b": 30, "c": 20}
    assert set(read(tmp_path / "d")[0]) == {"id"}
    found = select_shards(folder, {"a": 1.0}, 1e6, tmp_path / "t")
    assert found["domains"]["a"]["available"] == sum(2 * len(r["text"]) for r in rows if r["domain"] == "a")


def test_a_job_that_is_killed_goes_on_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    folder, _ = corpus
    select_shards(folder, WEIGHTS, 3000, tmp_path / "whole", fields=FIELDS)
    renamed, calls, kill = module.rename, 0, 1

    def dying(beside, path):
        nonlocal calls
        calls += 1
        if calls == kill:
            raise KeyboardInterrupt
        renamed(beside, path)

    monkeypatch.setattr(module, "rename", dying)
    for kill in range(1, 10):  # noqa: B007
        calls = 0
        try:
            select_shards(folder, WEIGHTS, 3000, tmp_path / "out", fields=FIELDS)
            break
        except KeyboardInterrupt:
            pass
    assert kill > 2
    for name in ("a.jsonl", "b.jsonl.gz", "sub/c.parquet", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls = kill = 0
    assert select_shards(folder, WEIGHTS, 3000, tmp_path / "out", fields=FIELDS)["documents"] > 0
    assert calls == 0  # nothing is done twice
    with pytest.raises(ValueError, match="holds a job with another selection"):
        select_shards(folder, WEIGHTS, 3001, tmp_path / "out", fields=FIELDS)
    with open(folder / "a.jsonl", "a") as file:
        file.write('{"domain": "a", "n": 1, "id": "new"}\n')
    with pytest.raises(ValueError, match="has changed since the job began"):
        select_shards(folder, WEIGHTS, 3000, tmp_path / "out", fields=FIELDS)


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module._cut, "__defaults__", (16,))
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "READ", 64)
    monkeypatch.setattr("omnimix.corpora.shards.BLOCK", 4096)
    rows = "".join(json.dumps(row) + "\n" for row in documents(200))

    def peak(n):
        file = tmp_path / f"{n}.jsonl"
        file.write_text(rows * (n // 200))
        tracemalloc.start()
        select_shards(file, WEIGHTS, 3 * n, tmp_path / str(n), fields=Fields(tokens="n"))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(200)  # what is imported and cached
    assert peak(4000) < 1.5 * peak(400)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"domain": None}, {}, r"a.jsonl, line 2: column 'domain' must hold the name of a domain, got None"),
        ({"n": 0}, {}, r"line 2: column 'n' must hold a whole number of tokens, 1 to 2\^53, got 0"),
        ({"n": 10**400}, {}, r"line 2: column 'n' must hold a whole number"),
        ({"n": "many"}, {}, r"line 2: column 'n' must hold a whole number"),
        ({"q": float("nan")}, {"score": "q"}, r"line 2: column 'q' must hold a finite number, got nan"),
        ({"q": 10**400}, {"score": "q"}, r"line 2: column 'q' must hold a finite number"),
        ({"id": None}, {}, r"line 2: column 'id' must hold an id, got None"),
        ({"text": ""}, {"tokens": None}, r"line 2: column 'text' must hold text, to be counted in bytes"),
        ({}, {"score": "quality"}, r"line 1: no column 'quality'; it has id, domain, n, q, text"),
    ],
)
def test_refused_documents(tmp_path, row, fields, message):
    rows = documents(3)
    rows[1].update(row)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(ValueError, match=message):
        select_shards(tmp_path / "a.jsonl", WEIGHTS, 10, tmp_path / "out", fields=Fields(**{**vars(FIELDS), **fields}))


def test_lengths_that_cannot_be_counted(tmp_path):
    rows = [{**one, "domain": "a", "n": 2**52} for one in documents(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(ValueError, match=r"the lengths in the domain 'a' add up to more than 2\^53"):
        select_shards(tmp_path / "a.jsonl", {"a": 1.0}, 10, tmp_path / "out", fields=FIELDS)


def test_refused_jobs(corpus, tmp_path):
    folder, _ = corpus
    for given, message in (
        ({"mixture": {"a": 1, "z": 1}}, "the domain 'z' has a weight, but no documents"),
        ({"budget": 1e9, "shortage": "raise"}, "its share of the budget is 500000000: lower the budget"),
        ({"tau": 1.0}, "tau=1.0 divides scores: name the column of the score"),
        ({"mixture": Mixture(WEIGHTS, unit="sequences")}, "the mixture is in sequences"),
        ({"budget": 0}, "budget"),
        ({"budget": float("inf")}, r"budget must be at most 2\^53, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            select_shards(**{"paths": folder, "mixture": WEIGHTS, "budget": 10, "out": tmp_path / f"o{len(message)}",
                             "fields": FIELDS, **given})  # fmt: skip
