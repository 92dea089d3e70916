import gc
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from omnimix.compare import compare, engine
from omnimix.compare.engine import shared_fractions
from omnimix.compare.run import make_plan
from omnimix.compare.spec import settings
from omnimix.compare.store import Failure, Run, Store
from omnimix.core import registry
from omnimix.core.method import Method
from omnimix.core.task import Regression
from omnimix.data import Source


class Raises(Method):
    """Fails at the second step: one is rehearsed before anything trains."""

    def loss(self, model, batch, **streams):
        if self.steps_done:
            raise RuntimeError("this method always fails")
        return super().loss(model, batch)


class Dies(Method):
    """Takes its process with it."""

    def loss(self, model, batch, **streams):
        if self.steps_done:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


class Slow(Method):
    """Takes 0.7 s a step."""

    def loss(self, model, batch, **streams):
        time.sleep(0.7)
        return super().loss(model, batch)


PLUGINS = {"test-raises": Raises, "test-dies": Dies, "test-slow": Slow}
for method in PLUGINS.values():  # as if a user's script had made them
    method.__module__ = method.loss.__module__ = "__main__"


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason='Ray is not installed: pip install "omnimix[cluster]"')


@pytest.fixture(scope="module")
def shared(ray):
    """One cluster for several tests, as a user has who called ray.init() before."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def plugins():
    for name, factory in PLUGINS.items():
        registry.register(name, paper="none")(factory)
    yield
    for name in PLUGINS:
        registry._methods.pop(name)


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("omnimix.compare.report.write", lambda *_: None)


def source():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    return Source("toy", x, x.sum(1), Regression(1), "table")


def asked(methods, seeds=(0, 1)):
    return settings(data="toy", methods=methods, seeds=tuple(seeds), epochs=2, net="mlp:hidden=4")


def plan_of(methods, seeds=(0, 1)):
    return make_plan(asked(methods, seeds), source())[1:]


def outcomes(methods, workers, engine_name, **more):
    plan, jobs = plan_of(methods, **more)
    with shared_fractions(len(jobs)) as fractions:
        ran = engine.run([(job,) for job in jobs], plan, workers, fractions, engine_name)
        found = {(o.method, o.seed): o for some in ran for o in some}
        assert fractions[: len(jobs)].tolist() == [1.0] * len(jobs)
    assert len(found) == len(jobs)
    return found


def deterministic(run):
    """All of a run but what the clock and the memory say."""
    return {k: v for k, v in vars(run).items() if k not in ("seconds", "step_seconds", "peak_memory", "finished")}


def test_what_cannot_be_computed_with_is_refused_before_anything_runs(monkeypatch):
    for match, how in (
        ("engine must be one of 'local', 'ray'", ("dask", None)),
        ("--engine ray", ("local", "auto")),
    ):
        with pytest.raises(ValueError, match=match):
            compare(asked(("erm",)), source=source(), engine=how[0], address=how[1])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "omnimix\[cluster\]"'):
        compare(asked(("erm",)), source=source(), engine="ray")


def test_an_interrupt_ends_the_cluster_that_was_started_and_keeps_what_is_finished(ray, tmp_path, no_report):
    before = signal.getsignal(signal.SIGTERM), logging.getLogger("ray").level

    @contextmanager
    def interrupted(*_):
        yield stop

    def stop(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(asked(("erm", "mixup")), tmp_path, source=source(), workers=2, watch=interrupted, engine="ray")
    gc.collect()
    assert not ray.is_initialized()
    assert (signal.getsignal(signal.SIGTERM), logging.getLogger("ray").level) == before
    with Store(tmp_path / "store.db") as store:
        assert len(store) == 2
    assert len(compare(asked(("erm", "mixup")), tmp_path, source=source(), workers=1).runs) == 4


@pytest.mark.slow
def test_runs_of_a_machine_that_disappears_are_given_to_another(ray, plugins):
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = machines.add_node(num_cpus=1)
    plan, jobs = plan_of(("test-slow",), seeds=range(4))
    try:
        found = []
        with shared_fractions(len(jobs)) as fractions:
            for (outcome,) in engine.run([(j,) for j in jobs], plan, None, fractions, "ray", machines.address):
                if not found:
                    machines.remove_node(second, allow_graceful=False)
                found.append(outcome)
        assert not ray.is_initialized()
    finally:
        machines.shutdown()
    assert {outcome.seed for outcome in found} == {0, 1, 2, 3}
    assert len(found) == 4
    assert all(isinstance(outcome, Run) for outcome in found)


def test_every_engine_gives_the_same_bit_for_bit(shared, plugins):
    methods = ("erm", "mixup", "c-mixup", "test-raises")
    alone, local, ray = (outcomes(methods, *how) for how in ((1, "local"), (2, "local"), (2, "ray")))
    for key, outcome in alone.items():
        if key[0] == "test-raises":
            for fault in (outcome, local[key], ray[key]):
                assert isinstance(fault, Failure)
                assert fault.error == "RuntimeError: this method always fails"
                assert "in loss" in fault.traceback
        else:
            assert isinstance(outcome, Run), outcome.traceback
            assert len(outcome.history) == 2
            assert deterministic(outcome) == deterministic(local[key]) == deterministic(ray[key])
    assert len({outcome.key for outcome in alone.values()}) == len(alone)


def test_a_run_whose_process_dies_is_a_failure_and_the_others_go_on(shared, plugins, capsys):
    found = outcomes(("erm", "test-dies"), 2, "ray", seeds=(0,))
    assert isinstance(found["erm", 0], Run), found["erm", 0].traceback
    assert "killed twice" in found["test-dies", 0].error


def test_progress_is_seen_while_tasks_run(shared, plugins):
    plan, jobs = plan_of(("test-slow",), seeds=(0,))
    seen = []

    class Watched(list):
        def __setitem__(self, place, value):
            seen.append(value)

    list(engine.run([tuple(jobs)], plan, 1, Watched([0.0]), "ray"))
    assert 0 < seen[0] < 1e-6
    assert 0.5 in seen
    assert seen[-1] == 1.0
