"""Annotation of a corpus: documents a second, and peak memory for 1x and 10x the documents, which must not differ.

    python benchmarks/annotate.py [--documents 20000] [--factor 10] [--shards 2] [--kinds jsonl.gz,parquet] [--json]

Documents of random words, about 1,000 characters each. The annotator is SampleMix with TF-IDF, SVD and learned quality,
fitted once on 2,000 of them. Each job is one process, which tells its seconds of processor time, and its peak resident
memory, beside the peak when the annotator was loaded and had annotated one batch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = 5000


def documents(count: int, seed: int) -> Iterator[dict[str, object]]:
    random = np.random.default_rng(seed)
    words = np.array([f"w{i:04d}" for i in range(WORDS)])
    for i in range(count):
        topic = int(random.integers(20))
        drawn = (random.zipf(1.3, 160) + 240 * topic) % WORDS
        yield {"id": i, "text": " ".join(words[drawn]), "rating": topic % 11}


def write(file: Path, count: int, seed: int) -> None:
    rows = documents(count, seed)
    if file.name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({"id": pa.int64(), "text": pa.string(), "rating": pa.int64()})
        with pq.ParquetWriter(file, schema) as out:
            for first in range(0, count, 1000):
                out.write_table(pa.Table.from_pylist([next(rows) for _ in range(min(1000, count - first))], schema))
        return
    with gzip.open(file, "wt", compresslevel=1) as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def memory() -> float:
    """Peak resident MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def job(folder: Path, model: Path, out: Path) -> None:
    from omnimix.corpora.annotate import annotate
    from omnimix.corpora.score import SampleMix

    annotator = SampleMix.load(model)
    annotator.annotate(list(documents(64, 9)))
    before, start = memory(), time.process_time()
    manifest = annotate(folder, annotator, out, identity="benchmark")
    print(json.dumps([manifest["rows"], time.process_time() - start, memory(), memory() - before]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("documents", 20_000), ("factor", 10), ("shards", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", default="jsonl.gz,parquet")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--job", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(*options.job)
        return
    import torch

    from omnimix.corpora.score import OrdinalQuality, SampleMix

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        some = list(documents(2000, 1))
        quality = OrdinalQuality().fit(some, [float(row["rating"]) for row in some])  # type: ignore[arg-type]
        SampleMix.fit(some, quality, clusters=20, generator=torch.Generator().manual_seed(0)).save(root / "model")
        for kind in options.kinds.split(","):
            for times in (1, options.factor):
                folder = root / f"{times}.{kind}"
                folder.mkdir()
                for shard in range(options.shards):
                    write(folder / f"{shard}.{kind}", options.documents * times // options.shards, shard)
                command = [sys.executable, __file__, "--job", str(folder), str(root / "model"), f"{folder}.out"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows, seconds, peak, extra = json.loads(done.stdout)
                found.append(
                    {"kind": kind, "documents": rows, "documents_per_cpu_second": rows / seconds, "peak_mib": peak,
                     "extra_mib": extra}
                )  # fmt: skip
                if not options.json:
                    print(
                        f"{kind:10} {rows:>9,} documents {rows / seconds:>8,.0f} a second   peak {peak:.0f} MiB, "
                        f"{extra:+.0f} MiB while annotating",
                        flush=True,
                    )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
