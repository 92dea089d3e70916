import math

import pytest
import torch

from omnimix.train.uncertainty import dempster_shafer, detect, doubt, energy, entropy

Z = torch.tensor([[2.0, 0.0, -1.0]])


def test_hand_values():
    assert dempster_shafer(Z).item() == pytest.approx(0.255169, abs=1e-6)
    assert energy(Z).item() == pytest.approx(-2.169846, abs=1e-6)
    assert energy(Z, temperature=2.0).item() == pytest.approx(-2 * math.log(math.e + 1 + math.exp(-0.5)), abs=1e-6)
    p = Z.softmax(1)
    assert entropy(Z).item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)
    assert doubt(Z).item() == pytest.approx(1 - p.max().item(), abs=1e-6)
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))


def test_large_logits_stay_finite():
    for score in (entropy, doubt, energy, dempster_shafer):
        assert bool(torch.isfinite(score(torch.tensor([[1e4, -1e4, 0.0], [-1e4, -2e4, -3e4]]))).all())


def test_uncertain_inputs_outside_are_the_positives():
    draw = torch.Generator().manual_seed(0)
    inside = torch.eye(4)[torch.randint(4, (200,), generator=draw)] * 6
    outside = 0.5 * torch.randn(50, 4, generator=draw)
    for found in detect(inside, outside).values():
        assert found == {"auroc": 1.0, "aupr": pytest.approx(1.0)}
    for found in detect(outside, inside).values():
        assert found["auroc"] == 0.0
    for found in detect(outside[:25], outside[25:]).values():
        assert 0.25 < found["auroc"] < 0.75


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        energy(Z, 0.0)
