"""`omnimix weigh annotate` writes new columns beside the documents of a corpus, `weigh samplemix` rates them for it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .console import console, progress, user_errors
from .weigh import _print, weigh

if TYPE_CHECKING:
    from ..corpora.annotate import Job
    from ..corpora.annotation import Annotator
    from ..corpora.score import SampleMix

RUNNING = "Running"
Data = Annotated[list[Path], typer.Argument(help="Files or folders: .jsonl(.gz, .zst), .parquet, .arrow.")]
Jobs = Annotated[
    int | None, typer.Option(help="Shards at a time. Default: one a core, or one on a GPU.", rich_help_panel=RUNNING)
]
Engine = Annotated[
    str, typer.Option(help="What computes: local (processes), or ray (a cluster).", rich_help_panel=RUNNING)
]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster.", rich_help_panel=RUNNING)]
Accelerator = Annotated[
    str, typer.Option(help="cpu or gpu: what a shard asks of the cluster.", rich_help_panel=RUNNING)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.", rich_help_panel=RUNNING)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUNNING)]
Batch = Annotated[int, typer.Option(help="Documents that are annotated at a time.", rich_help_panel=RUNNING)]


@weigh.command("annotate")
def annotate(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the annotated files.")],
    taxonomy: Annotated[
        list[Path] | None, typer.Option(help="Folder of a taxonomy classifier; may be repeated.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help="File of clusters, as regroup saves them.")] = None,
    samplemix: Annotated[Path | None, typer.Option(help="Folder that `weigh samplemix` wrote: copies.")] = None,
    quality: Annotated[
        list[str] | None, typer.Option(help="Column of quality; several are summed. Checked, and written as quality.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="NEW=NAME: another name for a new column; may be repeated.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Columns to keep, with commas. Default: all.")] = None,
    batch: Batch = 64,
    jobs: Jobs = None,
    engine: Engine = "local",
    address: Address = None,
    accelerator: Accelerator = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a corpus: every file again, with new columns, in a folder.

    A command that was stopped continues where it was, and gives the same bytes. Memory does not grow with the corpus.
    """
    with user_errors():
        from ..corpora.annotate import Together, fingerprint_of, prepare
        from ..corpora.discover.regroup import Groups
        from ..corpora.discover.taxonomy import TaxonomyClassifier
        from ..corpora.score import QualityColumns, SampleMix

        _folder(out)
        found: list[Annotator] = []
        identity = []
        for folder in taxonomy or []:
            found.append(TaxonomyClassifier.load(folder, "cuda" if accelerator == "gpu" else None))
            identity.append(f"taxonomy {fingerprint_of(folder)}")
        if groups is not None:
            if not groups.is_file():
                raise ValueError(f"--groups {groups}: there is no such file; name the one that Groups.save wrote")
            found.append(Groups.load(groups))
            identity.append(f"groups {fingerprint_of(groups)}")
        if samplemix is not None:
            model = SampleMix.load(samplemix)
            if model.sampling is None:
                raise ValueError(f"{samplemix} has no sampling: finish `omnimix weigh samplemix` first")
            found.append(model)
            parts = fingerprint_of(samplemix / "samplemix.safetensors", samplemix / "groups.safetensors")
            identity.append(f"samplemix {parts}")
        if quality:
            found.append(QualityColumns(*quality))
            identity.append(f"quality {json.dumps(quality)}")
        if not found:
            raise ValueError("say what to annotate with: --taxonomy, --groups, --samplemix or --quality")
        names = dict(_renamed(one) for one in rename or [])
        if names:
            identity.append(f"rename {json.dumps(names, sort_keys=True)}")
        kept = None if keep is None else [name.strip() for name in keep.split(",") if name.strip()]
        job = prepare(data, out, "; ".join(identity), keep=kept, batch=batch)
        manifest = _run(job, Together(found, names), jobs, engine, address, accelerator, quiet)
    facts = {"out": str(out), "documents": manifest["rows"], "files": len(manifest["shards"]),
             "manifest": str(out / "manifest.json")}  # fmt: skip
    if as_json:
        _print(facts)
    else:
        typer.echo(f"{facts['documents']} documents in {facts['files']} files: {out}")


@weigh.command("samplemix")
def samplemix(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the model.")],
    budget: Annotated[float, typer.Option(help="Tokens to draw: more, or fewer, than there are.")],
    quality: Annotated[list[str] | None, typer.Option(help="Column of quality; several are summed.")] = None,
    rated: Annotated[
        list[Path] | None, typer.Option(help="In place of it: rated documents, from which quality is learned.")
    ] = None,
    rating: Annotated[str, typer.Option(help="Their column of ratings, whole numbers from 0.")] = "quality",
    levels: Annotated[int, typer.Option(help="The highest rating.", min=1)] = 10,
    text: Annotated[str, typer.Option(help="The column of the text.")] = "text",
    tokens: Annotated[str | None, typer.Option(help="The column of a document's tokens. Default: bytes.")] = None,
    embedding: Annotated[str | None, typer.Option(help="A column of embeddings. Default: TF-IDF and SVD.")] = None,
    dimensions: Annotated[int, typer.Option(help="Of TF-IDF and SVD.", min=2)] = 64,
    clusters: Annotated[int, typer.Option(help="Clusters of documents.", min=2)] = 64,
    sample: Annotated[int, typer.Option(help="Documents on which the clusters are made.", min=3)] = 20_000,
    alpha: Annotated[float, typer.Option(help="Share of diversity; the rest is quality.")] = 0.8,
    temperature: Annotated[float, typer.Option(help="tau; small: the best documents alone.")] = 0.2,
    cap: Annotated[float, typer.Option(help="Copies of a document at most.")] = float("inf"),
    scale: Annotated[str, typer.Option(help="min-max, clipped or rank: how both come to 0..1.")] = "min-max",
    seed: Annotated[int, typer.Option(help="Of the sample, the clusters and the draws.")] = 0,
    batch: Batch = 64,
    jobs: Jobs = None,
    engine: Engine = "local",
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rate a corpus by quality and diversity, and find how often each document is drawn for a budget (SampleMix).

    `omnimix weigh annotate --samplemix` then writes the copies beside the documents. Another budget, alpha,
    temperature, cap or scale with the same folder takes the ratings that are there.
    """
    with user_errors():
        from ..corpora.annotate import fingerprint_of, prepare
        from ..corpora.proxy.documents import find_files
        from ..corpora.score import SampleMix
        from ..corpora.score.samplemix import read_ratings
        from ..corpora.shards import put

        _folder(out)
        given: dict[str, Any] = {
            "quality": quality, "rated": [str(file) for file in rated or []], "rating": rating, "levels": levels,
            "text": text, "tokens": tokens, "embedding": embedding, "dimensions": dimensions, "clusters": clusters,
            "sample": sample, "seed": seed,
            "content of the rated files": fingerprint_of(*find_files(rated)) if rated else None,
        }  # fmt: skip
        rater, known = out / "rater", out / "rater" / "given.json"
        if not known.exists():
            if not quiet:
                console(stderr=True).print("making the clusters from a sample of the documents", markup=False)
            _fit(data, given).save(rater)
            put(known, (json.dumps(given) + "\n").encode())
        elif (old := json.loads(known.read_text(encoding="utf-8"))) != given:
            changed = ", ".join(name for name, value in given.items() if old.get(name) != value)
            raise ValueError(f"{out} was made with another {changed}: choose another folder, or remove it")
        model = SampleMix.load(rater)
        job = prepare(data, out / "ratings", f"samplemix {fingerprint_of(rater)}", keep=(), batch=batch)
        _run(job, model, jobs, engine, address, "cpu", quiet)
        files = [job.out / shard.name for shard in job.shards]
        done = model.measured(
            lambda: read_ratings(files), budget, alpha=alpha, tau=temperature, cap=cap, scale=scale
        )  # fmt: skip
        done.save(out)
    _show(done, out, as_json)


def _fit(data: list[Path], given: dict[str, Any]) -> SampleMix:
    """Clusters of a sample of the corpus, and the scorer of quality."""
    import torch

    from ..corpora.discover.embed import TfidfSVD
    from ..corpora.proxy.documents import find_files
    from ..corpora.score import OrdinalQuality, QualityColumns, SampleMix, qualities
    from ..corpora.shards import documents, sampled

    if bool(given["quality"]) == bool(given["rated"]):
        raise ValueError("say where quality comes from: --quality COLUMN, or --rated FILE with --rating COLUMN")
    generator = torch.Generator().manual_seed(given["seed"])
    scorer: Any
    if given["quality"]:
        scorer = QualityColumns(*given["quality"])
    else:
        places, known = _rows(documents(find_files(given["rated"])), "--rated " + " ".join(given["rated"]))
        with _placed(places, "--rated " + " ".join(given["rated"])):
            ratings = qualities(QualityColumns(given["rating"]), known)
            scorer = OrdinalQuality(given["levels"], text=given["text"]).fit(known, ratings)
    corpus = " ".join(map(str, data))
    places, found = _rows(sampled(find_files(data), given["sample"], generator), corpus)
    column, k = given["embedding"] or given["text"], given["clusters"]
    different = len({repr(document.get(column)) for document in found})
    if different <= k:
        raise ValueError(
            f"{corpus}: {len(found)} documents with {different} different values of {column!r} are too few for {k} "
            "clusters: give more documents, or fewer --clusters"
        )
    with _placed(places, corpus), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"sklearn\b")
        return SampleMix.fit(
            found, scorer, clusters=k, embedder=None if given["embedding"] else TfidfSVD(given["dimensions"]),
            embedding=given["embedding"], text=given["text"], tokens=given["tokens"], seed=given["seed"],
            generator=generator,
        )  # fmt: skip


def _rows(rows: Iterable[tuple[str, dict[str, Any]]], name: str) -> tuple[list[str], list[dict[str, Any]]]:
    listed = list(rows)
    if not listed:
        raise ValueError(f"{name}: there is no document in it")
    return [place for place, _ in listed], [document for _, document in listed]


@contextmanager
def _placed(places: Sequence[str], name: str) -> Iterator[None]:
    """Errors that count documents name their file and row; others the files."""
    try:
        yield
    except ValueError as error:
        counted = re.match(r"document (\d+): ", str(error))
        where = places[int(counted[1])] if counted else name
        raise ValueError(f"{where}: {str(error)[counted.end() if counted else 0 :]}") from error


def _folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, new or of the same job")


def _renamed(one: str) -> tuple[str, str]:
    new, _, name = one.partition("=")
    if not new or not name:
        raise ValueError(f"--rename is NEW=NAME, the new column and its other name; got {one!r}")
    return new, name


def _run(
    job: Job, annotator: Annotator, jobs: int | None, engine: str, address: str | None, device: str, quiet: bool
) -> dict[str, Any]:
    from ..compare.annotations import Fault, run_annotation

    messages = console(stderr=True)

    @contextmanager
    def watch(share: Callable[[], float], shards: int) -> Iterator[Callable[[Any], None]]:
        with _bar(share, shards, messages, quiet) as tell:

            def note(outcome: Any) -> None:
                tell(f"{outcome.name}: " + ("failed" if isinstance(outcome, Fault) else f"{outcome.rows} documents"))

            yield note

    try:
        return run_annotation(
            job, annotator, workers=jobs, engine=engine, address=address, device=device, watch=watch
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"omnimix: stopped; the same command continues what is in {job.out}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _bar(share: Callable[[], float], total: int, out: Console, quiet: bool) -> Iterator[Callable[[str], None]]:
    if quiet:
        yield lambda text: None
        return
    with progress(share, total, out, unit="files") as tell:
        yield tell


def _show(model: SampleMix, out: Path, as_json: bool) -> None:
    """The corpus, and its clusters by diversity."""
    import numpy as np

    sampling = model.sampling
    assert sampling is not None
    level = np.interp(sampling.diversity, *sampling.diversity_scale)
    describe = getattr(model.groups.embedder, "describe", None)
    words: Sequence[Sequence[str]] = describe(model.groups.centroids) if describe else [()] * len(level)
    rows = [
        {"cluster": i, "diversity": float(level[i]), "words": list(words[i])}
        for i in np.argsort(-level, kind="stable").tolist()
    ]
    if as_json:
        _print({
            "model": str(out), "documents": sampling.documents, "tokens": sampling.tokens, "budget": sampling.budget,
            "epochs": sampling.budget / sampling.tokens, "alpha": sampling.alpha, "temperature": sampling.tau,
            "cap": None if np.isinf(sampling.cap) else sampling.cap, "scale": sampling.scale, "clusters": rows,
        })  # fmt: skip
        return
    table = Table("cluster", "diversity", "words")
    for row in rows:
        table.add_row(str(row["cluster"]), f"{row['diversity']:.3f}", " ".join(row["words"]))
    screen = console(stderr=False)
    screen.print(table)
    screen.print(
        f"{sampling.documents} documents, {sampling.tokens} tokens; {sampling.budget / sampling.tokens:.3g} epochs. "
        f"Write the copies beside them:\n  omnimix weigh annotate ... --samplemix {out} -o FOLDER",
        markup=False, soft_wrap=True,
    )  # fmt: skip
