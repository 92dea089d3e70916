import numpy as np
import pytest
import torch
from scipy.io import savemat

from omnimix.data import DataError, load


def fill(root, names=("amazon", "Caltech10_SURF_L10"), **changes):
    rng = np.random.default_rng(0)
    for name in names:
        fts = rng.integers(0, 9, (20, 6)).astype(np.uint8)
        fts[:, 0] += 1
        content = {"fts": fts, "labels": np.arange(20)[:, None] % 10 + 1}
        savemat(root / f"{name}.mat", {**content, **changes})
    return root


def test_a_file_is_a_domain_of_histograms_that_sum_to_one(tmp_path):
    source = load(f"office-caltech:{fill(tmp_path)}")
    assert sorted(source.domain_names) == ["amazon", "caltech10"]
    assert source.kind == "table"
    assert source.input_shape == (6,)
    assert torch.allclose(source.x.sum(1), torch.ones(40))
    assert source.class_names[source.y[1]] == "bike"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"labels": np.full((20, 1), 11)}, ["row 1", "label is 11", "1 to 10"]),
        ({"fts": np.zeros((20, 6))}, ["row 1", "all are 0", "remove"]),
        ({"fts": -np.ones((20, 6))}, ["row 1", "negative"]),
        ({"fts": np.ones((3, 6))}, ["(3, 6)", "20 labels"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(tmp_path, spoil, said):
    fill(tmp_path, **spoil)
    with pytest.raises(DataError) as error:
        load(f"office-caltech:{tmp_path}")
    assert [part for part in (".mat", *said) if part not in str(error.value)] == []


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"0 \.mat files"):
        load(f"office-caltech:{tmp_path}")
    fill(tmp_path)
    (tmp_path / "amazon.mat").write_bytes(b"nothing" * 99)
    with pytest.raises(DataError, match=r"amazon.mat cannot be read"):
        load(f"office-caltech:{tmp_path}")
    savemat(tmp_path / "amazon.mat", {"x": 1})
    with pytest.raises(DataError, match=r"amazon.mat has no 'fts', only x"):
        load(f"office-caltech:{tmp_path}")
    savemat(tmp_path / "amazon.mat", {"fts": np.ones((20, 5)), "labels": np.arange(20)[:, None] % 10 + 1})
    with pytest.raises(DataError, match=r"6 features.*5|5 features.*6"):
        load(f"office-caltech:{tmp_path}")


def test_office_caltech_itself(real_data):
    source = load(f"office-caltech:{real_data('office-caltech-surf')}")
    assert len(source) == 2533
    assert source.input_shape == (800,)
    assert dict(zip(source.domain_names, torch.bincount(source.domain).tolist(), strict=True)) == {
        "amazon": 958, "caltech10": 1123, "dslr": 157, "webcam": 295,
    }  # fmt: skip
