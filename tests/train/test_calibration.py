import itertools
import math

import numpy as np
import pytest
import torch

from omnimix.train.calibration import adaptive_ece, brier, ece, fit_temperature, nll


def two_class(confidence, correct, dtype=torch.float32):
    top = torch.tensor(confidence, dtype=dtype)
    return torch.stack((top, 1 - top), 1), 1 - torch.tensor(correct)


def random(rows=500, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=draw)
    y = torch.multinomial((logits / 2).softmax(1), 1, generator=draw).squeeze(1)
    return logits, y


def brute_force(confidence, correct, edges, lowest=False):
    """The definition with loops; `lowest` puts the smallest confidence into the first bin."""
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if lowest and low == edges[0]:
            inside |= confidence == low
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_value(dtype):
    assert ece(*two_class([0.95, 0.9, 0.85, 0.6, 0.55], [1, 1, 0, 1, 0], dtype)) == pytest.approx(0.23, abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    p, y = two_class([0.6, 0.55, 0.65], [1, 0, 0])
    assert ece(p, y) == pytest.approx((abs(0.575 - 0.5) * 2 + 0.65) / 3, abs=1e-6)


def test_agrees_with_the_definition():
    logits, y = random()
    p = logits.double().softmax(1)
    confidence, predicted = (a.numpy() for a in p.max(1))
    correct = (predicted == y.numpy()).astype(float)
    assert ece(p, y) == pytest.approx(brute_force(confidence, correct, np.arange(16) / 15), abs=1e-9)
    edges = np.interp(np.linspace(0, 500, 16), np.arange(500), np.sort(confidence))
    assert adaptive_ece(p, y) == pytest.approx(brute_force(confidence, correct, edges, lowest=True), abs=1e-9)


def test_adaptive_bins_hold_equal_shares_and_ties_lose_nobody():
    p, y = two_class([0.6] * 5 + [0.9] * 5, [1, 1, 1, 0, 0, 1, 1, 1, 1, 0])
    assert adaptive_ece(p, y, bins=2) == pytest.approx(0.05, abs=1e-6)  # .6 against 3/5, .9 against 4/5
    sure, wrong = torch.tensor([[1.0, 0.0]]).expand(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    assert adaptive_ece(sure, wrong) == pytest.approx(0.5)
    assert ece(sure, wrong) == pytest.approx(0.5)
    assert adaptive_ece(sure[:1], wrong[:1]) == 0.0


@pytest.mark.parametrize(("seed", "reference"), [(0, 0.6657510), (1, 0.6221685)])
def test_agrees_with_the_reference_code(seed, reference):
    """RegMixup fd78465, ECE of 15 bins on the softmax of these logits."""
    grid = torch.arange(60.0).view(12, 5)
    logits = 3 * torch.sin(grid * (seed + 1))
    assert ece(logits.softmax(1), torch.arange(12) % 5) == pytest.approx(reference, abs=1e-6)


def test_brier_and_nll():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    y = torch.tensor([0, 1])
    assert brier(p, y) == pytest.approx(((0.09 + 0.04 + 0.01) + (0.09 + 0.49 + 0.16)) / 2, abs=1e-6)
    assert nll(p, y) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, abs=1e-6)
    assert brier(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == 2.0
    assert math.isfinite(nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1])))


def test_temperature_undoes_overconfidence():
    logits, y = random(rows=4000)
    assert fit_temperature(logits, y) == pytest.approx(2.0, rel=0.1)
    scaled = (logits / fit_temperature(logits, y)).softmax(1)
    assert ece(scaled, y) < 0.03 < ece(logits.softmax(1), y)


def test_refusals():
    p = torch.full((3, 2), 0.5)
    for bad in (torch.zeros(2, dtype=torch.long), torch.zeros(3), torch.zeros(3, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="class ids"):
            ece(p, bad)
    with pytest.raises(ValueError, match="bins"):
        ece(p, torch.zeros(3, dtype=torch.long), bins=0)
