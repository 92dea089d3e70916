import random

import pytest
import torch

from omnimix.compare.run import make_plan
from omnimix.compare.spec import settings
from omnimix.core import registry
from omnimix.core.method import Method
from omnimix.core.task import Classification, Regression
from omnimix.data import Source


def images(rows=40):
    x = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Source("toy", x, torch.arange(rows) % 3, Classification(3), "image", class_names=("a", "b", "c"))


def table(rows=60):
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    return Source("toy", x, x.sum(1), Regression(1), "table")


def plan(source, *methods, **more):
    return make_plan(settings(data="toy", methods=methods, seeds=(0,), epochs=2, batch=8, **more), source)


@pytest.mark.parametrize("method", ["snapmix", "attentivemix", "gridmix-local", "snapmix:probability=0.01"])
def test_what_needs_feature_maps_is_refused_on_a_network_without(method):
    with pytest.raises(ValueError, match=f"^{method}: "):
        plan(images(), "erm", method, net="mlp:hidden=4")
    plan(images(), method)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("manifold-mixup:taps=nowhere", "tap 'nowhere' is not a module of SmallCNN"),
        ("snapmix:tap=head", "head"),
        ("gridmix-local:tap=nowhere", "nowhere"),
    ],
)
def test_taps_that_do_not_serve_are_refused(method, message):
    with pytest.raises(ValueError, match=f"^{method}: .*{message}"):
        plan(images(), method)


def test_every_place_is_tried_and_every_fault_is_told():
    @registry.register("test-breaks", paper="none")
    class Breaks(Method):
        """Fails in its first step."""

        def loss(self, model, batch, **streams):
            raise RuntimeError("out of luck")

    try:
        with pytest.raises(ValueError, match=r"^test-breaks: RuntimeError: out of luck"):
            plan(table(), "erm", "test-breaks")
    finally:
        registry._methods.pop("test-breaks")


def test_partners_from_the_table_and_learned_ones_pass_quickly():
    plan(table(), "c-mixup", "c-mixup@pairs", "regmix-regression", "regmix-regression:k=2", "manifold-mixup")


def test_global_random_states_and_jobs_stay_as_they_are():
    before = [torch.get_rng_state(), random.getstate()]
    _, first, jobs = plan(images(), "erm", "mixup", net="small-cnn")
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    assert [job.key for job in plan(images(), "erm", "mixup", net="small-cnn")[2]] == [job.key for job in jobs]
    assert first.source.x.equal(images().x)
