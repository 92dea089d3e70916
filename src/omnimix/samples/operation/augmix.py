"""AugMix: mix chains of simple augmentations of an image, and ask for the same prediction on all versions of it.

    v(x) = (1 - m) x + m sum_k w_k chain_k(x),   m ~ Beta(1, 1), w ~ Dirichlet(1, .., 1), chains of 1 to 3 operations
    loss = CE(f(x), y) + 12 JS(f(x), f(v1(x)), f(v2(x))),   JS = mean_v KL(p_v || mean p)

Source: Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: A Simple Data Processing Method to Improve
Robustness and Uncertainty", ICLR 2020, arXiv 1912.02781. Cost: 3. The operations are those of PIL on 8-bit images, for
all images at once on their device; those that overlap with the usual test corruptions (colour, contrast) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, positive
from ...core.method import Method
from ...core.operation import require_float
from ...core.random import dirichlet, integers, resolve, uniform
from ...core.registry import register
from ...core.search import Log, Uniform

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
DEPTH = 3


def augment(image: Tensor, operation: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Apply to each image (M, C, H, W), whole floats 0..255, the operation with its number in `OPERATIONS`.

    operation: (M,) numbers; any other number leaves the image. level: (M,) strengths in [0, 10]. sign: (M,) of 1 and
    -1, the direction of geometric operations.
    """
    geometric = (operation >= 4).view(-1, 1, 1, 1)
    table = _tables(image, operation, level)
    mapped = table.gather(2, image.flatten(2).long()).view_as(image)
    return torch.where(geometric, _moved(image, operation, level, sign), mapped)


def _tables(image: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """(M, C, 256) what each level becomes."""
    grey = torch.arange(256, device=image.device)
    flat, level = image.flatten(2), level.view(-1, 1, 1)
    low, high = flat.aminmax(dim=2, keepdim=True)
    stretched = torch.where(high > low, ((grey - low) * (255.0 / (high - low).clamp(min=1.0))).floor(), grey)
    count = image.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat.long(), torch.ones_like(flat))
    step = ((flat.shape[2] - count.gather(2, high.long())) / 255.0).floor()
    below = count.cumsum(dim=2) - count
    equal = torch.where(step > 0, ((step / 2).floor() + below).div(step.clamp(min=1.0)).floor(), grey)
    coarse = 2.0 ** (4.0 + (level * 0.4).floor())
    posterized = (grey / coarse).floor() * coarse
    solarized = torch.where(grey < 256 - (level * 25.6).floor(), grey, 255 - grey)
    table = grey.float().expand_as(count)
    for number, other in enumerate((stretched, equal, posterized, solarized)):
        table = torch.where((operation == number).view(-1, 1, 1), other.clamp(0, 255), table)
    return table


def _moved(image: Tensor, operation: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """The images rotated, sheared or shifted, black where nothing was; cells between cells are interpolated."""
    height, width = image.shape[2:]
    is_a = [operation == OPERATIONS.index(name) for name in OPERATIONS[4:]]
    zero = torch.zeros_like(level)
    angle = torch.where(is_a[0], sign * (level * 3.0).floor(), zero) * (math.pi / 180)
    shear = 0.03 * sign * level
    shift = [sign * (level * side / 30.0).floor() for side in (width, height)]
    x = torch.arange(width, device=image.device) + 0.5
    y = (torch.arange(height, device=image.device) + 0.5).unsqueeze(1)
    cos, sin = (v.view(-1, 1, 1) for v in (angle.cos(), angle.sin()))
    about_x, about_y = x - width / 2, y - height / 2
    where = [torch.where(*pair, zero).view(-1, 1, 1) for pair in zip(is_a[1:], (shear, shear, *shift), strict=True)]
    source_x = cos * about_x - sin * about_y + width / 2 + where[0] * y + where[2]
    source_y = sin * about_x + cos * about_y + height / 2 + where[1] * x + where[3]
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    grid = torch.stack((source_x * (2.0 / width) - 1.0, source_y * (2.0 / height) - 1.0), dim=-1)
    found = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    # Less the rounding of coordinates, cells that fall on cells keep their level; as PIL does, the rest is cut off.
    return (found + 1e-2).floor() * inside.unsqueeze(1)


def augmix(
    x: Tensor,
    severity: float = 3.0,
    width: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One AugMix version of each image, of x's shape and type; labels stay.

    x: float tensor (B, C, H, W). severity in (0, 10]: how strong the operations are. width: chains per image. mean,
    std: with which images in [0, 1] were normalised channel by channel; None: the batch's least and greatest values in
    each channel are taken for black and white. ValueError for other inputs and arguments out of range.
    """
    require_float(x)
    if x.ndim != 4:
        raise ValueError(f"augmix takes images (B, C, H, W), got shape {tuple(x.shape)}")
    _check_severity(severity)
    source, (black, white) = resolve(generator), _range(x, mean, std)
    rows, many = len(x), len(x) * at_least("width", width, 1)
    share = (
        torch.cat((dirichlet(1.0, rows, 2, source), dirichlet(1.0, rows, width, source)), dim=1).to(x.device).float()
    )
    depth = integers(DEPTH, many, generator=source)
    operation = integers(len(OPERATIONS), DEPTH, many, generator=source)
    operation = operation.where(torch.arange(DEPTH, device=source.device).unsqueeze(1) <= depth, -1).to(x.device)
    level = (0.1 + (severity - 0.1) * uniform(DEPTH, many, generator=source)).to(x.device).float()
    sign = (2 * integers(2, DEPTH, many, generator=source) - 1).to(x.device)
    image = ((x.float() - black) / (white - black) * 255.0).round().clamp(0, 255)
    chain = image.repeat(width, 1, 1, 1)
    for step in range(DEPTH):
        chain = augment(chain, operation[step], level[step], sign[step])
    chain = (chain.view(width, *image.shape) * share[:, 2:].T.reshape(width, rows, 1, 1, 1)).sum(dim=0)
    mixed = torch.lerp(x.float(), chain / 255.0 * (white - black) + black, share[:, :1].view(-1, 1, 1, 1))
    return mixed.to(x.dtype)


def _check_severity(severity: float) -> float:
    if positive("severity", severity) > 10:
        raise ValueError(f"severity must be a number in (0, 10], got {severity!r}")
    return severity


def _range(x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """(black, white) values, (1, C, 1, 1) each."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together: give both or neither, got mean={mean!r}, std={std!r}")
    if mean is not None and std is not None:
        if not len(mean) == len(std) == x.shape[1] or min(std) <= 0:
            raise ValueError(
                f"mean and std (> 0) must hold one number for each of {x.shape[1]} channels: {mean}, {std}"
            )
        centre, spread = (torch.tensor(v, device=x.device).float().view(1, -1, 1, 1) for v in (mean, std))
        return -centre / spread, (1.0 - centre) / spread
    black, white = (f(x.float(), dim=(0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return black, torch.where(white > black, white, black + 1.0)


def jensen_shannon(logits: Tensor) -> Tensor:
    """(B,) how far the softmax predictions of the versions (V, B, C) of each sample are from their mean, in nats."""
    log_p = logits.float().log_softmax(dim=2)
    p = log_p.exp()
    mean = p.mean(dim=0).clamp(1e-7, 1.0).log()
    return (p * (log_p - mean)).sum(dim=2).mean(dim=0)


@register(
    "augmix",
    paper="AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020, arXiv 1912.02781",
    tasks=("classification",),
    cost=3.0,
    inputs=("image",),
    search={"severity": Uniform(1, 10), "weight": Log(1, 30)},
)
class AugMix(Method):
    """Train on clean images and for the same prediction on them and two mixed augmentations of each.

    severity, width, mean, std: see `augmix`, which alone is the paper's variant without the consistency loss. weight:
    > 0, of the consistency.
    """

    def __init__(
        self,
        severity: float = 3.0,
        width: int = 3,
        weight: float = 12.0,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.severity, self.weight = _check_severity(severity), positive("weight", weight)
        self.width, self.mean, self.std = at_least("width", width, 1), mean, std

    def versions(self, x: Tensor) -> Tensor:
        """(3B, C, H, W): the images and two AugMix versions of each."""
        options: dict[str, Any] = {"mean": self.mean, "std": self.std, "generator": self.generator}
        return torch.cat((x, *(augmix(x, self.severity, self.width, **options) for _ in range(2))))

    def loss(self, model: nn.Module, batch: Any, **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        output = model(self.versions(batch.x))
        clean = self.task.mean_loss(output[: len(batch)], batch.y)
        return clean + self.weight * jensen_shannon(output.view(3, len(batch), -1)).mean()
