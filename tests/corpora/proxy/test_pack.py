"""Packing: what goes in comes out, once, in every format; held-out parts; bad rows named; memory flat."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnimix.corpora.proxy import Columns, Packed, pack
from omnimix.networks.language_model import IGNORED


def rows(corpus):
    return [json.loads(line) for line in corpus.read_text().splitlines()]


def texts(packed, part):
    """The documents of every domain, from the tokens of a part."""
    found = packed.parts[part]
    return {
        name: Counter(bytes(piece.astype(np.uint8)).decode() for piece in split(found.tokens[start:end]))
        for name, start, end in zip(packed.domains, found.start, found.end, strict=True)
    }


def split(tokens):
    ends = np.flatnonzero(tokens == 256)
    return [tokens[a:b] for a, b in zip([0, *(ends[:-1] + 1)], ends, strict=True)] if len(ends) else []


def test_every_document_is_in_one_part_once(corpus, packed):
    whole = sum((Counter(texts(packed, part)[name]) for part in packed.parts for name in packed.domains), Counter())
    assert whole == Counter(row["text"] for row in rows(corpus))
    by_domain = Counter(row["domain"] for row in rows(corpus))
    for name in packed.domains:
        assert sum(packed.documents(part)[name] for part in packed.parts) == by_domain[name]
    assert 0 < sum(packed.documents("valid").values()) < 0.4 * len(rows(corpus))


def test_every_format_gives_the_same_tokens(corpus, packed, tmp_path):
    table = pa.Table.from_pylist(rows(corpus))
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=10)
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    with gzip.open(tmp_path / "d.jsonl.gz", "wb") as out:
        out.write(corpus.read_bytes())
    for number, name in enumerate(("d.parquet", "d.arrow", "s.arrow", "d.jsonl.gz")):
        other = pack(tmp_path / name, tmp_path / str(number), held_out={"valid": 0.2, "test": 0.1})
        assert other.digest == packed.digest


def test_token_ids_are_taken_as_they_are(corpus, packed, tmp_path):
    made = [{"d": row["domain"], "ids": list(row["text"].encode())} for row in rows(corpus)]
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "d.parquet")
    columns = Columns("d", None, "ids")
    other = pack(tmp_path / "d.parquet", tmp_path / "p", columns=columns, vocabulary=257, end=256, held_out={"v": 0.3})
    assert sum(other.tokens("train").values()) + sum(other.tokens("v").values()) == sum(
        sum(packed.tokens(part).values()) for part in packed.parts
    )
    with pytest.raises(ValueError, match=r"integers in 0\.\.99"):
        pack(tmp_path / "d.parquet", tmp_path / "q", columns=columns, vocabulary=100)


def test_sequences_predict_every_token_but_the_first_once(packed):
    for part in packed.parts:
        counts = packed.sequences(part, 16)
        for number, name in enumerate(packed.domains):
            index = np.arange(counts[number])
            inputs, targets = packed.read(part, np.full(len(index), number), index, 16)
            inside = targets != IGNORED
            found = packed.parts[part]
            own = found.tokens[found.start[number] : found.end[number]].astype(np.int64)
            assert targets[inside].tolist() == own[1:].tolist()
            assert inputs[inside].tolist() == own[:-1].tolist()
            assert int(inside.sum()) == max(0, packed.tokens(part)[name] - 1)


def test_equal_documents_are_held_out_together_and_the_seed_chooses(corpus, packed, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text(corpus.read_text() * 2)
    double = pack(twice, tmp_path / "double", held_out={"valid": 0.2, "test": 0.1})
    assert {p: double.documents(p) for p in double.parts} == {
        p: {name: 2 * n for name, n in packed.documents(p).items()} for p in packed.parts
    }
    other = pack(corpus, tmp_path / "other", held_out={"valid": 0.2, "test": 0.1}, seed=1)
    assert texts(other, "valid") != texts(packed, "valid")


def test_keep_thins_a_domain_in_training_only(corpus, packed, tmp_path):
    thin = pack(corpus, tmp_path / "p", held_out={"valid": 0.2, "test": 0.1}, keep={"a": 0.3})
    assert thin.documents("train")["a"] < 0.6 * packed.documents("train")["a"]
    assert thin.documents("train")["b"] == packed.documents("train")["b"]
    assert texts(thin, "valid") == texts(packed, "valid")


def test_a_packed_folder_is_opened_again_and_not_taken_for_another(corpus, packed, tmp_path):
    first = pack(corpus, tmp_path / "p", held_out={"valid": 0.2, "test": 0.1})
    assert pack(corpus, tmp_path / "p", held_out={"valid": 0.2, "test": 0.1}).digest == first.digest == packed.digest
    with pytest.raises(ValueError, match="packed otherwise"):
        pack(corpus, tmp_path / "p", held_out={"valid": 0.1})
    (tmp_path / "p" / "train.bin").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"train\.bin is 4 bytes long"):
        Packed(tmp_path / "p")


def test_subwords_are_learned_kept_and_read_again(corpus, tmp_path):
    pytest.importorskip("tokenizers")
    learned = pack(corpus, tmp_path / "p", tokenizer="bpe:280")
    assert learned.vocabulary == 280
    assert sum(learned.tokens("train").values()) < sum(len(row["text"]) + 1 for row in rows(corpus))
    again = pack(corpus, tmp_path / "q", tokenizer=str(tmp_path / "p" / "tokenizer.json"))
    assert again.digest == learned.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"domain": "a", "text": "x"}\n{"domain": "a"}\n', r"line 2: no column 'text'; it has domain"),
        ('{"domain": "a", "text": "x"}\nnot json\n', r"line 2: not a JSON object"),
        ('{"domain": null, "text": "x"}\n', r"row 1: column 'domain' must hold a domain"),
        ('{"domain": "a", "text": 7}\n', r"row 1: column 'text' must hold text, got 7"),
        (
            '{"domain": "a", "text": "x"}\n{"a": ' + "[" * 100_000,
            r"line 2: not a JSON object \(it is nested too deeply",
        ),
    ],
)
def test_bad_rows_are_named(content, message, tmp_path):
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        pack(tmp_path / "d.jsonl", tmp_path / "p")
    assert not (tmp_path / "p" / "packed.json").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2**70], r"row 2: column 'tokens' must hold a list of token ids, got \[1, 1180591620717411303424\]"),
        ([1, "x"], "row 2: column 'tokens' must hold a list of token ids"),
        ([1, [2]], "row 2: column 'tokens' must hold a list of token ids"),
        ([1, 2.5], "row 2: column 'tokens' must hold a list of token ids"),
        ([1, 10], r"row 2: token ids must be integers in 0..9, got 1..10"),
    ],
)
def test_bad_token_ids_are_named(ids, message, tmp_path):
    rows = [{"domain": "a", "tokens": [1, 2]}, {"domain": "a", "tokens": ids}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        pack(tmp_path / "d.jsonl", tmp_path / "p", columns=Columns(text=None, tokens="tokens"), vocabulary=10)


def test_bad_arguments_are_refused(corpus, tmp_path):
    for arguments, message in (
        ({"tokenizer": "bpe:many"}, "bpe:4096"),
        ({"tokenizer": "words"}, "tokenizer must be 'bytes'"),
        ({"held_out": {"train": 0.1}}, "other than 'train'"),
        ({"held_out": {"valid": 0.7, "test": 0.4}}, "sum to less than 1"),
        ({"keep": {"a": 0}}, r"keep\['a'\] must be in"),
        ({"columns": Columns("topic")}, "no column 'topic'"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(corpus, tmp_path / "p", **arguments)
    with pytest.raises(ValueError, match="no documents found"):
        pack(tmp_path, tmp_path / "p")
    with pytest.raises(ValueError, match="give the column of the text or that of the tokens"):
        Columns(text="t", tokens="ids")


PEAK = """
import resource, sys
from omnimix.corpora.proxy import pack
import pyarrow.json
pack(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    line = json.dumps({"domain": "a", "text": "x" * 4000}) + "\n"
    peaks = []
    for times in (1, 10):
        file = tmp_path / f"{times}.jsonl"
        with open(file, "w") as out:
            for number in range(1500 * times):
                out.write(line.replace("xxxxxx", f"{number:06d}", 1))
        out = subprocess.run(
            [sys.executable, "-c", PEAK, file, tmp_path / f"p{times}"], capture_output=True, text=True, check=True
        )
        peaks.append(int(out.stdout))
    assert peaks[1] < peaks[0] + 12_000  # kB: the larger file alone is 60,000
