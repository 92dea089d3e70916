"""Five 3 x 3 convolutions with batch norm, about 80,000 weights at width 32: for images of 8 to 32 pixels on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from ..core.checks import at_least

GROWTH = ((1.0, 1.0), (1.5, 1.5), (2.25,))
"""Channels of the convolutions of a block, relative to the first."""


class SmallCNN(nn.Sequential):
    """block1 and block2 halve the sides, block3 does not; then the mean over places and a linear head.

    input_shape: (C, H, W) with sides >= 4 * stride. width >= 4: channels of the first convolution. stride >= 1: its
    stride, which makes a quick network for larger images. taps: block1 and block2.
    """

    taps = ("block1", "block2")

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 32, stride: int = 1) -> None:
        at_least("width", width, 4)
        least = 4 * at_least("stride", stride, 1)
        if len(input_shape) != 3 or min(input_shape[1:]) < least:
            raise ValueError(f"small-cnn needs images (C, H, W) with sides >= {least}, got input_shape {input_shape}")
        before, layers = input_shape[0], OrderedDict[str, nn.Module]()
        for i, growth in enumerate(GROWTH, 1):
            widths = [round(width * factor) for factor in growth]
            block: list[nn.Module] = []
            for inner, outer in pairwise((before, *widths)):
                step = stride if not layers and not block else 1
                conv = nn.Conv2d(inner, outer, 3, stride=step, padding=1, bias=False)
                block += [conv, nn.BatchNorm2d(outer), nn.ReLU()]
            last = i == len(GROWTH)
            block += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if last else [nn.MaxPool2d(2)]
            layers[f"block{i}"] = nn.Sequential(*block)
            before = widths[-1]
        super().__init__(layers | {"head": nn.Linear(before, outputs)})
