"""Moving averages with warm-up inside PyTorch's AveragedModel."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from omnimix.models.regularize.averaging import decay_at, ema


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(1))


def follow(values, average, **settings):
    model, out = Point(), []
    averaged = AveragedModel(model, multi_avg_fn=average, **settings)
    for i, value in enumerate(values):
        with torch.no_grad():
            model.w.fill_(value)
        model.steps.fill_(i)
        model.mean.fill_(value)
        averaged.update_parameters(model)
        out.append(float(averaged.module.w[0].detach()))
    return out, averaged


def test_constant_weights_stay():
    for warmup in ("ratio", "unbiased"):
        assert follow([2.5] * 6, ema(0.9, warmup=warmup))[0] == pytest.approx([2.5] * 6)


def test_ratio_by_hand():
    # d_1 = 2/11, d_2 = 3/12, then d = .25 bounds them
    out, _ = follow([0, 1, 1, 1], ema(0.25))
    assert out == pytest.approx([0, 9 / 11, 1 - 2 / 11 / 4, 1 - 2 / 11 / 16])
    assert decay_at(10_000, 0.99, "ratio") == 0.99


def test_a_step_is_followed_as_one_minus_the_powers_of_the_decay():
    out, _ = follow([0] + [1] * 20, ema(0.5))
    late = [1 - value for value in out[-10:]]
    assert [b / a for a, b in itertools.pairwise(late)] == pytest.approx([0.5] * 9)


def test_unbiased_is_the_weighted_mean():
    values, decay = [3.0, -1.0, 4.0, 1.0, -5.0], 0.8
    out, _ = follow(values, ema(decay, warmup="unbiased"))
    for n, found in enumerate(out):
        weights = [decay ** (n - k) for k in range(n + 1)]
        assert found == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights))


def test_the_average_of_a_model_in_half_precision_is_float32():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    kept = AveragedModel(model, multi_avg_fn=ema(0.999, warmup="unbiased")).float()
    own = AveragedModel(model, multi_avg_fn=ema(0.999))
    values = [1.0, *[1.5] * 50]
    for value in values:
        nn.init.constant_(model.weight, value)
        kept.update_parameters(model)
    weights = [0.999 ** (50 - k) for k in range(51)]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert float(kept.module.weight.detach()) == pytest.approx(mean, abs=1e-5)
    own.update_parameters(model)
    with pytest.raises(ValueError, match=r"kept in float32, got bfloat16: .*\.float\(\)"):
        own.update_parameters(model)


def test_limits_of_the_decay():
    values = [3.0, -1.0, 4.0, 1.0]
    mean = [sum(values[: n + 1]) / (n + 1) for n in range(4)]
    assert follow(values, ema(1.0, warmup="unbiased"))[0] == pytest.approx(mean)
    assert follow(values, ema(0.0))[0] == values
    assert follow(values, ema(0.0, warmup="unbiased"))[0] == values


def test_buffers():
    _, averaged = follow([0, 1], ema(0.9), use_buffers=True)
    assert int(averaged.module.steps) == 1
    assert float(averaged.module.mean) == pytest.approx(9 / 11)
    _, averaged = follow([0, 1], ema(0.9))
    assert float(averaged.module.mean) == 1


def test_refusals():
    with pytest.raises(ValueError, match="decay must be"):
        ema(1.5)
    with pytest.raises(ValueError, match="warmup must be"):
        ema(warmup="linear")
