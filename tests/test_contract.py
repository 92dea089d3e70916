"""Every registered method, the example plug-in included, keeps the contract."""

import pytest
import torch

import omnimix as om
from omnimix.testing import check_method

CHEAP = {"regmix-regression": {"iterations": 2}}


@pytest.mark.parametrize("name", [name for name in om.methods() if "for-this-test" not in name])
def test_contract(name):
    assert len(check_method(name, **CHEAP.get(name, {}))) >= 12


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
