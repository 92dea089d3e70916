"""Five 3 x 3 convolutions with batch norm, about 80,000 weights: for images of 8 x 8 to 32 x 32 on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

WIDTHS = ((32, 32), (48, 48), (72,))


class SmallCNN(nn.Sequential):
    """block1 and block2 halve the sides, block3 does not; then the mean over places and a linear head.

    input_shape: (C, H, W) with sides >= 4. taps: block1 and block2.
    """

    taps = ("block1", "block2")

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ValueError(f"small-cnn needs images (C, H, W) with sides >= 4, got input_shape {input_shape}")
        before, layers = input_shape[0], OrderedDict[str, nn.Module]()
        for i, widths in enumerate(WIDTHS, 1):
            block: list[nn.Module] = []
            for inner, outer in pairwise((before, *widths)):
                block += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            last = i == len(WIDTHS)
            block += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if last else [nn.MaxPool2d(2)]
            layers[f"block{i}"] = nn.Sequential(*block)
            before = widths[-1]
        super().__init__(layers | {"head": nn.Linear(before, outputs)})
