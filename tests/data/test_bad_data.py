"""Bad data are refused before training, with the file, the place in it and what to do."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from omnimix.data import DataError, load

ROWS = "a,b,y\n" + "".join(f"{i},{i % 7 + 0.5},{i * 0.37 + 0.1}\n" for i in range(1, 31))


def _with(line: int, text: str) -> str:
    """ROWS with one line (1-based, as in an editor) replaced."""
    lines = ROWS.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


CLASSES = "a,k\n" + "".join(f"{i * i},{'red' if i % 2 else 'blue'}\n" for i in range(20))

TEXT = [
    ("no target", ROWS, {}, ["--target", "'y'"]),
    ("unknown target", "aa,price\n1,2\n3,4\n", {"target": "prise"}, ["'prise'", "did you mean 'price'", "--target"]),
    ("unknown drop", ROWS, {"target": "y", "drop": "z"}, ["'z'", "--drop", "'a', 'b', 'y'"]),
    ("unknown domain", ROWS, {"target": "y", "domain": "site"}, ["'site'", "--domain"]),
    ("target as domain", ROWS, {"target": "y", "domain": "y"}, ["'y'", "'domain'"]),
    ("dropped target", ROWS, {"target": "y", "drop": ["y"]}, ["'y'", "'drop'"]),
    ("empty file", "", {"target": "y"}, ["empty"]),
    ("blank file", "\n \n", {"target": "y"}, ["empty"]),
    ("header only", "a,b,y\n", {"target": "y"}, ["no rows"]),
    ("missing target", _with(8, "3,4,"), {"target": "y"}, ["line 8", "'y'", "missing"]),
    (
        "many missing targets",
        "a,y\n" + "1,\n" * 8 + "2,3.5\n3,4.5\n",
        {"target": "y"},
        ["lines 2, 3, 4, 5, 6 and 3 more", "'y'"],
    ),
    ("constant target", "a,y\n1,2.5\n2,2.5\n3,2.5\n", {"target": "y"}, ["'y'", "2.5 in every row"]),
    ("one class", "a,y\n1,no\n2,no\n3,no\n", {"target": "y"}, ["'y'", "'no'"]),
    ("lone class", CLASSES + "9,green\n", {"target": "k"}, ["line 22", "'green'", "merge"]),
    ("infinite input", _with(5, "inf,4,5"), {"target": "y"}, ["line 5", "'a'", "infinite"]),
    ("too large input", _with(5, "1,-1e39,5"), {"target": "y"}, ["line 5", "'b'", "too large"]),
    ("infinite target", _with(6, "1,4,-inf"), {"target": "y"}, ["line 6", "'y'", "infinite"]),
    ("text among numbers", _with(17, "abc,2,3"), {"target": "y"}, ["line 17", "'a'", "'abc'", "--drop a"]),
    ("text in a numeric target", _with(9, "1,2,high"), {"target": "y"}, ["line 9", "'y'", "'high'"]),
    ("line after blank lines", "\n\n" + _with(17, "abc,2,3"), {"target": "y"}, ["line 19", "'abc'"]),
    (
        "line after a quoted line break",
        't,a,y\n"x\ny",1,2\n' + "x,1,2.5\n" * 9 + "x,oh,2\n",
        {"target": "y"},
        ["line 13"],
    ),
    ("text as regression", CLASSES, {"target": "k", "task": "regression"}, ["line 2", "'k'", "'blue'"]),
    ("text among several targets", CLASSES, {"target": "a,k"}, ["'k'"]),
    ("several class columns", ROWS, {"target": "a,b", "task": "classification"}, ["one target"]),
    ("unknown task", ROWS, {"target": "y", "task": "rank"}, ["'rank'", "'auto'"]),
    ("duplicate columns", "a,b,a\n1,2,3\n4,5,6\n", {"target": "b"}, ["'a'", "rename"]),
    ("too many cells", _with(4, "1,2,3,4"), {"target": "y"}, ["line 4", "4 cells instead of 3"]),
    ("too few cells", _with(4, "1,2"), {"target": "y"}, ["line 4", "2 cells instead of 3"]),
    ("too many cells later on", "y\n1\n2\n3,4\n", {"target": "y"}, ["line 4", "2 cells instead of 1"]),
    ("short header", "a,y\n" + "1,2,3\n4,5,6\n", {"target": "y"}, ["line 2", "header"]),
    (
        "too many levels",
        "a,y\n" + "".join(f"t{i // 2},{i * 0.7}\n" for i in range(120)),
        {"target": "y"},
        ["'a'", "60 different", "--drop a"],
    ),
    ("decimal commas", "a;y\n" + "".join(f"{i},5;{i}.25\n" for i in range(9)), {"target": "y"}, ["line 2", "decimal"]),
    ("missing domain", "a,s,y\n1,u,2.5\n2,,3.5\n3,v,4.5\n", {"target": "y", "domain": "s"}, ["line 3", "'s'"]),
    ("nothing to predict from", "y\n1.5\n2.5\n3.5\n", {"target": "y"}, ["no column"]),
    ("only identifiers", "id,y\nu,1.5\nv,2.5\nw,3.5\n", {"target": "y"}, ["no column"]),
    ("image option", ROWS, {"target": "y", "resize": 8}, ["resize", "table"]),
]


@pytest.mark.parametrize(("content", "options", "said"), [c[1:] for c in TEXT], ids=[c[0] for c in TEXT])
def test_text_files(tmp_path: Path, content: str, options: dict, said: list[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        load(path, **options)
    for words in said:
        assert words in str(error.value)
    assert "bad.csv" in str(error.value) or options.get("task") == "rank"


def _write_images(root: Path, **sizes: tuple[int, int]) -> None:
    for name, (height, width) in sizes.items():
        for i in range(2):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height), (i, 2, 3)).save(folder / f"{i}.png")


def _idx(path: Path, values: np.ndarray, magic: bytes | None = None, cut: int | None = None) -> None:
    header = magic or bytes((0, 0, 8, values.ndim))
    content = header + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content[:cut]))


def _mnist(root: Path, images: dict | None = None, labels: int = 4) -> None:
    _idx(root / "train-images-idx3-ubyte.gz", np.zeros((4, 5, 5)), **(images or {}))
    _idx(root / "train-labels-idx1-ubyte.gz", np.arange(labels) % 2)


def latin1(root: Path) -> Path:
    (root / "t.csv").write_bytes(b"a,y\n1,2\nstra\xdfe,3\n")
    return root / "t.csv"


def spreadsheet(root: Path) -> Path:
    (root / "t.xlsx").write_bytes(b"PK")
    return root / "t.xlsx"


def cut_gzip(root: Path) -> Path:
    (root / "t.csv.gz").write_bytes(gzip.compress(ROWS.encode())[:60])
    return root / "t.csv.gz"


def no_parquet(root: Path) -> Path:
    (root / "t.parquet").write_bytes(b"PAR1 nothing")
    return root / "t.parquet"


def parquet_with_dates(root: Path) -> Path:
    frame = pandas.DataFrame({"t": pandas.date_range("2020-01-01", periods=5), "y": [0.1, 0.2, 0.3, 0.4, 0.5]})
    frame.to_parquet(root / "t.parquet")
    return root / "t.parquet"


def parquet_with_lists(root: Path) -> Path:
    pandas.DataFrame({"t": [[1], [2, 3], [4]], "y": [0.1, 0.2, 0.3]}).to_parquet(root / "t.parquet")
    return root / "t.parquet"


def parquet_with_infinity(root: Path) -> Path:
    pandas.DataFrame({"t": [1.0, 2.0, float("inf")], "y": [0.1, 0.2, 0.3]}).to_parquet(root / "t.parquet")
    return root / "t.parquet"


def truncated_image(root: Path) -> Path:
    _write_images(root, cat=(16, 16), dog=(16, 16))
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "5.png")
    content = (root / "dog" / "5.png").read_bytes()
    (root / "dog" / "5.png").write_bytes(content[: len(content) // 2])
    return root


def no_image(root: Path) -> Path:
    _write_images(root, cat=(8, 8), dog=(8, 8))
    (root / "cat" / "9.jpg").write_text("hello")
    return root


def sixteen_bits(root: Path) -> Path:
    _write_images(root, cat=(8, 8), dog=(8, 8))
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(root / "dog" / "9.png")
    return root


def sizes_differ(root: Path) -> Path:
    _write_images(root, cat=(8, 8), dog=(8, 9))
    return root


def empty_class(root: Path) -> Path:
    _write_images(root, cat=(8, 8), dog=(8, 8))
    (root / "empty").mkdir()
    return root


def no_images(root: Path) -> Path:
    (root / "readme.txt").write_text("nothing here")
    return root


def lone_image(root: Path) -> Path:
    _write_images(root, cat=(8, 8), dog=(8, 8))
    (root / "dog" / "1.png").unlink()
    return root


def unstated_domains(root: Path) -> Path:
    _write_images(root, **{"art/cat": (8, 8), "art/dog": (8, 8), "photo/cat": (8, 8)})
    return root


def unknown_class(root: Path) -> Path:
    _write_images(root, **{"train/cat": (8, 8), "train/dog": (8, 8), "test/cow": (8, 8)})
    return root


def uneven_depth(root: Path) -> Path:
    _write_images(root, **{"cat": (8, 8), "dog/brown": (8, 8)})
    return root


def idx_magic(root: Path) -> Path:
    _mnist(root, images={"magic": b"\x89PNG"})
    return root


def idx_short(root: Path) -> Path:
    _mnist(root, images={"cut": 60})
    return root


def idx_counts(root: Path) -> Path:
    _mnist(root, labels=6)
    return root


def idx_alone(root: Path) -> Path:
    _mnist(root)
    (root / "train-labels-idx1-ubyte.gz").unlink()
    return root


def idx_cut_gzip(root: Path) -> Path:
    _mnist(root)
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return root


def cifar_pickled(root: Path) -> Path:
    (root / "data_batch_1").write_bytes(b"\x80\x02")
    return root


def cifar_short(root: Path) -> Path:
    (root / "data_batch_1.bin").write_bytes(bytes(3000))
    return root


def cifar_no_test(root: Path) -> Path:
    (root / "data_batch_1.bin").write_bytes(bytes(3073))
    return root


def tar_cut(root: Path) -> Path:
    with tarfile.open(root / "train.tar.gz", "w:gz") as archive:
        for name in ("train/a/0.png", "train/b/0.png"):
            content = np.random.default_rng(1).bytes(4000)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = root / "train.tar.gz"
    path.write_bytes(path.read_bytes()[:3000])
    return root


FILES = [
    (latin1, {"target": "y"}, ["t.csv", "line 3", "UTF-8"]),
    (spreadsheet, {"target": "y"}, ["t.xlsx", "CSV or Parquet"]),
    (cut_gzip, {"target": "y"}, ["t.csv.gz", "cannot be read"]),
    (no_parquet, {"target": "y"}, ["t.parquet", "cannot be read as Parquet"]),
    (parquet_with_dates, {"target": "y"}, ["'t'", "dates", "--drop t"]),
    (parquet_with_lists, {"target": "y"}, ["'t'", "row 1", "several values"]),
    (parquet_with_infinity, {"target": "y"}, ["row 3", "'t'", "infinite"]),
    (truncated_image, {}, ["dog/5.png", "cannot be decoded", "truncated"]),
    (no_image, {}, ["cat/9.jpg", "no known image format"]),
    (sixteen_bits, {}, ["dog/9.png", "8 bits"]),
    (sizes_differ, {}, ["dog/0.png", "8 x 9", "8 x 8", "resize"]),
    (empty_class, {}, ["empty", "no images"]),
    (no_images, {}, ["no images found", "FOLDER/CLASS/FILE"]),
    (lone_image, {}, ["'dog'", "1 sample"]),
    (unstated_domains, {}, ["'art'", "--domain folder"]),
    (sizes_differ, {"domain": "folder"}, ["DOMAIN/CLASS/FILE"]),
    (sizes_differ, {"domain": "site"}, ["'folder'", "'site'"]),
    (sizes_differ, {"target": "y", "drop": "z"}, ["target, drop", "images"]),
    (sizes_differ, {"resize": 0}, ["resize", "0"]),
    (unknown_class, {}, ["'cow'", "'test'", "'train'"]),
    (uneven_depth, {}, ["brown", "depth"]),
    (idx_magic, {}, ["train-images", "89 50 4e 47", "00 00 08 03"]),
    (idx_short, {}, ["train-images", "60 bytes", "116"]),
    (idx_counts, {}, ["4 images", "6 labels"]),
    (idx_alone, {}, ["train-images-idx3-ubyte.gz", "partner"]),
    (idx_cut_gzip, {}, ["train-images", "cannot be read"]),
    (cifar_pickled, {}, ["pickled", "binary version"]),
    (cifar_short, {}, ["data_batch_1.bin", "3000 bytes", "3073"]),
    (cifar_no_test, {}, ["test_batch.bin", "missing"]),
    (tar_cut, {}, ["train.tar.gz", "cannot be read"]),
]


@pytest.mark.parametrize(("make", "options", "said"), FILES, ids=[f"{m.__name__}-{'-'.join(o)}" for m, o, _ in FILES])
def test_files_and_folders(tmp_path: Path, make, options: dict, said: list[str]) -> None:
    with pytest.raises(DataError) as error:
        load(make(tmp_path), **options)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("airfol", {}, ["did you mean 'airfoil'", "two-moons"]),
        ("no/such/file.csv", {"target": "y"}, ["no/such/file.csv"]),
        ("airfoil", {"target": "y"}, ["target", "built-in"]),
        ("idx:pyproject.toml", {}, ["pyproject.toml"]),
    ],
)
def test_specifications(spec: str, options: dict, said: list[str]) -> None:
    with pytest.raises(DataError) as error:
        load(spec, **options)
    for words in said:
        assert words in str(error.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "houses.csv").write_text(ROWS)
    with pytest.raises(DataError, match=r"did you mean '.*houses\.csv'"):
        load(tmp_path / "house.csv", target="y")


def test_source_refuses_parts_that_do_not_fit() -> None:
    from omnimix import Regression
    from omnimix.data import Source

    with pytest.raises(DataError, match="y has 3 rows, x has 2"):
        Source("s", torch.zeros(2, 1), torch.zeros(3), Regression(1), "table")
