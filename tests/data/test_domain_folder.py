import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimix.data import DataError, ImageFiles, load

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def fill(root: Path, domains=DOMAINS, classes=("dog", "horse"), count=3, side=8) -> None:
    """Images with a colour of their own."""
    value = 0
    for domain in domains:
        for label in classes:
            (root / domain / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                value += 3
                Image.new("RGB", (side, side), (value, 0, 0)).save(root / domain / label / f"{number}.png")


def lists(root: Path, domains=DOMAINS, classes=("dog", "horse"), count=3) -> None:
    """The last image of every class is for validation; endings differ from those of the files."""
    for domain in domains:
        rows = [(f"{domain}/{label}/{n}.jpg {1 + classes.index(label)}", n) for label in classes for n in range(count)]
        for word, wanted in (("train", range(count - 1)), ("crossval", [count - 1]), ("test", range(count))):
            lines = [line for line, n in rows if n in wanted]
            (root / f"{domain}_{word}_kfold.txt").write_text("\n".join(lines) + "\n")


def pack(root: Path, name: str = "images.tar") -> None:
    """The images of the folder `root` as a tar file in it, and no longer beside it."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    with tarfile.open(root / name, "w") as archive:
        for folder in folders:
            archive.add(folder, folder.name)
    for path in sorted((p for folder in folders for p in (folder, *folder.rglob("*"))), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_tar_is_read_where_it_lies_and_is_the_same_as_the_folder(tmp_path):
    fill(tmp_path)
    lists(tmp_path)
    unpacked = load(f"pacs:{tmp_path}")
    pack(tmp_path)
    before = sorted(tmp_path.iterdir())
    packed = load(f"pacs:{tmp_path}")
    assert sorted(tmp_path.iterdir()) == before
    assert packed.digest == unpacked.digest
    assert packed.domain_names == DOMAINS
    assert packed.name == "pacs"
    assert torch.bincount(packed.domain).tolist() == [6, 6, 6, 6]
    for rows in packed.official.values():
        assert torch.bincount(packed.domain[rows], minlength=4).min() > 0
    assert packed.official["valid"].tolist() == [2, 5, 8, 11, 14, 17, 20, 23]
    assert sorted(torch.cat(list(packed.official.values())).tolist()) == list(range(24))
    assert [note for note in packed.notes if "left out" in note] == []


def test_the_layout_of_domainbed_has_no_names_of_its_own_and_may_lie_in_one_more_folder(tmp_path):
    fill(tmp_path / "VLCS", ("LabelMe", "VOC2007"))
    source = load(f"domainbed:{tmp_path}", resize=4)
    assert source.domain_names == ("LabelMe", "VOC2007")
    assert source.input_shape == (3, 4, 4)
    assert source.official is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "photo").rename(root / "foto"), ["no 'photo'", "foto", "expected"]),
        (lambda root: fill(root, ("clipart",)), ["'clipart'", "no domain of it"]),
        (
            lambda root: (root / "photo" / "dog" / "1.png").unlink(),
            ["photo_train_kfold.txt, line 2", "photo/dog/1.jpg"],
        ),
        (lambda root: (root / "photo_crossval_kfold.txt").unlink(), ["photo_crossval_kfold.txt is missing"]),
        (
            lambda root: (root / "photo_train_kfold.txt").write_text("photo/dog/0.jpg 1\nphoto/dog/0.jpg 1\n"),
            ["line 2", "line 1", "one part"],
        ),
        (
            lambda root: (root / "photo_train_kfold.txt").write_text("photo/dog/0.jpg 1\nphoto/dog/1.jpg 2\n"),
            ["line 2", "'dog' is class 2"],
        ),
        (
            lambda root: (root / "photo_train_kfold.txt").write_text("photo/dog/0.jpg 1\n"),
            ["no *_kfold.txt names 'photo/dog/1'", "3 images"],
        ),
        (lambda root: (root / "photo" / "dog" / "1.png").write_bytes(b"x"), ["1.png", "cannot be decoded", "replace"]),
        (lambda root: [(root / n).write_bytes(b"") for n in ("a.tar", "b.tar")], ["several tar files", "leave one"]),
        (lambda root: pack(root) or (root / "images.tar").write_bytes(b"x" * 2000), ["images.tar", "again"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_remedy(tmp_path, spoil, said):
    fill(tmp_path)
    lists(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as error:
        load(f"pacs:{tmp_path}")
    assert [part for part in said if part not in str(error.value)] == []


def test_nothing_is_downloaded(tmp_path):
    with pytest.raises(DataError, match=r"is not there.*nothing is downloaded"):
        load(f"pacs:{tmp_path / 'pacs'}")


def test_a_cap_keeps_proportions_and_official_rows_and_follows_the_seed_of_the_data(tmp_path):
    fill(tmp_path, classes=("dog", "horse"), count=5)
    lists(tmp_path, count=5)
    whole, some = load(f"pacs:{tmp_path}"), load(f"pacs:{tmp_path}", rows=4)
    for domain in range(4):
        assert torch.bincount(some.y[some.domain == domain]).tolist() == [2, 2]
    pixel = some.x[:, 0, 0, 0].contiguous()
    rows = torch.searchsorted(whole.x[:, 0, 0, 0].contiguous(), pixel)  # colours rise with the row
    assert torch.equal(whole.y[rows], some.y)
    assert torch.equal(whole.domain[rows], some.domain)
    for part, kept in some.official.items():
        assert set(rows[kept].tolist()) == set(rows.tolist()) & set(whole.official[part].tolist())
    assert load(f"pacs:{tmp_path}", rows=4).digest == some.digest != whole.digest
    assert load(f"pacs:{tmp_path}", rows=4, data_seed=1).digest != some.digest
    assert load(f"pacs:{tmp_path}", rows=10).digest == whole.digest
    lazy = load(f"pacs:{tmp_path}", rows=4, memory=10)
    assert isinstance(lazy.x, ImageFiles)
    assert torch.equal(lazy.take(torch.arange(len(lazy))), some.take(torch.arange(len(some))))


def test_a_seed_of_the_data_needs_something_that_it_draws(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match="data_seed has no meaning"):
        load(f"pacs:{tmp_path}", data_seed=1)


def test_pacs_itself(real_data):
    source = load(f"pacs:{real_data('pacs64')}", resize=16)
    assert (len(source), source.domain_names, source.notes) == (9991, DOMAINS, ())
    assert torch.bincount(source.domain).tolist() == [2048, 2344, 1670, 3929]
    assert {part: len(rows) for part, rows in source.official.items()} == {"train": 8977, "valid": 1014}
    assert source.class_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
