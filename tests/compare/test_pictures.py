import pytest
import torch

import omnimix as om
from omnimix.compare import run, settings
from omnimix.compare.pictures import Pairs, chance, draws_of, gallery, over_lam, same, watch
from omnimix.compare.report.samples import how_much, parts_of, sentence
from omnimix.core.batch import Batch
from omnimix.core.operation import Interpolate
from omnimix.core.task import Classification, Regression
from omnimix.train.parts import Data, Part


class Refuses(torch.nn.Module):
    """A network whose forward pass fails the test."""

    def __init__(self):
        super().__init__()
        self.block1, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        raise AssertionError("no forward pass is needed")


def toy(task="classification", rows=90):
    draw = torch.Generator().manual_seed(1)
    x, domain = torch.rand(rows, 4, generator=draw), torch.arange(rows) // 3 % 2
    if task == "classification":
        return Data(Part(x, torch.arange(rows) % 3, domain), None, None, Classification(3))
    return Data(Part(x, torch.linspace(0, 10, rows), domain), None, None, Regression(1))


def see(method, data=None, **more):
    return watch(method, Refuses(), data or toy(), **{"batch_size": 16, "draws": 480, **more})


def test_pairs_follow_the_criterion_and_are_counted():
    pairs = Pairs.of(see(om.create("selective-mixup", label="different", domain="same")))
    assert (pairs.count, pairs.unmixed) == (480, 0)
    assert same(pairs.label) == 0
    assert same(pairs.domain) == 1
    assert chance(toy().train.y) == pytest.approx(1 / 3)


def test_pairs_of_mixup_are_chance_and_those_of_erm_none():
    pairs = Pairs.of(see(om.Mixup(), draws=3200))
    assert same(pairs.label) == pytest.approx(chance(toy().train.y), abs=0.05)
    assert pairs.unmixed == pytest.approx(3200 / 16, abs=60)  # a random permutation has one fixed point on average
    erm = Pairs.of(see(om.ERM()))
    assert erm.label is None
    assert erm.unmixed == erm.count == 480


def test_c_mixup_pairs_similar_labels():
    label = Pairs.of(see(om.CMixup(bandwidth=0.5), toy("regression"))).label
    assert (label[:, 0] - label[:, 1]).abs().mean() < 0.6


def test_three_samples_make_two_pairs_each():
    steps = see(om.Mixup(k=3), draws=16)
    pairs = Pairs.of(steps)
    meets = steps[0].recipe.partner[:, 1:] != steps[0].recipe.partner[:, :1]
    assert len(pairs.label) == int(meets.sum())


def test_mixed_samples_are_what_the_recipe_says():
    step = see(om.Mixup(alpha=2.0))[0]
    mixed, x = step.mixed, step.batch.x
    lam = mixed.recipe.share[:, :1]
    torch.testing.assert_close(mixed.x, lam * x + (1 - lam) * x[mixed.recipe.partner[:, 1]])


def test_hidden_mixing_leaves_the_inputs_alone():
    steps = see(om.CMixup(place="block1"), toy("regression"))
    assert all(step.mixed is None and step.recipe.place == "block1" for step in steps)


class Own(om.Method):
    """Mixes in its loss, without the parts of `Mix`."""

    def loss(self, model, batch, **streams):
        batch = Batch.of(batch)
        return self.task.mean_loss(model(0.5 * (batch.x + batch.x.flip(0))), batch.y)


class Plain(Own):
    def loss(self, model, batch, **streams):
        return self.task.mean_loss(model(batch.x.flip(0)), batch.y)


def test_a_method_of_its_own_is_seen_through_the_network():
    step = see(Own())[0]
    torch.testing.assert_close(step.seen, 0.5 * (step.batch.x + step.batch.x.flip(0)))
    assert all(step.seen is None for step in see(Plain()))


class Broken(om.Method):
    def loss(self, model, batch, **streams):
        raise RuntimeError("not today\nnor tomorrow")


class Streams(om.Method):
    streams = ("unlabeled",)


@pytest.mark.parametrize(
    ("method", "why"),
    [(Broken(), "^not today$"), (Streams(), "extra streams unlabeled"), (om.create("lisa"), "domain")],
)
def test_what_cannot_be_shown_says_why(method, why):
    with pytest.raises(ValueError, match=why):
        see(method, Data(Part(torch.rand(9, 4), torch.arange(9) % 3), None, None, Classification(3)))


def test_a_comparison_shows_every_method_and_the_report_says_what_they_did():
    methods = ("erm", "mixup", "mixup:alpha=0", "midpoint-mixup", "regmix-regression", "regmix-regression:k=2")
    _, plan, jobs = run.make_plan(settings(data="airfoil", methods=methods, seeds=(0, 1)))
    shown = gallery(plan, jobs)
    said = {one.method: sentence(one) for one in shown}
    assert list(said) == list(methods)
    assert "mixes nothing" in said["erm"]
    assert "mixes nothing" in said["mixup:alpha=0"]
    assert "always 0.5" in said["midpoint-mixup"]
    assert "validation" in said["regmix-regression"]
    assert "met a partner" in said["regmix-regression:k=2"]
    again = gallery(plan, jobs)
    assert how_much(again[1]) == how_much(shown[1])


def test_over_lam_goes_from_the_sample_to_its_partner():
    method = om.CutMix().setup(Refuses(), Classification(2), generator=torch.Generator())
    x = torch.stack((torch.zeros(1, 8, 8), torch.ones(1, 8, 8)))
    found = over_lam(method, x, (1.0, 0.75, 0.5, 0.0), seed=3)
    area = [image.mean().item() for image, _ in found]
    assert area == pytest.approx([share[1].item() for _, share in found])
    assert area[0] == 0
    assert area == sorted(area)
    torch.testing.assert_close(x[0], torch.zeros(1, 8, 8))


def test_over_lam_says_where_it_mixes():
    class Where(Interpolate):
        def __call__(self, x, recipe, context):
            self.place = recipe.place
            return super().__call__(x, recipe, context)

    method = om.Mix(operation=Where()).setup(Refuses(), Classification(2), generator=torch.Generator())
    x = torch.rand(2, 3, 4, 4)
    for place in ("input", "block1"):
        over_lam(method, x, (0.5,), 0, place=place)
        assert method.operation.place == place


def test_draws_of_lam():
    assert draws_of(om.Mixup(alpha=1.0)).std() > 0.2
    assert draws_of(om.MidpointMixup()).unique().tolist() == [0.5]


def test_label_shares_in_words():
    assert parts_of((0.25, 0.75), ("cat", "dog"), ", ") == "0.25 cat, 0.75 dog"
    assert parts_of((0.25, 0.75), ("7", "7")) == "1.00 “7”"
