"""Malformed files, arguments and configurations are refused with a message that says what is wrong and what to do."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omnimix.cli import compare, console, methods  # noqa: F401  (the verbs add themselves)

NUMBERS = [f"{i},{i % 7 + 0.5},{'ab'[i % 2]},{i * 0.37 + 0.1}" for i in range(1, 41)]


def _csv(*changes: tuple[int, str], head: str = "size,width,kind,price") -> str:
    """A good table with some lines (2, 3, ...: as in an editor) replaced."""
    lines = [head, *NUMBERS]
    for line, text in changes:
        lines[line - 1] = text
    return "\n".join(lines) + "\n"


TEXT_FILES = {
    "good.csv": _csv(),
    "blank.csv": "",
    "header.csv": "size,width,kind,price\n",
    "nan.csv": _csv((7, "1,2.5,a,")),
    "nan_word.csv": _csv((7, "1,2.5,a,nan")),
    "constant.csv": "a,y\n" + "".join(f"{i},4\n" for i in range(30)),
    "word.csv": _csv((9, "1,2.5,a,cheap")),
    "doubled.csv": _csv(head="size,size,kind,price"),
    "ragged.csv": _csv((5, "1,2.5,a,3,4,5")),
    "infinite.csv": _csv((6, "inf,2.5,a,3")),
    "one_class.csv": "a,y\n" + "".join(f"{i * i},yes\n" for i in range(30)),
    "lone.csv": "a,y\n" + "".join(f"{i * i},{'c' + str(i)}\n" for i in range(30)),
    "short.csv": "a,y\n1,2.5\n5,3.5\n2,4.5\n9,5.5\n",
    "commas.csv": "a;y\n" + "".join(f"{i},5;{i}.25\n" for i in range(30)),
    "prose.csv": "Dear reader\nthis is no table at all\n",
    "classes.csv": "a,b,y\n" + "".join(f"{i * i % 17},{i % 5},{'yes' if i % 3 else 'no'}\n" for i in range(60)),
    "sites.csv": "a,site,y\n" + "".join(f"{i * i % 17},{'uv'[i % 2] if i != 4 else ''},{i * 0.3}\n" for i in range(60)),
    "table.xlsx": "PK",
    "table.pickle": "x",
    "weights.json": "{}",
}


def _images(root: Path, **sizes: int) -> None:
    from PIL import Image

    for name, side in sizes.items():
        for i in range(12):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (20 * i, 2, 3)).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pandas

    root = tmp_path_factory.mktemp("bad")
    for name, text in TEXT_FILES.items():
        (root / name).write_text(text)
    (root / "latin.csv").write_bytes(_csv((4, "1,2,straße,3")).encode("latin-1"))
    (root / "utf16.csv").write_bytes(_csv().encode("utf-16"))
    (root / "binary.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(3000))
    (root / "zeros.csv").write_bytes(bytes(3000))
    (root / "cut.csv.gz").write_bytes(gzip.compress(_csv().encode())[:90])
    pandas.read_csv(root / "good.csv").to_parquet(root / "good.parquet")
    (root / "cut.parquet").write_bytes((root / "good.parquet").read_bytes()[:-200])
    (root / "empty").mkdir()
    _images(root / "images", cat=8, dog=8)
    _images(root / "sizes", cat=8, dog=9)
    _images(root / "broken", cat=8, dog=8)
    content = (root / "broken" / "dog" / "5.png").read_bytes()
    (root / "broken" / "dog" / "5.png").write_bytes(content[: len(content) // 2])
    _images(root / "one", cat=8)
    _images(root / "hole", cat=8, dog=8)
    (root / "hole" / "cow").mkdir()
    _images(root / "deep", **{"cat": 8, "dog/brown": 8})
    (root / "file").write_text("")
    (root / "text").mkdir()
    (root / "text" / "store.db").write_text("not a database " * 100)
    return root


PRICE = ["--data", "good.csv", "--target", "price"]
AIRFOIL = ["--data", "airfoil"]
IMAGES = ["--data", "images"]


def _with(data: str, target: str = "price", *more: str) -> list[str]:
    return ["--data", data, "--target", target, *more]


CASES: list[tuple[list[str], list[str]]] = [
    # files
    (_with("missing.csv"), ["'missing.csv' is neither a file or folder nor a built-in data set"]),
    (_with("god.csv"), ["'god.csv'", "did you mean 'good.csv'"]),
    (["--data", "airfol"], ["'airfol'", "did you mean 'airfoil'?"]),
    (["--data", ""], ["data must have at least 1 character"]),
    (_with("blank.csv"), ["blank.csv: the file is empty"]),
    (_with("header.csv"), ["header.csv: there is a header, but no rows"]),
    (_with("nan.csv"), ["nan.csv, line 7: the target 'price' is missing"]),
    (_with("nan_word.csv"), ["nan_word.csv, line 7: the target 'price' is missing"]),
    (_with("constant.csv", "y", "--task", "regression"), ["the target 'y' is 4 in every row"]),
    (_with("constant.csv", "y"), ["target 'y': all samples are of class '4'"]),
    (_with("word.csv"), ["word.csv, line 9, column 'price': 'cheap' is no number"]),
    (_with("doubled.csv"), ["doubled.csv: several columns are named 'size'"]),
    (_with("ragged.csv"), ["ragged.csv, line 5: 6 cells instead of 4"]),
    (_with("infinite.csv"), ["infinite.csv, line 6, column 'size': 'inf' is infinite"]),
    (_with("one_class.csv", "y"), ["target 'y': all samples are of class 'yes'"]),
    (_with("lone.csv", "y"), ["the target 'y' is", "in one row each", "--task"]),
    (_with("short.csv", "y", "--task", "regression"), ["4 rows are too few", "10 or more"]),
    (_with("commas.csv", "y"), ["commas.csv, line 2, column 'a'", "decimal comma"]),
    (_with("prose.csv", "price"), ["prose.csv", "there is no column 'price' (--target)", "'Dear reader'"]),
    (_with("table.xlsx"), ["table.xlsx: files of type '.xlsx' are not read; save it as CSV or Parquet"]),
    (_with("table.pickle"), ["'.pickle'", "CSV or Parquet"]),
    (_with("latin.csv"), ["latin.csv, line 4: not UTF-8 text; save the file as UTF-8"]),
    (_with("utf16.csv"), ["utf16.csv", "not UTF-8 text"]),
    (_with("binary.csv"), ["binary.csv", "not UTF-8 text"]),
    (_with("zeros.csv"), ["zeros.csv is no text", "save the table as UTF-8"]),
    (_with("cut.csv.gz"), ["cut.csv.gz cannot be read"]),
    (_with("cut.parquet"), ["cut.parquet cannot be read as Parquet"]),
    (["--data", "empty"], ["empty: no images found in class folders; expected FOLDER/CLASS/FILE"]),
    (["--data", "sizes"], ["sizes/dog/0.png has 9 x 9 pixels", "8 x 8"]),
    (["--data", "broken"], ["broken/dog/5.png cannot be decoded"]),
    (["--data", "one"], ["one: all samples are of class 'cat'"]),
    (["--data", "hole"], ["hole/cow: this folder has no images"]),
    (["--data", "deep"], ["unexpected depth", "CLASS/FILE"]),
    (["--data", "idx:images"], ["images"]),
    (["--data", "table:images", "--target", "y"], ["table:images: a table is a file, this is a folder"]),
    # columns and tasks
    (["--data", "good.csv"], ["say which column to predict (--target NAME); columns: 'size', 'width'"]),
    (_with("good.csv", "prize"), ["there is no column 'prize' (--target); did you mean 'price'"]),
    (_with("good.csv", ""), ["--target"]),
    ([*PRICE, "--drop", "widht"], ["there is no column 'widht' (--drop); did you mean 'width'?"]),
    ([*PRICE, "--drop", "price"], ["'price' is the target or the domain and cannot be 'drop' too"]),
    ([*PRICE, "--drop", "size,width,kind"], ["no column is left to predict from"]),
    ([*PRICE, "--domain", "side"], ["there is no column 'side' (--domain); did you mean 'size'"]),
    ([*PRICE, "--domain", "price"], ["'price' is the target or the domain"]),
    (_with("sites.csv", "y", "--domain", "site"), ["sites.csv, line 6: the domain 'site' is missing"]),
    ([*PRICE, "--task", "ranking"], ["task must be one of", "'classification'", "got 'ranking'"]),
    (_with("good.csv", "kind", "--task", "regression"), ["column 'kind': 'b' is no number"]),
    ([*PRICE, "--task", "classification"], ["'price'", "in one row each", "--task regression"]),
    ([*AIRFOIL, "--target", "x"], ["target has no meaning for built-in data"]),
    ([*IMAGES, "--target", "x"], ["target has no meaning for images data"]),
    ([*IMAGES, "--domain", "site"], ["domain must be 'folder'", "got 'site'"]),
    # methods
    ([*PRICE, "--methods", "erm,mixpu"], ["there is no method 'mixpu'; did you mean 'mixup'"]),
    ([*PRICE, "--methods", ","], ["methods must name at least one method"]),
    ([*PRICE, "--methods", "mixup:alpa=2"], ["mixup has no parameter 'alpa'; did you mean 'alpha'?"]),
    ([*PRICE, "--methods", "mixup:zz=2"], ["mixup", "'zz'"]),
    ([*PRICE, "--methods", "erm,mixup:alpha=x"], ["mixup", "alpha", "'x'"]),
    ([*PRICE, "--methods", "mixup:alpha=-1"], ["mixup", "alpha must be", "-1"]),
    ([*PRICE, "--methods", "mixup:alpha=nan"], ["mixup", "alpha must be", "nan"]),
    ([*PRICE, "--methods", "c-mixup:bandwidth=0"], ["c-mixup:bandwidth=0", "bandwidth must be", "got 0"]),
    ([*PRICE, "--methods", "mixup:alpha=1+2"], ["mixup", "alpha"]),
    ([*PRICE, "--methods", "mixup:alpha"], ["there is no method 'mixup:alpha'; did you mean 'mixup'"]),
    ([*PRICE, "--methods", "mixup:alpha=1:alpha=2"], ["gives 'alpha' twice"]),
    ([*PRICE, "--methods", "mixup,mixup"], ["the method mixup is listed twice"]),
    ([*PRICE, "--methods", "mixup:alpha=1,mixup:alpha=1.0"], ["mixup:alpha=1 is listed twice"]),
    ([*PRICE, "--methods", "mixup", "--baseline", "erm"], ["baseline 'erm' is not among the methods mixup"]),
    ([*PRICE, "--methods", "cutmix"], ["cutmix", "good"]),
    ([*PRICE, "--methods", "manifold-mixup:taps=block9"], ["manifold-mixup:taps=block9", "block9", "block1"]),
    (_with("classes.csv", "y", "--methods", "c-mixup"), ["c-mixup is for regression; classes is classification"]),
    # arguments
    ([*PRICE, "--seeds", "0"], ["seeds must be a count >= 1", "'0'"]),
    ([*PRICE, "--seeds", "-1"], ["seeds must be a count >= 1", "'-1'"]),
    ([*PRICE, "--seeds", "x"], ["seeds must be a count (5) or seeds with commas (3,5,7), got 'x'"]),
    ([*PRICE, "--seeds", "1.5"], ["seeds must be", "'1.5'"]),
    ([*PRICE, "--seeds", "3,3"], ["different integers >= 0", "'3,3'"]),
    ([*PRICE, "--seeds", ""], ["seeds must be", "''"]),
    ([*PRICE, "--seeds", "1000000000000"], ["seeds = 1000000000000 are more than 100000"]),
    ([*PRICE, "--seeds", "3,-5"], ["seeds must be", "'3,-5'"]),
    ([*PRICE, "--epochs", "0"], ["epochs must be greater than or equal to 1, got 0"]),
    ([*PRICE, "--epochs", "-1"], ["epochs must be greater than or equal to 1, got -1"]),
    ([*PRICE, "--epochs", "x"], ["Invalid value for '--epochs'", "integer"]),
    ([*PRICE, "--epochs", "2.5"], ["Invalid value for '--epochs'", "integer"]),
    ([*PRICE, "--epochs", "99999999999"], ["epochs must be less than", "got 99999999999"]),
    ([*PRICE, "--batch", "99999999999"], ["batch must be less than", "got 99999999999"]),
    ([*PRICE, "--tune", "-1"], ["tune must be", "got -1"]),
    ([*PRICE, "--tune", "99999999"], ["tune must be less than or equal to 10000"]),
    ([*PRICE, "--selection", "oracle"], ["selects by validation, last", "more rules: --protocol domains"]),
    ([*PRICE, "--engine", "foo"], ["engine must be one of 'local', 'ray', got 'foo'"]),
    ([*PRICE, "--log", "foo:bar"], ["a logger is tensorboard:FOLDER", "got 'foo:bar'"]),
    ([*PRICE, "--evaluations", "100", "--equal-compute"], ["evaluations = 100 decides", "leave out equal_compute"]),
    ([*PRICE, "--protocol", "domains"], ["which column holds them (--domain)"]),
    ([*PRICE, "--batch", "0"], ["batch must be greater than or equal to 1, got 0"]),
    ([*AIRFOIL, "--protocol", "c-mixup", "--batch", "5000"], ["batch = 5000 is more than the 1003 training rows"]),
    ([*PRICE, "--lr", "nan"], ["lr must be greater than 0, got nan"]),
    ([*PRICE, "--lr", "-1"], ["lr must be greater than 0, got -1"]),
    ([*PRICE, "--lr", "inf"], ["lr must be", "got inf"]),
    ([*PRICE, "--lr", "0"], ["lr must be greater than 0, got 0"]),
    ([*PRICE, "--label-noise", "0.2"], ["label noise replaces class labels; good is regression"]),
    (_with("classes.csv", "y", "--label-noise", "1.5"), ["label_noise must be less than or equal to 1, got 1.5"]),
    (_with("classes.csv", "y", "--label-noise", "nan"), ["label_noise must be", "got nan"]),
    (_with("classes.csv", "y", "--noise-seed", "-2"), ["noise_seed must be", "got -2"]),
    ([*PRICE, "--protocol", "cmixup"], ["there is no protocol 'cmixup'", "c-mixup"]),
    ([*PRICE, "--protocol", "c-mixup"], ["'c-mixup' is defined for", "airfoil, no2", "not for 'good'"]),
    ([*PRICE, "--net", ""], ["net must have at least 1 character"]),
    ([*PRICE, "--net", "rnn"], ["there is no network 'rnn'", "mlp"]),
    ([*PRICE, "--net", "mlp:hiden=3"], ["mlp", "hiden"]),
    ([*PRICE, "--net", "mlp:hidden=0"], ["hidden", "0"]),
    ([*PRICE, "--net", "mlp:activation=swoosh"], ["activation", "swoosh", "relu"]),
    ([*PRICE, "--net", "small-cnn"], ["small-cnn"]),
    ([*PRICE, "--jobs", "0"], ["jobs must be", "1", "got 0"]),
    ([*PRICE, "--jobs", "-2"], ["jobs must be", "got -2"]),
    ([*PRICE, "--out", "file"], ["file", "choose another --out"]),
    ([*PRICE, "--out", "text"], ["text/store.db", "left as it is"]),
    ([*PRICE, "--nonsense"], ["No such option", "--nonsense"]),
    ([], ["Missing option", "--data"]),
]


def refused(arguments: list[str]) -> str:
    """What is said; the status is 2, nothing goes to stdout, and nothing but the way out is raised."""
    done = CliRunner().invoke(console.app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return re.sub(r"[│╭╮╰╯─\s]+", " ", done.stderr)


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=[" ".join(arguments) or "nothing" for arguments, _ in CASES])
def test_compare_refuses(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("omnimix.compare.engine.local.run", lambda *_: pytest.fail("a run was started"))
    message = refused(["compare", "--json", *arguments])
    for words in said:
        assert words in message
    assert len(message) < 900


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["methods", "--task", "ranking"], ["'ranking'", "classification"]),
        (["methods", "--level", "cells"], ["'cells'", "samples"]),
        (["methods", "extra"], ["extra"]),
        (["compares"], ["compares"]),
    ],
)
def test_other_verbs_refuse(arguments, said):
    message = refused(arguments)
    for words in said:
        assert words in message


def test_a_report_that_cannot_be_written_says_so_and_keeps_the_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/report.html")

    monkeypatch.setattr("omnimix.compare.report.write", full)
    asked = [*PRICE, "--methods", "erm", "--seeds", "1", "--epochs", "1", "--jobs", "1", "--out", "full", "--json"]
    done = CliRunner().invoke(console.app, ["compare", *asked])
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert "full: the report cannot be written" in done.stderr
    assert "every result is kept in full/store.db, and the same command writes it" in done.stderr
    monkeypatch.setattr("omnimix.compare.report.write", lambda *_: None)
    monkeypatch.setattr("omnimix.compare.engine.local.run", lambda units, *_: [pytest.fail("again") for _ in units])
    done = CliRunner().invoke(console.app, ["compare", *asked])
    assert done.exit_code == 0, done.stderr
    assert [row["status"] for row in json.loads(done.stdout)["rows"]] == ["ok"]


def test_an_interrupt_that_an_import_hides_is_one(folder, monkeypatch):
    def hidden(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.chdir(folder)
    monkeypatch.setattr("omnimix.compare.run.compare", hidden)
    done = CliRunner().invoke(console.app, ["compare", *PRICE])
    assert (done.exit_code, done.stderr) == (130, "omnimix: stopped\n")


def test_an_interrupt_of_the_runs_is_told_once(folder, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    monkeypatch.setattr("omnimix.compare.run.compare", stop)
    done = CliRunner().invoke(console.app, ["compare", *PRICE])
    assert done.exit_code == 130
    assert done.stderr.count("stopped") == 1
    assert "the same command continues from there" in done.stderr
