"""Examples run as scripts, and what they train learns."""

import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {
    "plain_loop": None,
    "collate": None,
    "torchvision_transforms": "torchvision",
    "timm_mixup": "timm",
    "sklearn_grid_search": "pydantic",
}


@pytest.mark.parametrize("name", NEEDS)
def test_it_runs_and_learns(name, tmp_path, monkeypatch, capsys):
    if NEEDS[name]:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*fork.*")  # processes that the loader starts
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    scores = [float(score) for score in re.findall(r"accuracy\D* (0\.\d+|1\.0+)", shown)]
    assert scores, shown
    assert min(scores) > 0.8, shown
    assert not list(tmp_path.iterdir())
