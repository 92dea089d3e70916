from pathlib import Path

import pytest
from PIL import Image

from omnimix.data import DataError, load


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (200, 0, 0)).save(path)


def camelyon(root: Path) -> Path:
    """Two patches of each hospital and class."""
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number in range(20):
        center, tumor, split = number // 4, number % 2, number // 2 % 2
        lines.append(f"{number},{center:03d},{split},{number},7,{tumor},3,{center},{split}")
        place = f"patient_{center:03d}_node_{split}"
        image(root / "patches" / place / f"patch_{place}_x_{number}_y_7.png")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_hospitals_are_domains_and_two_of_them_are_held_out_officially(tmp_path):
    source = load(f"wilds:{camelyon(tmp_path)}")
    assert source.domain_names == tuple(f"hospital {n}" for n in range(5))
    assert source.class_names == ("normal", "tumour")
    of = {part: set(source.domain[rows].tolist()) for part, rows in source.official.items()}
    assert of == {"train": {0, 3, 4}, "valid": {1}, "test": {2}}
    assert len(source.official["train"]) == 6  # the other half validates within the training hospitals
    assert "6 rows" in source.notes[0]


def test_cameras(tmp_path):
    lines = ["split,location_remapped,y,filename"]
    for number, split in enumerate(("train", "train", "val", "val", "test", "test", "id_val", "id_test")):
        lines.append(f"{split},{number // 2},{number % 2},{number}.jpg")
        image(tmp_path / "train" / f"{number}.jpg")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    source = load(f"wilds:{tmp_path}", resize=4)
    assert source.domain_names == ("camera 0", "camera 1", "camera 2", "camera 3")
    assert {part: rows.tolist() for part, rows in source.official.items()} == {
        "train": [0, 1], "valid": [2, 3], "test": [4, 5],
    }  # fmt: skip
    assert source.input_shape == (3, 4, 4)


def test_regions_are_split_by_year_and_sequestered_rows_have_no_images(tmp_path):
    rows = [
        ("train", "port", "FRA", 2010), ("train", "dam", "NAM", 2012), ("train", "dam", "FRA", 2014),
        ("seq", "dam", "FRA", 2010), ("val", "port", "FRA", 2010), ("val", "dam", "FRA", 2013),
        ("val", "port", "NAM", 2016), ("test", "port", "XXX", 2016), ("test", "dam", "FRA", 2017),
    ]  # fmt: skip
    lines = ["split,category,country_code,timestamp"]
    lines += [f"{split},{label},{code},{year}-05-01T10:00:00Z" for split, label, code, year in rows]
    (tmp_path / "rgb_metadata.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "country_code_mapping.csv").write_text("alpha-3,region\nFRA,Europe\nNAM,Africa\n")
    for number, row in enumerate(rows):
        if row[0] != "seq":
            image(tmp_path / "images" / f"rgb_img_{number}.png")
    source = load(f"wilds:{tmp_path}")
    assert len(source) == 8
    assert source.domain_names == ("Africa", "Europe", "Other")
    assert {part: chosen.tolist() for part, chosen in source.official.items()} == {
        "train": [0, 1], "valid": [4], "test": [6, 7],
    }  # fmt: skip
    (tmp_path / "country_code_mapping.csv").unlink()
    with pytest.raises(DataError, match=r"country_code_mapping.csv is missing"):
        load(f"wilds:{tmp_path}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: next(root.glob("patches/*/*")).unlink(), ["metadata.csv, line", "no image"]),
        (
            lambda root: (root / "metadata.csv").write_text(
                (root / "metadata.csv").read_text().replace(",3,2,", ",3,,")
            ),
            ["line 10", "'center'", "empty"],
        ),
        (lambda root: (root / "metadata.csv").write_text("a,b\n1,2\n"), ["no metadata", "a, b", "location_remapped"]),
        (lambda root: (root / "metadata.csv").unlink(), ["no metadata", "none"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, spoil, said):
    spoil(camelyon(tmp_path))
    with pytest.raises(DataError) as error:
        load(f"wilds:{tmp_path}")
    assert [part for part in said if part not in str(error.value)] == []
