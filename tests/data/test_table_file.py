from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from omnimix import Classification, MultiLabel, Regression
from omnimix.data import DataError, Source, load

NAN = float("nan")


def _csv(tmp_path: Path, text: str, name: str = "t.csv", **options) -> Source:
    (tmp_path / name).write_text(text)
    return load(tmp_path / name, **options)


def test_numbers_stay_raw_and_missing_ones_stay_missing(tmp_path: Path) -> None:
    source = _csv(tmp_path, "a,b,y\n1,10,0.5\n,20,1.5\n3,?,2.5\n-4.5,NA,3.25\n", target="y")
    expected = torch.tensor([[1, 10], [NAN, 20], [3, NAN], [-4.5, NAN]])
    assert torch.equal(source.x.nan_to_num(99), expected.nan_to_num(99))
    assert source.y.tolist() == [0.5, 1.5, 2.5, 3.25]
    assert isinstance(source.task, Regression)
    assert source.task.outputs == 1
    assert source.feature_names == ("a", "b")
    assert source.target_names == ("y",)
    assert any("'a': 1 missing" in note for note in source.notes)
    assert any("'b': 2 missing" in note for note in source.notes)


def test_text_becomes_one_input_a_level_and_a_gap_is_a_level(tmp_path: Path) -> None:
    source = _csv(tmp_path, "c,y\nred, 1.5\n blue,2.5\n,3.5\nred,4.5\n", target="y")
    assert source.feature_names == ("c=blue", "c=red", "c=(missing)")
    assert source.x.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_true_and_false_are_one_input(tmp_path: Path) -> None:
    source = _csv(tmp_path, "c,d,y\nTrue,True,1.5\nFalse,,2.5\nTrue,False,3.5\n", target="y")
    assert source.x[:, 0].tolist() == [1, 0, 1]
    assert source.x[:, 1].nan_to_num(9).tolist() == [1, 9, 0]


def test_identifiers_row_numbers_and_empty_columns_are_left_out_and_said(tmp_path: Path) -> None:
    text = "id,who,void,a,y\n" + "".join(f"{i + 1},p{i},,{i * i},{i / 3}\n" for i in range(30))
    source = _csv(tmp_path, text, target="y")
    assert source.feature_names == ("a",)
    for column in ("'id'", "'who'", "'void'"):
        assert sum(column in note for note in source.notes) == 1


@pytest.mark.parametrize("column", ["id", "ID", "patient_id", "PassengerId", "row"])
def test_whole_numbers_that_identify_rows_are_left_out(tmp_path: Path, column: str) -> None:
    source = _csv(tmp_path, f"{column},grid,paid,y\n845,3,1,2.5\n101,2,7,3.5\n77,9,3,1.5\n", target="y")
    assert source.feature_names == ("grid", "paid")
    assert any(repr(column) in note for note in source.notes)


def test_repeated_or_fractional_numbers_identify_nothing(tmp_path: Path) -> None:
    source = _csv(tmp_path, "id,row,y\n5,0.5,2.5\n5,1.5,3.5\n7,0.25,1.5\n", target="y")
    assert source.feature_names == ("id", "row")


def test_a_column_that_counts_up_is_kept_but_questioned(tmp_path: Path) -> None:
    source = _csv(tmp_path, "month,y\n1,2.5\n2,3.5\n3,1.5\n", target="y")
    assert source.feature_names == ("month",)
    assert any("--drop month" in note for note in source.notes)


@pytest.mark.parametrize(
    ("cells", "task", "outputs"),
    [
        (["a", "b", "a", "b"], Classification, 2),
        (["True", "False", "True", "False"], Classification, 2),
        (["1", "3", "1", "3"], Classification, 2),
        (["1.0", "3.0", "1.0", "3.0"], Classification, 2),
        (["1.5", "3", "1.5", "3"], Regression, 1),
        ([str(i) for i in range(21)], Regression, 1),
        ([str(i % 20) for i in range(40)], Classification, 20),
    ],
)
def test_the_task_is_recognised_and_said(tmp_path: Path, cells: list[str], task: type, outputs: int) -> None:
    text = "a,y\n" + "".join(f"{i * i},{cell}\n" for i, cell in enumerate(cells))
    source = _csv(tmp_path, text, target="y")
    assert type(source.task) is task
    assert source.task.outputs == outputs
    assert sum(task.name in note for note in source.notes) == 1


def test_class_ids_follow_the_sorted_names(tmp_path: Path) -> None:
    source = _csv(tmp_path, "a,y\n4,10\n5,9\n7,10\n9,9\n", target="y")
    assert source.class_names == ("9", "10")
    assert source.y.tolist() == [1, 0, 1, 0]
    assert source.y.dtype == torch.int64


def test_whole_numbers_are_a_regression_when_told(tmp_path: Path) -> None:
    source = _csv(tmp_path, "a,y\n4,10\n5,9\n7,10\n", target="y", task="regression")
    assert isinstance(source.task, Regression)
    assert source.y.tolist() == [10, 9, 10]


def test_several_targets(tmp_path: Path) -> None:
    text = "a,u,v\n1,0,1\n2,1,1\n5,1,0\n"
    labels = _csv(tmp_path, text, target="u,v")
    assert isinstance(labels.task, MultiLabel)
    assert labels.y.tolist() == [[0, 1], [1, 1], [1, 0]]
    assert labels.target_names == ("u", "v")
    values = _csv(tmp_path, text, target=["u", "v"], task="regression")
    assert isinstance(values.task, Regression)
    assert values.task.outputs == 2


def test_a_column_named_with_a_comma_can_be_the_target(tmp_path: Path) -> None:
    source = _csv(tmp_path, 'a,"price, EUR"\n1,2.5\n5,3.5\n', target="price, EUR")
    assert source.target_names == ("price, EUR",)


def test_domains_and_dropped_columns_are_no_inputs(tmp_path: Path) -> None:
    source = _csv(tmp_path, "a,s,t,y\n1,10,u,0.5\n4,9,u,1.5\n9,10,w,2.5\n", target="y", domain="s", drop="t")
    assert source.feature_names == ("a",)
    assert source.domain_names == ("9", "10")
    assert source.domain is not None
    assert source.domain.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "a\tb\ty\n1\t2\t0.5\n3\t4\t1.5\n"),
        ("t.csv", "a;b;y\n1;2;0.5\n3;4;1.5\n"),
        ("t.dat", "a  b y\n 1 2   0.5\n3 4 1.5\n"),
        ("t.txt", "a|b|y\r\n1|2|0.5\r\n\r\n3|4|1.5\r\n"),
        ("t.csv", "\ufeffa,b,y\n1,2,0.5\n3,4,1.5"),
    ],
)
def test_separators_line_ends_and_byte_order_marks(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    source = load(tmp_path / name, target="y")
    assert source.x.tolist() == [[1, 2], [3, 4]]
    assert source.y.tolist() == [0.5, 1.5]


def test_rows_of_a_text_with_blanks_have_the_cells_of_the_first(tmp_path: Path) -> None:
    rows = [f"{i}  'q'\t\"two words\" {i * 0.7:.2f} " for i in range(9)]
    (tmp_path / "t.txt").write_text("\n".join(["a k t y", *rows]))
    assert load(str(tmp_path / "t.txt"), target="y", drop=("k", "t")).x.flatten().tolist() == list(range(9))
    (tmp_path / "t.txt").write_text("\n".join(["a k t y", *rows, "9 q 3"]))
    with pytest.raises(DataError, match=r"t\.txt, line 11: 3 cells instead of 4"):
        load(str(tmp_path / "t.txt"), target="y")


def test_a_file_without_a_header_keeps_its_first_row(tmp_path: Path) -> None:
    source = _csv(tmp_path, "1,5,0.5\n3,4,1.5\n", target="column3")
    assert source.x.tolist() == [[1, 5], [3, 4]]
    assert any("no header" in note for note in source.notes)


def test_gzip_and_parquet_give_what_csv_gives(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": [1.5, None, 3.25], "c": ["u", "v", "u"], "b": [True, False, True], "y": [1.5, 2, 7]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.astype({"c": "category", "b": "boolean"}).to_parquet(tmp_path / "u.parquet")
    sources = [load(tmp_path / name, target="y") for name in ("t.csv", "t.csv.gz", "t.parquet", "u.parquet")]
    assert len({source.digest for source in sources}) == 1
    assert len({source.feature_names for source in sources}) == 1
    assert sources[1].name == "t"


def test_the_digest_changes_with_any_cell(tmp_path: Path) -> None:
    one = _csv(tmp_path, "a,y\n1,2.5\n4,3.5\n", target="y")
    assert one.digest == _csv(tmp_path, "a,y\n1,2.50\n4,3.5\n", "u.csv", target="y").digest
    assert one.digest != _csv(tmp_path, "a,y\n1,2.5\n4,3.6\n", target="y").digest
    assert one.digest != _csv(tmp_path, "a,y\n1.5,2.5\n4,3.5\n", target="y").digest


def test_a_shipped_table_read_as_a_file_is_the_built_in_one(real_data) -> None:
    file = load(real_data("tabular/airfoil_self_noise.dat"), target="column6")
    assert file.digest == load("airfoil").digest
    assert load(real_data("tabular/no2.csv"), target="target").digest == load("no2").digest


def test_levels_may_be_capped(tmp_path: Path) -> None:
    text = "c,y\n" + "".join(f"t{i % 3},{i / 7}\n" for i in range(12))
    assert _csv(tmp_path, text, target="y", max_categories=3).x.shape == (12, 3)
    with pytest.raises(ValueError, match="max_categories"):
        _csv(tmp_path, text, target="y", max_categories=2)


def test_one_hot_rows_sum_to_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "c,y\n" + "".join(f"{rng.choice(list('uvw '))},{i / 7}\n" for i in range(40))
    assert torch.equal(_csv(tmp_path, text, target="y").x.sum(dim=1), torch.ones(40))


def test_numbers_that_differ_late_have_names_that_differ(tmp_path: Path) -> None:
    sites = ("1234567", "1234568", "0.12345678", "0.12345679", "20")
    text = "site,y\n" + "".join(f"{sites[i % 5]},{i / 3}\n" for i in range(20))
    rows = text.replace("y\n", "y,a\n", 1).splitlines()
    text = "\n".join([rows[0], *(f"{row},{i}.5" for i, row in enumerate(rows[1:]))])
    source = _csv(tmp_path, text, target="y", domain="site")
    assert source.domain_names == ("0.12345678", "0.12345679", "20", "1234567", "1234568")
    classes = _csv(tmp_path, text, target="site", task="classification")
    assert classes.class_names == source.domain_names
