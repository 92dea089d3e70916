"""Targets that are trained on in normalised units are paired and scored in their own."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.train import Data, Part, evaluate, table
from omnimix.train.budget import Budget
from omnimix.train.loop import _setup


class Zero(nn.Module):
    def forward(self, x):
        return x[:, :1] * 0


def normalised(raw):
    offset, scale = raw.mean(), raw.std()
    return Part(
        torch.randn(len(raw), 2, generator=torch.Generator().manual_seed(0)), (raw - offset) / scale, raw=raw
    ), (offset, scale)


def test_mape_skips_raw_zeros():
    raw = torch.tensor([0.0, 3.3, 0.0, 5.7, 10.1])
    part, scale = normalised(raw)
    found = evaluate(Zero(), om.ERM(), part, om.Regression(1), target_scale=scale)
    kept = raw[raw != 0].double()
    assert found["mape"] == pytest.approx(100 * float(((raw.double().mean() - kept) / kept).abs().mean()), rel=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_a_bandwidth_is_in_label_units(batch):
    raw = torch.arange(40.0) * 10
    part, scale = normalised(raw)
    data = Data(part, None, None, om.Regression(1), scale)
    method = om.CMixup(bandwidth=0.1, batch=batch)  # far below the spacing of 10: every sample is its own only partner
    _setup(method, Zero(), data, Budget(1, 8, 0.1), 0, 0)
    assert "raw_label" in table(part)
    rows, guests = method.rows(torch.arange(8))
    rows = torch.cat((rows, guests[:, 0]))
    made = om.Batch(part.x[rows], part.y[rows], index=rows, anchors=8)
    partner = method.pairing(made, method.generator)
    assert torch.equal(rows[partner[:, 1]], torch.arange(8))
