import subprocess
import sys

import pytest

import omnimix as om
from omnimix.core.registry import info


def test_create_and_list():
    assert isinstance(om.create("mixup", alpha=0.2), om.Mixup)
    assert "erm" in om.methods()
    assert "c-mixup" in om.methods(task="regression")
    assert "c-mixup" not in om.methods(task="classification")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: om.create("mixpu"), "there is no method 'mixpu'; did you mean 'mixup'"),
        (lambda: om.create("mixup", beta=1), "mixup has no parameter 'beta'; it takes alpha"),
        (lambda: om.methods(task="ranking"), "task must be one of"),
        (lambda: om.register("mixup", paper="x")(lambda: None), "exists already"),
        (lambda: om.register("new", paper="x", tasks=("sorting",)), "tasks must be one of"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_example_plug_in_is_found_by_its_entry_point():
    card = info("noisy-mixup")
    assert card.package == "omnimix_noise"
    assert om.create("noisy-mixup", sigma=0.2).operation.sigma == 0.2


def test_every_card_names_paper_tasks_and_summary():
    for name in om.methods():
        card = info(name)
        assert card.paper
        assert card.tasks
        assert len(card.summary) > 20, name


def test_importing_omnimix_takes_little_more_than_torch():
    code = (
        "import time, sys; import torch, numpy; t = time.perf_counter(); import omnimix;"
        "heavy = {'sklearn', 'scipy', 'pandas', 'lightning_fabric', 'matplotlib', 'torchvision', 'pydantic', 'typer'};"
        "print(time.perf_counter() - t, sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, heavy = out.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 2.0
