import pytest
import torch
from scipy import stats
from torch import nn

import omnimix as om
from omnimix.samples.operation import CutMix, Mixup, MixupOrCutMix


def test_the_defaults_are_those_of_timm():
    method = om.create("mixup-or-cutmix")
    mixup, cutmix = method.methods
    assert type(mixup) is Mixup
    assert type(cutmix) is CutMix
    assert (mixup.ratio.alpha, cutmix.ratio.alpha) == (0.8, 1.0)
    assert method.probabilities == [0.5, 0.5]


def test_each_batch_is_one_or_the_other():
    method = MixupOrCutMix(switch_prob=0.3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    method.setup(model, om.Classification(3), generator=torch.Generator().manual_seed(0))
    cut = sum(isinstance(method._current(), CutMix) for _ in range(1000))
    assert stats.binomtest(cut, 1000, 0.3).pvalue > 0.01


def test_refusals():
    with pytest.raises(ValueError, match=r"switch_prob must be a number in \[0, 1\], got 2"):
        MixupOrCutMix(switch_prob=2)
