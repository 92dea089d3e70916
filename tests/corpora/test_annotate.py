"""Annotation of shards: rows kept in every format, resumed to the same bytes, refused with a reason."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnimix.corpora.annotate import MANIFEST, WORK, Together, annotate, fingerprint_of
from omnimix.corpora.proxy.documents import JSON_LINES, PARQUET, ipc_file, objects

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
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and WORK not in p.parts}


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
