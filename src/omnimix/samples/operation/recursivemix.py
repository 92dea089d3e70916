"""RecursiveMix: paste the whole previous mixed batch, shrunken, into the new one, and keep what was predicted for it.

    x~_t = x_t with x~_(t-1) resized to a box of area a ~ U(0, alpha), clipped;   y~_t = (1 - a) y_t + a y~_(t-1)
    loss = CE(f(x~_t), y~_t) + omega a CE(head(map pooled over the box), softmax f(x~_(t-1)))

Source: Yang, Li, Zhang, Luo, Ding, Zhao, Zheng, "RecursiveMix: Mixed Learning with History", NeurIPS 2022, arXiv
2203.06844. Cost: 1. Samples meet the row of the same number. The first batch of a pass over the data, and one larger
than the batch before, are trained on unmixed. The box of the map is pooled by the head of the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative
from ...core.method import Method, Setup
from ...core.operation import require_float
from ...core.random import integers, uniform
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.split import Split, observe
from ..saliency import feature_map
from .cutmix import cut_box


def box_mean(h: Tensor, box: Sequence[slice], size: Sequence[int]) -> Tensor:
    """(B, C) the mean over a box of cells of a grid `size`, in the coarser maps h (B, C, *spatial).

    As RoI align with one bin: the mean of values interpolated at ceil(side) points along each side of the box.
    """
    for part, side in zip(reversed(box), reversed(size), strict=True):
        cells, scale = h.shape[-1], h.shape[-1] / side
        length = (part.stop - part.start) * scale
        points = max(1, math.ceil(length))
        where = part.start * scale - 0.5 + (torch.arange(points, device=h.device) + 0.5) * (length / points)
        where = where.clamp(0, cells - 1).unsqueeze(1)
        weight = (1.0 - (where - torch.arange(cells, device=h.device)).abs()).clamp(min=0).mean(dim=0)
        h = h @ weight.to(h.dtype)
    return h


@register(
    "recursivemix",
    paper="RecursiveMix: Mixed Learning with History, NeurIPS 2022, arXiv 2203.06844",
    tasks=("classification",),
    inputs=("image",),
    search={"alpha": Uniform(0.1, 0.9), "omega": Log(0.03, 3)},
)
class RecursiveMix(Method):
    """Paste the previous mixed batch, shrunken, into a box of the new one, and ask for consistency in the box.

    alpha in [0, 1]: the greatest area of the box. omega: weight of the consistency (the paper: .5 on ImageNet, .1 on
    CIFAR-10); 0 asks for none. tap: the name of the module that gives the last map, whose mean over places the linear
    head takes; None finds it at the first batch that is mixed.
    """

    def __init__(self, alpha: float = 0.5, omega: float = 0.5, tap: str | None = None) -> None:
        self.alpha, self.omega, self.tap = in_unit("alpha", alpha), non_negative("omega", omega), tap

    def on_setup(self, given: Setup) -> None:
        self._split, self._tap = given.split or Split(given.model), self.tap
        self._old: dict[str, Tensor] = {}

    def before_epoch(self) -> None:
        self._old = {}

    def loss(self, model: nn.Module, batch: Any, **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        require_float(batch.x)
        x, target, box, share = self._paste(batch.x, self.task.soft_target(batch.y))
        if not share or not self.omega:
            output: Tensor = model(x)
            loss = self.task.mean_loss(output, target)
        else:
            if self._tap is None:
                self._tap = feature_map(model, x[:1])[0]
            with observe(model, self._tap) as seen:
                output = model(x)
            inside = self._split.head(box_mean(seen[self._tap], box, x.shape[2:]))
            before = self._old["output"][: len(x)].softmax(dim=1)
            loss = self.task.mean_loss(output, target) + self.omega * share * self.task.mean_loss(inside, before)
        self._old = {"x": x.detach(), "target": target.detach(), "output": output.detach()}
        return loss

    def _paste(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, list[slice], float]:
        """(mixed inputs, mixed targets, the box, its share of the cells)."""
        size = x.shape[2:]
        area = self.alpha * float(uniform(1, generator=self.generator))
        centre = [int(integers(side, 1, generator=self.generator)) for side in size]
        box = cut_box(1.0 - area, size, centre)
        sides = [part.stop - part.start for part in box]
        if not self._old or len(self._old["x"]) < len(x) or self._old["x"].shape[1:] != x.shape[1:] or 0 in sides:
            return x, target, box, 0.0
        share, mixed = math.prod(sides) / math.prod(size), x.clone()
        inside: tuple[Any, ...] = (..., *box)
        mixed[inside] = F.interpolate(self._old["x"][: len(x)], sides, mode="nearest").to(x.dtype)
        return mixed, torch.lerp(target, self._old["target"][: len(x)].to(target.dtype), share), box, share

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "old": dict(self._old)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        device = next(self._given().model.parameters()).device
        self._old = {name: value.to(device) for name, value in state["old"].items()}
