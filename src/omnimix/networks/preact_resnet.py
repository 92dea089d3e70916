"""Pre-activation residual networks for small images.

    h + conv(dropout(relu(bn(conv(relu(bn(h)))))))

Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ..core.checks import at_least, in_unit


def _conv3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions; where the shape changes, the shortcut is a 1 x 1 convolution of the activated input."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        drop = [nn.Dropout(dropout)] if dropout else []
        self.rest = nn.Sequential(
            _conv3(before, after, stride), nn.BatchNorm2d(after), nn.ReLU(), *drop, _conv3(after, after)
        )
        changes = before != after or stride != 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        total: Tensor = self.rest(z) + (x if self.shortcut is None else self.shortcut(z))
        return total


class PreActResNet(nn.Sequential):
    """A 3 x 3 stem, stages layer1, layer2, ... of pre-activation blocks, the mean over places and a linear head.

    widths: channels of the stages; all but the first halve the sides. blocks: blocks a stage. dropout: between the
    convolutions of a block. taps: layer1 and layer2, whose outputs are the residual sums that the next stage consumes.
    """

    taps = ("layer1", "layer2")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        dropout: float = 0.0,
    ) -> None:
        in_unit("dropout", dropout)
        if len(input_shape) != 3:
            raise ValueError(f"residual networks need images (C, H, W), got input_shape {input_shape}")
        layers, before = OrderedDict[str, nn.Module](stem=_conv3(input_shape[0], stem)), stem
        for i, after in enumerate(widths, 1):
            stage = [PreActBlock(before, after, 1 if i == 1 else 2, dropout)]
            stage += [PreActBlock(after, after, 1, dropout) for _ in range(blocks - 1)]
            layers[f"layer{i}"] = nn.Sequential(*stage)
            before = after
        layers["last"] = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(layers | {"head": nn.Linear(before, outputs)})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def preact_resnet18(input_shape: tuple[int, ...], outputs: int, width: int = 64) -> PreActResNet:
    """PreActResNet-18 as used on CIFAR: no pooling after the stem; stages of width, 2, 4 and 8 times width."""
    at_least("width", width, 1)
    return PreActResNet(input_shape, outputs, width, [width * 2**i for i in range(4)], blocks=2)
