"""Annotation of shards: rows kept in every format, resumed to the same bytes, refused with a reason."""

import gzip
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from omnimix.corpora.annotate import WORK, Together, annotate, fingerprint_of
from omnimix.corpora.discover import Taxonomy, TaxonomyAnnotator, TaxonomyClassifier, Tfidf, TfidfClassifier
from omnimix.corpora.proxy.documents import JSON_LINES, PARQUET, ipc_file, objects, schema_of
from omnimix.corpora.shards import sampled

ROWS = [{"text": "word " * (i % 7) + str(i), "number": i, "tags": ["a"] * (i % 3)} for i in range(50)]


class Length:
    """The number of characters, and what only some documents have."""

    def annotate(self, documents):
        return {
            "characters": [len(d["text"]) for d in documents],
            "odd": [f"odd {d['number']}" if d["number"] % 2 else None for d in documents],
        }


class Stops(Length):
    """Ends the job, as a kill does, when it comes to a document for the first time."""

    def __init__(self, at):
        self.at = at

    def annotate(self, documents):
        if any(d["number"] == self.at for d in documents):
            raise KeyboardInterrupt
        return super().annotate(documents)


def write(path, rows):
    if path.name.endswith(PARQUET):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=11)
    elif path.name.endswith((".arrow", ".ipc")):
        table = pa.Table.from_pylist(rows)
        kind = pa.ipc.new_stream if path.name == "stream.arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as out, kind(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    else:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        pack = {".gz": gzip.compress, ".zst": lambda b: pa.compress(b, codec="zstd", asbytes=True)}
        path.write_bytes(pack.get(path.suffix, bytes)(body))
    return path


def read(path):
    if path.name.endswith(JSON_LINES):
        return [row for _, row in objects(path)]
    if path.name.endswith(PARQUET):
        return pq.read_table(path).to_pylist()
    return (pa.ipc.open_file if ipc_file(path) else pa.ipc.open_stream)(path.read_bytes()).read_all().to_pylist()


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and WORK not in p.parts
    }


NAMES = ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet", "d.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0, 7, 33, 49])
def test_every_row_is_kept_and_a_resumed_job_gives_the_same_bytes(name, at, tmp_path):
    source = write(tmp_path / name, ROWS)
    how = {"identity": "length", "batch": 4, "chunk": 10}
    manifest = annotate(source, Length(), tmp_path / "whole", **how)
    expected = [
        {**row, "characters": len(row["text"]), "odd": f"odd {i}" if i % 2 else None} for i, row in enumerate(ROWS)
    ]
    assert read(tmp_path / "whole" / name) == expected
    assert manifest["rows"] == 50
    assert manifest["shards"][0]["sha256"] == sha256((tmp_path / "whole" / name).read_bytes()).hexdigest()
    assert manifest["shards"][0]["source"]["sha256"] == sha256(source.read_bytes()).hexdigest()

    with pytest.raises(KeyboardInterrupt):
        annotate(source, Stops(at), tmp_path / "stopped", **how)
    assert set(files(tmp_path / "stopped")) == set()
    kept = sum(int(p.stem.split("-")[1]) for p in (tmp_path / "stopped" / WORK / name).glob("*.part"))
    assert kept == at // 12 * 12
    annotate(source, Length(), tmp_path / "stopped", **how)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_annotate import Length
from omnimix.corpora.annotate import annotate
class Slow(Length):
    def annotate(self, documents):
        time.sleep(0.02)
        return super().annotate(documents)
annotate({source!r}, Slow(), {out!r}, identity="length", batch=4, chunk=4)
"""


def test_a_killed_process_loses_a_chunk_at_most(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jsonl.gz", "b.parquet"):
        write(tmp_path / "in" / name, ROWS)
    annotate(tmp_path / "in", Length(), tmp_path / "whole", identity="length", batch=4, chunk=4)
    out = tmp_path / "killed"
    script = SCRIPT.format(here=str(Path(__file__).parent), source=str(tmp_path / "in"), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and len(list(out.rglob("*.part"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    annotate(tmp_path / "in", Length(), out, identity="length", batch=4, chunk=4)
    assert files(out) == files(tmp_path / "whole")


def test_what_is_finished_is_not_done_again(tmp_path):
    source = write(tmp_path / "d.jsonl", ROWS)
    first = annotate(source, Length(), tmp_path / "out", identity="length")
    assert annotate(source, Stops(0), tmp_path / "out", identity="length") == first
    (tmp_path / "out" / "d.jsonl").unlink()
    assert annotate(source, Length(), tmp_path / "out", identity="length") == first
    assert len(read(tmp_path / "out" / "d.jsonl")) == 50


def another_annotator(folder, how):
    how["identity"] = "other"


def another_batch(folder, how):
    how["batch"] = 9


def another_keep(folder, how):
    how["keep"] = ["text"]


def one_more_file(folder, how):
    write(folder / "e.jsonl", ROWS[:2])


def changed_rows(folder, how):
    write(folder / "d.jsonl", [{**row, "text": row["text"].upper()} for row in ROWS])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_annotator, 'another annotator: "length", now "other"'),
        (another_batch, "another batch: 4, now 9"),
        (another_keep, "another keep"),
        (one_more_file, "another files"),
        (changed_rows, "d.jsonl has changed since the job began"),
    ],
)
@pytest.mark.parametrize("at", [7, 33, None])
def test_another_job_is_refused_wherever_the_first_stood(change, said, at, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "d.jsonl", ROWS)
    how = {"identity": "length", "batch": 4, "chunk": 10}
    if at is None:
        annotate(folder, Length(), tmp_path / "out", **how)
    else:
        with pytest.raises(KeyboardInterrupt):
            annotate(folder, Stops(at), tmp_path / "out", **how)
    change(folder, how)
    with pytest.raises(ValueError, match=said):
        annotate(folder, Length(), tmp_path / "out", **how)


def test_a_lost_chunk_is_made_again(tmp_path):
    source = write(tmp_path / "d.jsonl", ROWS)
    how = {"identity": "length", "batch": 4, "chunk": 4}
    annotate(source, Length(), tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        annotate(source, Stops(33), tmp_path / "out", **how)
    sorted((tmp_path / "out").rglob("*.part"))[2].unlink()
    annotate(source, Length(), tmp_path / "out", **how)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_touched_file_is_the_same_file(tmp_path):
    source = write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(KeyboardInterrupt):
        annotate(source, Stops(33), tmp_path / "out", identity="length", batch=4, chunk=10)
    source.touch()
    assert annotate(source, Length(), tmp_path / "out", identity="length", batch=4, chunk=10)["rows"] == 50


class Gives:
    """Any columns."""

    def __init__(self, **columns):
        self.columns = columns

    def annotate(self, documents):
        return {name: make(documents) for name, make in self.columns.items()}


def strict(documents):
    for row, document in enumerate(documents):
        if document["number"] == 21:
            raise ValueError(f"document {row}: 21 is not allowed")
    return [0] * len(documents)


@pytest.mark.parametrize(
    ("name", "annotator", "said"),
    [
        ("d.jsonl", Gives(x=strict), "d.jsonl, line 22: document 0: 21 is not allowed"),
        ("d.parquet", Gives(x=strict), "d.parquet, row 22: document 0: 21 is not allowed"),
        ("d.jsonl", Gives(x=lambda d: [0] * (len(d) + 1)), "line 1: Gives: column 'x' has 2 values for 1 documents"),
        ("d.jsonl", Gives(text=lambda d: [0] * len(d)), "line 1: Gives: column 'text' is in the documents already"),
        ("d.jsonl", Gives(x=lambda d: [float("nan")] * len(d)), "line 1: JSON cannot hold it"),
        (
            "d.arrow",
            Gives(x=lambda d: [1, "a"] * (len(d) // 2)),
            "row 2: column 'x' is 'a'; the rows before have another",
        ),
        ("d.jsonl", Together([Gives(x=len), Gives(x=len)]), "two annotators give a column 'x'"),
    ],
)
def test_errors_name_file_and_row(name, annotator, said, tmp_path):
    source = write(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match=said):
        annotate(source, annotator, tmp_path / "out", identity="x", batch=4)


def test_a_file_that_breaks_off_is_named(tmp_path):
    whole = write(tmp_path / "d.jsonl.gz", ROWS).read_bytes()
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"d.jsonl.gz: cannot be read beyond line \d+"):
        annotate(tmp_path / "d.jsonl.gz", Length(), tmp_path / "out", identity="x")


def test_text_of_all_scripts_stays_text(tmp_path):
    source = tmp_path / "d.jsonl"
    source.write_text('{"text": "é 水"}\n{"text": "half: \\ud83d"}\n', encoding="utf-8")
    annotate(source, Gives(x=lambda d: [1] * len(d)), tmp_path / "out", identity="x")
    whole = (tmp_path / "out" / "d.jsonl").read_text(encoding="utf-8")
    assert whole == '{"text": "é 水", "x": 1}\n{"text": "half: \\ud83d", "x": 1}\n'


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_file_and_chosen_columns(name, tmp_path):
    source = write(tmp_path / name, ROWS)
    annotate(source, Length(), tmp_path / "some", identity="x", keep=["number"])
    assert [set(row) for row in read(tmp_path / "some" / name)] == [{"number", "characters", "odd"}] * 50
    if name.endswith(JSON_LINES):
        write(source, [])
        assert annotate(source, Length(), tmp_path / "none", identity="x")["rows"] == 0
        assert read(tmp_path / "none" / name) == []


def test_a_column_has_the_type_that_all_its_values_need(tmp_path):
    source = write(tmp_path / "d.parquet", ROWS)
    number = Gives(x=lambda d: [i if i < 20 else i / 2 for i in (one["number"] for one in d)])
    annotate(source, number, tmp_path / "out", identity="x", batch=4, chunk=8)
    assert pq.read_schema(tmp_path / "out" / "d.parquet").field("x").type == pa.float64()
    assert [row["x"] for row in read(tmp_path / "out" / "d.parquet")][19:22] == [19, 10, 10.5]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    write(folder / "d.jsonl", ROWS[:3])
    write(folder / "more" / "d.jsonl", ROWS[:4])
    annotate(folder, Length(), tmp_path / "out", identity="x")
    assert len(read(tmp_path / "out" / "more" / "d.jsonl")) == 4
    for out, said in ((folder, "lies in the output"), (tmp_path, "lies in the output")):
        with pytest.raises(ValueError, match=said):
            annotate(folder, Length(), out, identity="x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds something else"):
        annotate(folder, Length(), tmp_path / "other", identity="x")
    with pytest.raises(ValueError, match=r"would both be written as d\.jsonl"):
        annotate([folder / "d.jsonl", folder / "more" / "d.jsonl"], Length(), tmp_path / "two", identity="x")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_random_and_without_repetition(name, tmp_path):
    file = write(tmp_path / name, ROWS)
    found = [sampled([file, file], 20, torch.Generator().manual_seed(s)) for s in range(40)]
    assert all(len(one) == 20 for one in found)
    counts = np.bincount([row["number"] for one in found for _, row in one], minlength=50)
    assert counts.mean() == 16
    assert 0.3 < counts.var() / (16 * 0.8) < 2
    everything = sampled([file], 99, torch.Generator())
    assert [row for _, row in everything] == ROWS
    assert everything[2][0] == f"{file}, {'line' if '.json' in name else 'row'} 3"


def test_a_saved_annotator_is_known_by_its_files(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("1")
    first = fingerprint_of(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    assert fingerprint_of(tmp_path / "n") == first
    assert fingerprint_of(tmp_path / "m" / "a") == fingerprint_of(tmp_path / "n" / "a")
    (tmp_path / "n" / "a").write_text("2")
    assert fingerprint_of(tmp_path / "n") != first


@pytest.mark.parametrize("name", NAMES[3:])
def test_an_empty_table_keeps_what_is_to_be_kept(name, tmp_path):
    table = pa.Table.from_pylist(ROWS).slice(0, 0)
    if name.endswith(PARQUET):
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as out:
            (pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file)(out, table.schema).close()
    assert annotate(tmp_path / name, Length(), tmp_path / "out", identity="x", keep=["number"])["rows"] == 0
    assert schema_of(tmp_path / "out" / name).names == ["number"]
    with pytest.raises(ValueError, match="no column"):
        annotate(tmp_path / name, Length(), tmp_path / "other", identity="x", keep=["nowhere"])


def test_an_output_inside_the_input_is_refused_before_it_becomes_input(tmp_path):
    write(tmp_path / "d.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match="out lies in the input"):
        annotate(tmp_path, Length(), tmp_path / "out", identity="x")
    assert not (tmp_path / "out").exists()


def test_the_same_call_goes_on_with_an_annotator_that_was_used(tmp_path):
    source = write(tmp_path / "d.jsonl", ROWS)
    kind = Taxonomy("kind", ["a", "b"])
    learned = TaxonomyClassifier(kind, TfidfClassifier(Tfidf(least=1))).fit(
        ROWS, kind.soft([row["number"] % 2 for row in ROWS])
    )
    asks = TaxonomyAnnotator(kind, lambda prompts: ["A"] * len(prompts))
    for number, annotator in enumerate((learned, asks)):
        first = annotate(source, annotator, tmp_path / str(number))
        assert annotate(source, annotator, tmp_path / str(number)) == first
    assert asks.counts["asked"] == 50
    again = pickle.loads(pickle.dumps(learned))
    assert np.array_equal(again.probabilities(ROWS), learned.probabilities(ROWS))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, 10**30], r"a.parquet, row 3: column 'new' is 1000000000000000000000000000000; Arrow cannot hold it"),
        ([1, 2, "x"], r"a.parquet, row 3: column 'new' is 'x'; the rows before have another type"),
        ([None, 1, [1]], r"a.parquet, row 3: column 'new' is \[1\]; the rows before have another type"),
    ],
)
@pytest.mark.parametrize(("batch", "chunk"), [(4, 4), (1, 4), (1, 1)])
def test_values_that_arrow_cannot_hold_are_named(values, message, batch, chunk, tmp_path):
    class Picks:
        def annotate(self, documents):
            return {"new": [values[d["number"]] for d in documents]}

    write(tmp_path / "a.parquet", ROWS[:3])
    with pytest.raises(ValueError, match=message):
        annotate(tmp_path / "a.parquet", Picks(), tmp_path / "out", identity="picks", batch=batch, chunk=chunk)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": ' + "[" * 100_000 + "]" * 100_000 + "}", r"line 2: not a JSON object \(it is nested too deeply"),
        ('{"q": ' + "9" * 5000 + "}", "line 2: not a JSON object .*digits"),
        ('{"q": ' + "9" * 400 + "}", "line 2: document 0: column 'q' must hold a number, got 9999"),
    ],
)
def test_lines_that_python_cannot_hold_are_named(line, message, tmp_path):
    from omnimix.corpora.score import QualityColumns

    (tmp_path / "a.jsonl").write_text('{"q": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        annotate(tmp_path / "a.jsonl", QualityColumns("q"), tmp_path / "out")
