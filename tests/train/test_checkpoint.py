import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.pairing import InTable
from omnimix.core.random import integers
from omnimix.data.two_view import TwoView, one_view
from omnimix.train import Budget, CheckpointError, Data, Part, TrainingError, fit
from omnimix.train import checkpoint as files

TASK = om.Regression(1)


def data(rows=45):
    x = torch.randn(rows + 20, 3, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] * x[:, 1:2]
    return Data(Part(x[:rows], y[:rows]), Part(x[rows:], y[rows:]), None, TASK)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.1), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))


class Partner(InTable):
    def draw(self, index, generator):
        return integers(45, len(index), 1, generator=generator)


METHODS = {
    "mixup": lambda: om.create("mixup", alpha=0.4),
    "hidden": lambda: om.Mix(places=("input", "0", "1")),
    "table": lambda: om.Mix(Partner(), places=("1",)),
    "alternate": lambda: om.Alternate([om.Mix(Partner()), om.ERM(), om.create("mixup")]),
    "choose": lambda: om.Choose([om.Mix(Partner()), om.ERM()]),
    "until": lambda: om.Until(om.create("mixup"), om.ERM(), 0.5),
}


class Killed(Exception):
    pass


def killer(epoch):
    def progress(done, total, row):
        if done == epoch:
            raise Killed

    return progress


def outcome(method, budget, model=None, **options):
    model = net() if model is None else model
    done = fit(METHODS[method](), model, data(), budget, seed=2, **options)
    return done.history, done.best_epoch, {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a[:2] == b[:2] and all(torch.equal(x, y) for x, y in zip(a[2].values(), b[2].values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_for_bit_an_undisturbed_one(method, tmp_path):
    budget = Budget(6, 8, 0.05, schedule="cosine", drop_last=False)
    expected, path = outcome(method, budget), tmp_path / "run" / "state.safetensors"
    for epoch in (1, 4):
        with pytest.raises(Killed):
            outcome(method, budget, checkpoint=path, checkpoint_every=0, progress=killer(epoch))
    told = []
    found = outcome(method, budget, checkpoint=path, checkpoint_every=0, progress=lambda *a: told.append(a[0]))
    assert told == [5, 6]
    assert same(found, expected)
    assert same(outcome(method, budget, checkpoint=path, progress=killer(6)), expected)  # finished: nothing left to do
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "sgd"}, {"optimizer": "adamw", "select": "last"}, {"metric": "r2", "precision": "bf16-mixed"}],
)
def test_resuming_holds_for_all_optimisers_and_selections(settings, tmp_path):
    budget = Budget(5, 8, 0.05, weight_decay=0.01, **settings)
    with pytest.raises(Killed):
        outcome("mixup", budget, checkpoint=tmp_path / "a", checkpoint_every=0, progress=killer(3))
    assert same(outcome("mixup", budget, checkpoint=tmp_path / "a"), outcome("mixup", budget))


def test_what_the_inputs_draw_goes_on_too(tmp_path):
    y, budget = torch.arange(40) % 4, Budget(5, 8, 0.05)
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))

    def train(**more):
        views = TwoView(x, y, 4, torch.Generator().manual_seed(5))
        model = nn.Linear(6, 4)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        given = Data(Part(views, y), Part(one_view(x), y), None, om.Classification(4))
        fit(om.create("mixup"), model, given, budget, seed=1, **more)
        return model.weight

    with pytest.raises(Killed):
        train(checkpoint=tmp_path / "a", checkpoint_every=0, progress=killer(2))
    assert torch.equal(train(checkpoint=tmp_path / "a"), train())


def test_the_time_spent_before_counts(tmp_path):
    budget = Budget(3, 8, 0.05)
    with pytest.raises(Killed):
        outcome("mixup", budget, checkpoint=tmp_path / "a", checkpoint_every=0, progress=killer(2))
    before = files.load(tmp_path / "a")
    done = fit(METHODS["mixup"](), net(), data(), budget, seed=2, checkpoint=tmp_path / "a")
    assert done.seconds > before["seconds"] > 0
    assert len(before["step_seconds"]) == 2


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_checkpoint import Budget, outcome
def progress(done, total, row):
    print(done, flush=True)
    time.sleep(0.2)
outcome("table", Budget(8, 8, 0.05), checkpoint=Path(sys.argv[2]), checkpoint_every=0, progress=progress)
"""


def test_a_killed_process_loses_nothing(tmp_path):
    path = tmp_path / "state.safetensors"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                time.sleep(0.1)
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert len(files.load(path)["history"]) >= 3
    assert same(outcome("table", Budget(8, 8, 0.05), checkpoint=path), outcome("table", Budget(8, 8, 0.05)))


def test_another_configuration_is_refused_and_named(tmp_path):
    path, budget = tmp_path / "a", Budget(3, 8, 0.05)
    outcome("mixup", budget, checkpoint=path, checkpoint_every=0)

    def again(method, model=None, given=None, budget=budget, seed=2):
        fit(method, model or net(), given or data(), budget, seed=seed, checkpoint=path)

    other = data()
    other.train.y[7] += 1
    for match, run in (
        ("another seed", lambda: again(om.create("mixup", alpha=0.4), seed=3)),
        ("another budget", lambda: again(om.create("mixup", alpha=0.4), budget=Budget(4, 8, 0.05))),
        ("another method", lambda: again(om.create("mixup", alpha=0.5))),
        ("another method", lambda: again(om.create("mixup", alpha=0.4, per_sample=True))),
        ("another method", lambda: again(om.Mix(ratio=om.core.ratio.Beta(0.4), places=("0",)))),
        ("another method, model", lambda: again(om.ERM(), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))),
        ("another data", lambda: again(om.create("mixup", alpha=0.4), given=other)),
    ):
        with pytest.raises(ValueError, match=f"{match}; remove it"):
            run()
    method = om.create("mixup", alpha=0.4)
    again(method)
    again(method)  # a method that was trained before is still the same configuration


def test_a_torn_or_changed_file_is_reported_and_training_starts_afresh(tmp_path):
    budget, path = Budget(3, 8, 0.05), tmp_path / "a"
    expected = outcome("mixup", budget, checkpoint=path, checkpoint_every=0)
    whole = path.read_bytes()
    broken = [whole[:cut] for cut in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1)]
    for place in range(len(whole) - 1, 0, -len(whole) // 40):
        changed = bytearray(whole)
        changed[place] ^= 4
        broken.append(bytes(changed))
    broken.append(b"PK\x03\x04" + whole)
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*a: "):
            files.load(path)
    with pytest.warns(UserWarning, match="starts from the beginning"):
        found = outcome("mixup", budget, checkpoint=path)
    assert same(found, expected)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.save(path, {"x": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.save(path, {"x": 2})
    assert files.load(path) == {"x": 1}


def test_a_full_disk_ends_no_run_and_leaves_nothing_behind(tmp_path, monkeypatch):
    undisturbed = outcome("mixup", Budget(3, 8, 0.05))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.warns(UserWarning, match="cannot write the checkpoint .*disk full.*training goes on"):
        found = outcome("mixup", Budget(3, 8, 0.05), checkpoint=tmp_path / "a", checkpoint_every=0)
    assert same(found, undisturbed)
    assert not list(tmp_path.iterdir())


def test_short_runs_and_broken_runs_write_nothing(tmp_path):
    outcome("mixup", Budget(3, 8, 0.05), checkpoint=tmp_path / "a")
    assert not list(tmp_path.iterdir())

    class Breaks(om.ERM):
        def loss(self, model, batch, **streams):
            return super().loss(model, batch) * (math.inf if self.steps_done > 6 else 1)

    with pytest.raises(TrainingError, match="epoch 2"):
        fit(Breaks(), net(), data(), Budget(3, 8, 0.05), seed=0, checkpoint=tmp_path / "a", checkpoint_every=0)
    assert len(files.load(tmp_path / "a")["history"]) == 1


def test_states_come_back_as_they_were():
    state = {
        "tensors": [torch.randn(2, 3), torch.tensor(1.5), torch.zeros(0, 4), torch.arange(3) > 1],
        "half": torch.randn(3).bfloat16(),
        "view": torch.arange(6.0).view(2, 3).T,
        "numbers": (1, -2.5, 0.1, math.inf, True, None),
        "generator": torch.Generator().manual_seed(3).get_state(),
        3: {"bytes": b"\x00\xff", "none": b"", "text": "ü\n", "list": [[], {}, ()]},
    }
    back = files.from_bytes(files.to_bytes(state))
    for a, b in zip([*state["tensors"], state["half"]], [*back["tensors"], back["half"]], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert torch.equal(state["view"], back["view"])
    assert back["numbers"] == state["numbers"]
    assert back[3] == state[3]
    torch.Generator().set_state(back["generator"])
    assert math.isnan(files.from_bytes(files.to_bytes([math.nan]))[0])
    with pytest.raises(TypeError, match="not <class 'set'>"):
        files.to_bytes({"x": {1}})
    with pytest.raises(TypeError, match="keys"):
        files.to_bytes({(1, 2): 3})
