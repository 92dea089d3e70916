"""Every registered method, the example plug-in included, keeps the contract."""

from dataclasses import replace

import pytest
import torch

import omnimix as om
from omnimix.testing import check_method

CHEAP = {"regmix-regression": {"iterations": 2}}


@pytest.mark.parametrize("name", [name for name in om.methods() if "for-this-test" not in name])
def test_contract(name):
    assert len(check_method(name, **CHEAP.get(name, {}))) >= 10


class Broken(om.Mixup):
    """Breaks the rule named by `rule`."""

    def __init__(self, rule: str = "in-place"):
        super().__init__()
        self.rule = rule

    def loss(self, model, batch, **streams):
        batch = om.Batch.of(batch)
        if self.rule == "in-place":
            batch.x.mul_(1.01)
        if self.rule == "global":
            torch.rand(1)
        if self.rule == "evaluation":
            return self.mixed_loss(model, batch, self.recipe(batch))
        loss = super().loss(model, batch)
        return loss * torch.rand(()) if self.rule == "random" else loss

    def state_dict(self):
        state = super().state_dict()
        return {**state, "generator": torch.Generator().get_state()} if self.rule == "state" else state


om.register("broken-for-this-test", paper="none")(Broken)


class BrokenInside(om.Mixup):
    """Breaks the rule named by `rule` where it mixes."""

    def __init__(self, rule: str = "flipped"):
        super().__init__()
        self.rule = rule

    def mixed_loss(self, model, batch, recipe):
        if self.rule == "eval":
            model.eval()
        loss = super().mixed_loss(model, batch, recipe)
        return 1.5 * loss if self.rule == "scaled" else loss

    def apply(self, x, recipe, y=None):
        if self.rule == "upcast":
            x = x + torch.zeros(1, dtype=torch.float32)
        if self.rule == "integers":
            x = x.float()
        if self.rule == "detached":
            own, guest = recipe.share.unsqueeze(-1).unbind(1)
            flat = x.flatten(1)
            return (own * flat + guest * flat.detach()[recipe.partner[:, 1]]).view_as(x), recipe
        x, applied = super().apply(x, recipe)
        return x, replace(applied, label_share=1 - applied.share) if self.rule == "flipped" else applied


om.register("broken-inside-for-this-test", paper="none")(BrokenInside)


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        ("in-place", "inputs_unchanged"),
        ("global", "global_randomness_untouched"),
        ("evaluation", "evaluation_unmixed"),
        ("random", "deterministic"),
        ("state", "state_round_trip"),
    ],
)
def test_the_contract_catches(rule, check):
    with pytest.raises(AssertionError, match=check):
        check_method("broken-for-this-test", rule=rule)


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        ("upcast", "half_precision"),
        ("scaled", "lam_one_is_plain"),
        ("eval", "model_untouched"),
        ("integers", "refusals"),
        ("flipped", "labels_follow_inputs"),
        ("detached", "gradients_reach_partners"),
    ],
)
def test_the_contract_catches_inside_the_mix(rule, check):
    with pytest.raises(AssertionError, match=check):
        check_method("broken-inside-for-this-test", rule=rule)


def test_checks_that_do_not_apply_are_not_reported_as_passed():
    plain, mixup = check_method("erm"), check_method("mixup")
    names = [{label.split(" ")[0] for label in labels} for labels in (plain, mixup)]
    assert names[1] - names[0] == {"lam_one_is_plain", "labels_follow_inputs", "gradients_reach_partners"}
    assert "channels_last (classification, x (5,))" not in mixup
