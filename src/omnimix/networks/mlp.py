"""The multi-layer perceptron of the tabular comparisons: d-128-128-outputs with LeakyReLU(0.1).

Source: the network of "C-Mixup: Improving Generalization in Regression", NeurIPS 2022, arXiv 2210.05775.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ..core.checks import at_least, one_of


class MLP(nn.Sequential):
    """Hidden layers block1, block2, ... (linear and activation) and a linear head; inputs are flattened.

    taps: the first two blocks. hidden: widths, at least one. activation: "leaky-relu-0.1" or "relu".
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        hidden: Sequence[int] = (128, 128),
        activation: str = "leaky-relu-0.1",
    ) -> None:
        one_of("activation", activation, ("leaky-relu-0.1", "relu"))
        if not isinstance(hidden, Sequence) or not hidden:
            raise ValueError(f"hidden must be a sequence of one width or more, got {hidden!r}")
        width, layers = math.prod(input_shape), OrderedDict[str, nn.Module](flat=nn.Flatten())
        for i, wide in enumerate(hidden, 1):
            bend = nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.1)
            layers[f"block{i}"] = nn.Sequential(nn.Linear(width, at_least("hidden", wide, 1)), bend)
            width = wide
        self.taps = tuple(layers)[1:3]
        super().__init__(layers | {"head": nn.Linear(width, outputs)})
