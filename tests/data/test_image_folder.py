import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from omnimix.data import ImageFiles, Source, load


def _fill(root: Path, folders: list[str], count: int = 3, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> dict:
    """Random images; their pixels (C, H, W) by file."""
    rng, pixels = np.random.default_rng(0), {}
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            values = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(values).save(root / folder / f"{i}.png")
            pixels[f"{folder}/{i}"] = values[None] if mode == "L" else values.transpose(2, 0, 1)
    return pixels


def _same(source: Source, pixels: dict) -> bool:
    """Whether the images lie in the order of their paths, with the right pixels."""
    wanted = np.stack([pixels[key] for key in sorted(pixels)])
    return np.array_equal(source.take(torch.arange(len(source))).numpy(), (wanted / np.float32(255)))


def test_class_folders(tmp_path: Path) -> None:
    pixels = _fill(tmp_path, ["dog", "cat"])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "dog" / ".hidden.png").write_text("x")
    source = load(tmp_path)
    assert _same(source, pixels)
    assert source.input_shape == (3, 6, 4)
    assert source.class_names == ("cat", "dog")
    assert source.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.official is None
    assert source.kind == "image"
    assert any("1 files" in note for note in source.notes)


def test_grey_images_have_one_channel_unless_one_is_in_colour(tmp_path: Path) -> None:
    pixels = _fill(tmp_path / "grey", ["a", "b"], mode="L")
    grey = load(tmp_path / "grey")
    assert grey.input_shape == (1, 6, 4)
    assert _same(grey, pixels)
    _fill(tmp_path / "grey", ["c"])
    assert load(tmp_path / "grey").input_shape == (3, 6, 4)


def test_split_folders_are_the_official_rows(tmp_path: Path) -> None:
    _fill(tmp_path, ["train/a", "train/b", "val/a", "test/b"])
    source = load(tmp_path)
    assert source.official is not None
    assert set(source.official) == {"train", "valid", "test"}
    assert source.y[source.official["test"]].tolist() == [1, 1, 1]
    assert source.y[source.official["train"]].tolist() == [0, 0, 0, 1, 1, 1]
    rows = torch.cat(list(source.official.values()))
    assert sorted(rows.tolist()) == list(range(12))


def test_domain_folders(tmp_path: Path) -> None:
    _fill(tmp_path, ["sketch/a", "sketch/b", "photo/a"])
    source = load(tmp_path, domain="folder")
    assert source.domain_names == ("photo", "sketch")
    assert source.domain is not None
    assert source.domain.tolist() == [0] * 3 + [1] * 6
    assert source.y.tolist() == [0] * 6 + [1] * 3


def test_a_tar_file_is_the_folder_it_was_made_of(tmp_path: Path) -> None:
    _fill(tmp_path / "set", ["p/a", "p/b", "q/a-b", "q/a"])
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", arcname="set")
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        archive.add(tmp_path / "set", arcname=".")
    folder = load(tmp_path / "set", domain="folder")
    for name in ("set.tar.gz", "flat.tar"):
        packed = load(tmp_path / name, domain="folder")
        assert packed.digest == folder.digest
        assert packed.class_names == folder.class_names


def test_images_over_the_memory_cap_stay_on_disk(tmp_path: Path) -> None:
    _fill(tmp_path, ["a", "b"], count=20)
    eager, lazy = load(tmp_path), load(tmp_path, memory=1000)
    assert isinstance(lazy.x, ImageFiles)
    assert lazy.x.shape == eager.x.shape
    assert lazy.input_shape == (3, 6, 4)
    rows = torch.tensor([7, 0, 39, 7])
    assert torch.equal(lazy.take(rows), eager.take(rows))
    assert lazy.take(rows[:0]).shape == (0, 3, 6, 4)
    assert any("stay on disk" in note for note in lazy.notes)
    assert torch.allclose(lazy.scaler(rows).shift, eager.take(rows).mean(dim=(0, 2, 3)))
    before = lazy.digest
    assert load(tmp_path, memory=1000).digest == before
    assert load(tmp_path, memory=1000, resize=5).digest != before
    Image.new("RGB", (4, 6)).save(tmp_path / "a" / "3.png")
    assert load(tmp_path, memory=1000).digest != before


def test_resize_brings_all_to_one_size(tmp_path: Path) -> None:
    _fill(tmp_path, ["a"], size=(6, 4))
    _fill(tmp_path, ["b"], size=(9, 12))
    assert load(tmp_path, resize=8).input_shape == (3, 8, 8)
    assert load(tmp_path, resize=(5, 7)).input_shape == (3, 5, 7)
    Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / "a" / "0.png")
    assert (load(tmp_path, resize=8).x[0].flatten(1) == torch.tensor([[10], [200], [30]])).all()


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    _fill(tmp_path, ["a", "b"])
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_pacs_has_four_domains(real_data) -> None:
    source = load(real_data("pacs64/pacs64.tar"), domain="folder")
    assert len(source) == 9991
    assert source.domain_names == ("art_painting", "cartoon", "photo", "sketch")
    assert len(source.class_names) == 7
