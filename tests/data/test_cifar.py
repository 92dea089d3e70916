import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnimix.data import load

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 0, 1, 0, 1], dtype=np.uint8)


def _pack(path: Path, rows: range, prefix: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for row in rows:
            stream = io.BytesIO()
            Image.fromarray(PIXELS[row].transpose(1, 2, 0)).save(stream, "PNG")
            member = tarfile.TarInfo(f"{prefix}{'plane' if LABELS[row] == 0 else 'ship'}/{row}.png")
            member.size = stream.tell()
            archive.addfile(member, io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("prefix", ["{}/", ""])
def test_tar_files_of_images(tmp_path: Path, prefix: str) -> None:
    _pack(tmp_path / "train.tar.gz", range(5), prefix.format("train"))
    _pack(tmp_path / "test.tar.gz", range(5, 8), prefix.format("test"))
    source = load(tmp_path)
    assert source.class_names == ("plane", "ship")
    assert source.official is not None
    train = source.official["train"]
    assert torch.equal(source.x[train], torch.from_numpy(PIXELS[[0, 3, 4, 1, 2]]))
    assert source.y[train].tolist() == [0, 0, 0, 1, 1]
    assert source.y[source.official["test"]].tolist() == [0, 1, 1]


@pytest.mark.parametrize("coarse", [0, 1])
def test_the_binary_version(tmp_path: Path, coarse: int) -> None:
    records = np.concatenate([RNG.integers(0, 20, (8, coarse)), LABELS[:, None], PIXELS.reshape(8, -1)], axis=1)
    names = ("train.bin",) if coarse else ("data_batch_1.bin", "data_batch_2.bin")
    for name, rows in zip(names, np.array_split(records[:5], len(names)), strict=True):
        (tmp_path / name).write_bytes(rows.astype(np.uint8).tobytes())
    (tmp_path / ("test.bin" if coarse else "test_batch.bin")).write_bytes(records[5:].astype(np.uint8).tobytes())
    (tmp_path / ("fine_label_names.txt" if coarse else "batches.meta.txt")).write_text("plane\nship\n\n")
    source = load(tmp_path)
    assert torch.equal(source.x, torch.from_numpy(PIXELS))
    assert source.y.tolist() == LABELS.tolist()
    assert source.class_names == ("plane", "ship")
    assert source.official is not None
    assert source.official["train"].tolist() == [0, 1, 2, 3, 4]
    assert source.official["test"].tolist() == [5, 6, 7]


def test_split_folders_may_be_named_cifar(tmp_path: Path) -> None:
    for split, label, row in (("train", "a", 0), ("train", "b", 1), ("test", "a", 2), ("test", "b", 3)):
        (tmp_path / split / label).mkdir(parents=True)
        Image.fromarray(PIXELS[row].transpose(1, 2, 0)).save(tmp_path / split / label / "0.png")
    source = load(f"cifar:{tmp_path}")
    assert source.official is not None
    assert torch.equal(source.x[source.official["train"]], torch.from_numpy(PIXELS[:2]))


def test_real_cifar10_images(real_data, tmp_path: Path) -> None:
    for name in ("train.tar.gz", "test.tar.gz"):
        (tmp_path / name).symlink_to(real_data("cifar10/test.tar.gz").resolve())
    source = load(tmp_path)
    assert source.x.shape == (20000, 3, 32, 32)
    assert source.official is not None
    assert torch.bincount(source.y[source.official["test"]]).tolist() == [1000] * 10
    scaler = source.scaler(source.official["train"])
    assert scaler.shift.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-3)
