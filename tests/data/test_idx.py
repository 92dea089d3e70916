import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from omnimix.data import load


def _write(path: Path, values: np.ndarray) -> None:
    content = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    "pattern", ["{}-idx{}-ubyte.gz", "{}-idx{}-ubyte", "{}.idx{}-ubyte", "letters-{}-idx{}-ubyte.gz"]
)
def test_pairs_are_read_and_t10k_is_the_test_split(tmp_path: Path, pattern: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 5, 7), dtype=np.uint8)
    labels = np.array([1, 3, 1, 3, 9, 9, 1, 3, 9, 1], dtype=np.uint8)
    for name, rows in (("train", slice(0, 6)), ("t10k", slice(6, 10))):
        _write(tmp_path / pattern.format(f"{name}-images", 3), images[rows])
        _write(tmp_path / pattern.format(f"{name}-labels", 1), labels[rows])
    source = load(tmp_path)
    assert torch.equal(source.take(torch.arange(10)), torch.from_numpy(images[:, None]).float() / 255)
    assert source.class_names == ("1", "3", "9")
    assert source.y.tolist() == [0, 1, 0, 1, 2, 2, 0, 1, 2, 0]
    assert source.official is not None
    assert source.official["train"].tolist() == [0, 1, 2, 3, 4, 5]
    assert source.official["test"].tolist() == [6, 7, 8, 9]


def test_one_pair_has_no_official_split(tmp_path: Path) -> None:
    _write(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 5, 5), dtype=np.uint8))
    _write(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 0, 1], dtype=np.uint8))
    assert load(f"idx:{tmp_path}").official is None


def test_mnist(real_data) -> None:
    source = load(real_data("mnist"))
    assert source.x.shape == (70000, 1, 28, 28)
    assert torch.bincount(source.y).tolist() == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    assert source.official is not None
    mean = source.scaler(source.official["train"]).shift
    assert mean.tolist() == pytest.approx([0.1307], abs=1e-4)
