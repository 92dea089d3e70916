import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_lightning_callback(run):
    pytest.importorskip("lightning", reason="needs lightning")
    found = re.findall(r"^(\S+): accuracy ([\d.]+)$", run("lightning_callback.py"), re.MULTILINE)
    assert [name for name, _ in found] == ["erm", "manifold-mixup"]
    assert all(float(accuracy) > 0.85 for _, accuracy in found)


def test_hf_trainer(run):
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    found = re.findall(r"^(\S+): accuracy ([\d.]+)$", run("hf_trainer.py"), re.MULTILINE)
    assert [name for name, _ in found] == ["erm", "mixup", "manifold-mixup"]
    assert all(float(accuracy) > 0.8 for _, accuracy in found)


def test_loggers(run, tmp_path):
    pytest.importorskip("lightning", reason="needs lightning")
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    out = run("loggers.py", tmp_path)
    assert len(re.findall(r"^(?:erm|mixup), seed \d: accuracy 0\.\d+$", out, re.MULTILINE)) == 4
    assert len(list((tmp_path / "logs").glob("*/events.*"))) == 4
