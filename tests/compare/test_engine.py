import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnimix.compare import engine
from omnimix.compare.engine import shared_fractions
from omnimix.compare.jobs import execute, units
from omnimix.compare.run import default_workers, make_plan
from omnimix.compare.spec import settings
from omnimix.compare.store import Failure, Run
from omnimix.core import registry
from omnimix.core.method import Method
from omnimix.core.task import Regression
from omnimix.data import Source


class Raises(Method):
    """Fails at the second step: one is rehearsed before anything trains."""

    def loss(self, model, batch, **streams):
        if self.steps_done:
            self.fail()
        return super().loss(model, batch, **streams)

    def fail(self):
        raise RuntimeError("this method always fails")


class Dies(Raises):
    """Takes its process with it, as the kernel does when memory ends."""

    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


for method in (Raises, Dies):  # as if a user's script had made them
    method.__module__ = method.loss.__module__ = method.fail.__module__ = "__main__"


@pytest.fixture
def plugins():
    for name, factory in (("test-raises", Raises), ("test-dies", Dies)):
        registry.register(name, paper="none")(factory)
    yield
    for name in ("test-raises", "test-dies"):
        registry._methods.pop(name)


def plan_of(methods, seeds=(0, 1)):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, generator=generator)
    source = Source("toy", x, x.sum(1), Regression(1), "table")
    return make_plan(settings(data="toy", methods=methods, seeds=seeds, epochs=2, net="mlp:hidden=4"), source)[1:]


def outcomes(methods, workers, **more):
    plan, jobs = plan_of(methods, **more)
    with shared_fractions(len(jobs)) as fractions:
        ran = engine.run([(job,) for job in jobs], plan, workers, fractions)
        found = {(o.method, o.seed): o for some in ran for o in some}
        assert fractions[: len(jobs)].tolist() == [1.0] * len(jobs)
    assert len(found) == len(jobs)
    return found


def test_results_do_not_depend_on_the_number_of_processes_and_failures_stop_nothing(plugins):
    methods = ("erm", "test-raises", "c-mixup")
    threads = torch.get_num_threads()
    alone, together = outcomes(methods, 1), outcomes(methods, 2)
    assert torch.get_num_threads() == threads
    for key, outcome in alone.items():
        if key[0] == "test-raises":
            for fault in (outcome, together[key]):
                assert isinstance(fault, Failure)
                assert fault.error == "RuntimeError: this method always fails"
        else:
            assert isinstance(outcome, Run), outcome
            assert isinstance(together[key], Run), together[key].traceback
            assert together[key].metrics == outcome.metrics
            assert together[key].key == outcome.key
            assert [row["train_loss"] for row in together[key].history] == [r["train_loss"] for r in outcome.history]


def test_a_run_whose_process_dies_is_a_failure_and_the_others_go_on(plugins):
    found = outcomes(("erm", "test-dies"), 2, seeds=(0,))
    assert isinstance(found["erm", 0], Run), found["erm", 0].traceback
    assert "killed" in found["test-dies", 0].error


def test_a_single_worker_that_dies_takes_no_comparison_with_it(plugins, monkeypatch):
    monkeypatch.setattr("omnimix.compare.engine.local.IN_PROCESS", False)
    plan, jobs = plan_of(("test-dies", "erm"), seeds=(0,))
    found, seen = {}, []
    with shared_fractions(len(jobs)) as fractions:
        for some in engine.run([(job,) for job in jobs], plan, 1, fractions):
            seen.append((fractions > 0).sum())
            found |= {outcome.method: outcome for outcome in some}
        assert fractions.tolist() == [1.0] * 2
    assert seen == [1, 2]  # one after the other
    assert isinstance(found["test-dies"], Failure)
    assert "killed twice" in found["test-dies"].error
    assert found["test-dies"].config == jobs[0].config
    assert isinstance(found["erm"], Run), found["erm"].traceback


def test_what_a_single_worker_gives_is_what_this_process_gives(monkeypatch):
    plan, jobs = plan_of(("erm", "c-mixup"), seeds=(0, 1))
    made, found = units(jobs, plan, 1), []
    for here in (True, False):
        monkeypatch.setattr("omnimix.compare.engine.local.IN_PROCESS", here)
        with shared_fractions(len(made)) as fractions:
            ran = [run for some in engine.run(made, plan, 1, fractions) for run in some]
        found.append({run.key: (run.metrics, run.history) for run in ran})
    assert found[0] == found[1]


def test_progress_is_seen_while_jobs_run():
    plan, jobs = plan_of(("erm",), seeds=(0,))
    seen = []

    class Spy(np.ndarray):
        def __setitem__(self, place, value):
            seen.append(float(value))
            super().__setitem__(place, value)

    list(engine.run([tuple(jobs)], plan, 1, np.zeros(1).view(Spy)))
    assert seen[1:] == [0.5, 1.0, 1.0]
    assert 0 < seen[0] < 1e-6


def test_runs_that_train_together_agree_with_runs_alone_and_with_one_another():
    plan, jobs = plan_of(("erm", "manifold-mixup", "c-mixup"), seeds=(0, 1, 2))
    found = {}
    for together, workers in ((True, 1), (True, 2), (False, 1)):
        mine = replace(plan, together=together)
        made = units(jobs, mine, workers)
        assert [len(unit) for unit in made] == ([3] * 3 if together else [1] * 9)
        ran = [run for unit in made for run in execute(unit, mine)]
        assert all(isinstance(run, Run) for run in ran), ran
        assert all(run.versions.get("together") == ("3" if together else None) for run in ran)
        found[together, workers] = {run.key: run for run in ran}
    for job in jobs:
        one, other, alone = (found[how][job.key] for how in found)
        assert one.history == other.history
        assert one.metrics == other.metrics
        assert one.metrics == pytest.approx(alone.metrics, rel=1e-4)
        assert one.best_epoch == alone.best_epoch
        assert [row["train_loss"] for row in one.history] == pytest.approx(
            [row["train_loss"] for row in alone.history], rel=1e-4
        )


def test_the_seeds_of_a_method_are_shared_out_among_the_workers():
    plan, jobs = plan_of(("erm",), seeds=range(5))
    assert [len(unit) for unit in units(jobs, plan, 2)] == [3, 2]
    whole = {run.key: run for run in execute(units(jobs, plan, 1)[0], plan)}
    for unit in units(jobs, plan, 2):
        for run in execute(unit, plan):
            assert run.metrics == whole[run.key].metrics


@pytest.mark.slow
def test_a_run_may_take_several_devices(tmp_path):
    plan, jobs = plan_of(("erm",), (0,))
    asked = replace(jobs[0].budget, devices=2, batch_size=10, accelerator="cpu", optimizer="sgd", drop_last=True)
    alone, shared = (replace(jobs[0], budget=replace(asked, devices=n)) for n in (1, 2))
    found = []
    for job in (alone, shared):  # the second in processes of a process of the engine
        with shared_fractions(1) as fractions:
            (outcome,) = next(iter(engine.run([(job,)], plan, workers=1, engine="local", fractions=fractions)))
        assert isinstance(outcome, Run), outcome
        found.append(outcome.metrics["rmse"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)  # of plain training, up to rounding


def test_runs_on_several_devices_leave_room_for_each_other(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    plan = plan_of(("erm",))[0]
    shared = replace(plan.protocol, budget=replace(plan.protocol.budget, devices=4))
    assert (default_workers(plan), default_workers(replace(plan, protocol=shared))) == (8, 2)
