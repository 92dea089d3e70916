"""Reading runs: joined by their index, and errors that name file, line and column."""

import numpy as np
import pytest

from omnimix.corpora.weigh.run_table import RunTable, read_sizes, short_names, write_mixtures


@pytest.fixture
def files(tmp_path):
    def make(mixtures, losses="index,loss/a\n1,2.0\n2,3.0\n"):
        (tmp_path / "m.csv").write_text(mixtures)
        (tmp_path / "l.csv").write_text(losses)
        return tmp_path / "m.csv", tmp_path / "l.csv"

    return make


def test_rows_are_joined_by_index(files):
    table = RunTable.read(*files("index,a,b\n2,0.25,0.75\n1,0.5,0.5\n"))
    assert table.domains == ("a", "b")
    assert table.runs == ("2", "1")
    assert table.weights.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert table.loss("loss/a").tolist() == [3.0, 2.0]


def test_olmix_pair_is_joined_on_run(files):
    table = RunTable.read(
        *files("run,name,index,a,b\nx,n,0,0.5,0.5\ny,n,1,1,0\n", "run,name,index,m\ny,n,9,3\nx,n,8,2\n")
    )
    assert table.runs == ("x", "y")
    assert table.losses.tolist() == [[2.0], [3.0]]


def test_rounded_sums_are_taken_as_they_are(files):
    table = RunTable.read(*files("index,a,b\n1,0.496,0.5\n2,0.503,0.5\n"))
    assert table.weights.sum(1) == pytest.approx([0.996, 1.003])


@pytest.mark.parametrize(
    ("mixtures", "losses", "message"),
    [
        ("index,a,b\n1,0.5,x\n2,1,0\n", None, r"m\.csv, line 2, column 'b': 'x' is not a finite number"),
        ("index,a,b\n1,0.5,0.5\n2,1,nan\n", None, r"m\.csv, line 3, column 'b': 'nan'"),
        ("index,a,b\n1,1.2,-0.2\n2,1,0\n", None, r"m\.csv, line 2, column 'b': a weight is never below 0"),
        ("index,a,b\n1,0.5,0.4\n2,1,0\n", None, r"m\.csv, line 2: the weights of index 1 sum to 0\.9, not to 1"),
        ("index,a,b\n0,0.5,0.5\n1,1,0\n", None, r"l\.csv has no row for index 0 .*count from the same number"),
        ("index,a,b\n1,0.5,0.5\n1,1,0\n", None, r"m\.csv, line 3: index 1 is there twice, first on line 2"),
        ("index,a,b\n1,0.5\n2,1,0\n", None, r"m\.csv, line 2: 2 cells, but the header names 3"),
        ("index,a,a\n1,0.5,0.5\n2,1,0\n", None, r"column 'a' is there twice"),
        ("step,a,b\n1,0.5,0.5\n2,1,0\n", None, "must share a column named 'run' or 'index'"),
        ("index,a,b\n", None, "no row below the header"),
        ("index,a,b\n1,0.5,0.5\n2,1,0\n", "index,l\n1,2\n2,\n", r"l\.csv, line 3, column 'l': '' is not"),
    ],
)
def test_errors_name_file_line_and_column(files, mixtures, losses, message):
    paths = files(mixtures) if losses is None else files(mixtures, losses)
    with pytest.raises(ValueError, match=message):
        RunTable.read(*paths)


def test_missing_file():
    with pytest.raises(ValueError, match=r"nowhere\.csv: there is no such file"):
        RunTable.read("nowhere.csv", "nowhere.csv")


def test_names():
    metrics = ["metric/the_pile_pile_cc_val_loss", "metric/the_pile_arxiv_val_loss", "metric/the_pile_github_val_loss"]
    assert short_names(metrics) == ["pile_cc", "arxiv", "github"]
    assert short_names(["books", "bio"]) == ["books", "bio"]
    assert short_names(["only"]) == ["only"]
    domains = ("train_github", "train_pile_cc", "train_arxiv")
    table = RunTable(domains, tuple(metrics), np.eye(3), np.eye(3), ("1", "2", "3"))
    assert table.metric("Pile-CC") == metrics[0]
    assert [table.own_domain(metric) for metric in metrics] == [1, 2, 0]
    with pytest.raises(ValueError, match=r"no target 'pile_c'; did you mean 'metric/the_pile_pile_cc_val_loss'"):
        table.metric("pile_c")
    with pytest.raises(ValueError, match="no domain is named like"):
        RunTable(("x", "y"), tuple(metrics), np.eye(2), np.ones((2, 3)), ("1", "2")).own_domain("arxiv")


def test_orders_and_parts():
    table = RunTable(("a", "b"), ("l",), np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[1.0], [2.0]]), ("1", "2"))
    assert table.ordered(("b", "a")).weights.tolist() == [[0.9, 0.1], [0.2, 0.8]]
    assert table.take([1]).runs == ("2",)
    with pytest.raises(ValueError, match=r"\['b', 'c'\] are only in one"):
        table.ordered(("a", "c"))


def test_written_mixtures_are_read_again(tmp_path):
    weights = np.array([[0.2, 0.8], [0.0002, 0.9998]])
    write_mixtures(tmp_path / "m.csv", ["a", "b"], weights)
    (tmp_path / "l.csv").write_text("index,l\n1,1\n2,2\n")
    assert np.array_equal(RunTable.read(tmp_path / "m.csv", tmp_path / "l.csv").weights, weights)


def test_sizes(tmp_path):
    (tmp_path / "s.csv").write_text("domain,tokens\nweb,1e9\ncode,5e8\n")
    assert read_sizes(tmp_path / "s.csv") == {"web": 1e9, "code": 5e8}
    (tmp_path / "s.csv").write_text("domain,tokens\nweb,1\nweb,2\n")
    with pytest.raises(ValueError, match="line 3: 'web' is there twice"):
        read_sizes(tmp_path / "s.csv")
