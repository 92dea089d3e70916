"""Drop-in replacements for `timm.data.Mixup` and `FastCollateMixup`, for odd batches too.

Same arguments, same targets, and the same partners: row i meets row B - 1 - i, which makes the pairs of mode "pair";
loaders shuffle, so a permutation would change nothing. Of an odd batch the middle row stays as it is. Boxes are as
large as in timm 1.0.31 (5 pixels where a side is to be 5); older versions rounded odd sides down to the even number
below. What differs:
inputs are not changed in place, randomness comes from a generator, soft targets are mixed too, and samples that are
mixed one by one are mixed at once, also on a GPU. timm itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..core.checks import at_least, in_unit, non_negative, one_of
from ..core.operation import blend, require_float
from ..core.random import dirichlet, integers, resolve, uniform
from ..core.recipe import one_hot
from ..samples.operation.cutmix import outside


class Mixup:
    """`x, target = Mixup(num_classes=10)(x, target)` mixes a batch by mixup or CutMix; the target becomes soft.

    mixup_alpha, cutmix_alpha >= 0: of Beta(alpha, alpha); 0 turns that one off. cutmix_minmax: (low, high) bounds of
    the box's sides relative to the image's, in place of cutmix_alpha. prob: how often a batch or a sample is mixed.
    switch_prob: how often by CutMix where both are on. mode: one draw for the "batch", for each "pair", or each sample
    ("elem"). correct_lam: labels by the area of the clipped box. label_smoothing: in [0, 1], before mixing: a share for
    all classes alike; with multi_label towards 0.5. generator: None takes one for each loader worker.

    x: (B, C, H, W) floats. target: class ids (B,), or one-hot, soft or (multi_label) multi-hot (B, num_classes).
    Setting `mixup_enabled = False` stops the mixing; targets are still smoothed. ValueError for other inputs.
    """

    modes: tuple[str, ...] = ("batch", "pair", "elem")

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if cutmix_minmax is not None and (len(cutmix_minmax) != 2 or not 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1):
            raise ValueError(f"cutmix_minmax must be (low, high) with 0 <= low < high <= 1, got {cutmix_minmax!r}")
        self.mixup_alpha = non_negative("mixup_alpha", mixup_alpha)
        self.cutmix_alpha = non_negative("cutmix_alpha", cutmix_alpha) if cutmix_minmax is None else 1.0
        if not self.mixup_alpha and not self.cutmix_alpha:
            raise ValueError("one of mixup_alpha, cutmix_alpha must be > 0, or cutmix_minmax be given")
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob, self.switch_prob = in_unit("prob", prob), in_unit("switch_prob", switch_prob)
        self.mode = one_of("mode", mode, self.modes)
        self.correct_lam, self.multi_label = correct_lam, multi_label
        self.label_smoothing = in_unit("label_smoothing", label_smoothing)
        self.num_classes = at_least("num_classes", num_classes, 1)
        self.generator = generator
        resolve(generator)
        self.mixup_enabled = True

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(mixed x, soft target (B, num_classes)); x and target are left as they are."""
        require_float(x)
        mixed, lam = self._mix(x)
        return mixed, self._target(target, lam)

    def _mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed x, and (B, 1) the share of each row in its label."""
        if x.ndim != 4 or len(x) == 0:
            raise ValueError(f"x must be images (B, C, H, W), got {tuple(x.shape)}")
        count, size, source = len(x), x.shape[2:], resolve(self.generator)
        draws = {"batch": 1, "pair": (count + 1) // 2}.get(self.mode, count)
        lam, box = self._draw(draws, source)
        weight = lam.to(x.device, x.dtype).view(-1, 1, 1, 1)
        if self.cutmix_alpha > 0:
            low, high = (edge.to(x.device) for edge in self._boxes(lam, box, size, source))
            lam, box = lam.to(x.device), box.to(x.device)
            weight = torch.where(box.view(-1, 1, 1, 1), outside(low, high, size).to(x.dtype), weight)
            if self.correct_lam or self.cutmix_minmax is not None:
                lam = torch.where(box, 1 - (high - low).prod(dim=1) / (size[0] * size[1]), lam)
        lam, own = lam.to(x.device, torch.float32), torch.arange(count, device=x.device)
        if self.mode == "pair":  # rows i and B - 1 - i share a draw
            weight, lam = (value[torch.minimum(own, own.flip(0))] for value in (weight, lam))
        return blend(x, own.flip(0), weight), lam.expand(count).unsqueeze(1)

    def _draw(self, draws: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """(draws,) shares of the row itself, and whether its partner is shown in a box."""
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        box = uniform(draws, generator=source) < (self.switch_prob if both else float(self.cutmix_alpha > 0))
        lam = torch.ones(draws, dtype=torch.float64, device=source.device)
        for alpha, chosen in ((self.mixup_alpha, ~box), (self.cutmix_alpha, box)):
            if alpha > 0:
                lam = torch.where(chosen, dirichlet(alpha, draws, 2, source)[:, 0], lam)
        mixes = uniform(draws, generator=source) < (self.mix_prob if self.mixup_enabled else 0.0)
        return torch.where(mixes, lam, 1.0), box & mixes

    def _boxes(self, lam: Tensor, box: Tensor, size: Sequence[int], source: torch.Generator) -> tuple[Tensor, Tensor]:
        """First cells in and behind the boxes, (draws, 2) each; empty where `box` is False."""
        edges = []
        for side in size:
            if self.cutmix_minmax is None:
                cut = (side * (1 - lam).sqrt()).long()
                centre = integers(side, len(lam), generator=source)
                low, high = (centre - cut // 2).clamp(min=0), (centre + (cut + 1) // 2).clamp(max=side)
            else:
                least, most = (int(side * bound) for bound in self.cutmix_minmax)
                cut = least + integers(max(most - least, 1), len(lam), generator=source)
                low = (uniform(len(lam), generator=source) * (side - cut + 1)).long()
                high = low + cut
            edges.append((low, torch.where(box, high, low)))
        low, high = (torch.stack(ends, dim=1) for ends in zip(*edges, strict=True))
        return low, high

    def _target(self, target: Tensor, lam: Tensor) -> Tensor:
        """The smoothed targets, mixed."""
        if target.shape[0] != len(lam) or target.shape[1:] not in ((), (self.num_classes,)):
            raise ValueError(
                f"target must be class ids ({len(lam)},) or ({len(lam)}, {self.num_classes}), "
                f"got {tuple(target.shape)}; set num_classes"
            )
        if target.ndim == 1 and self.multi_label:
            raise ValueError("multi_label needs targets (B, num_classes), got class ids (B,)")
        soft = one_hot(target, self.num_classes) if target.ndim == 1 else target.float()
        level = 0.5 if self.multi_label else 1 / self.num_classes
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing * level
        return torch.lerp(soft.flip(0), soft, lam.to(soft.device))


class FastCollateMixup(Mixup):
    """Mix while samples are collated: `DataLoader(..., collate_fn=FastCollateMixup(num_classes=10))`, or timm's loader.

    Samples are (8-bit image (C, H, W), an array or a tensor; label); the batch is 8-bit again, rounded. mode "half" is
    "elem", of which only the first half of the batch is kept. Others: see `Mixup`.
    """

    modes = (*Mixup.modes, "half")

    def __call__(self, batch: Sequence[Any], _: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(8-bit images (B, C, H, W), soft target (B, num_classes))."""
        images = [torch.from_numpy(i) if isinstance(i, np.ndarray) else i for i, _ in batch]
        if any(not isinstance(i, Tensor) or i.dtype != torch.uint8 for i in images):
            raise ValueError("FastCollateMixup takes 8-bit images (arrays or tensors); use Mixup for others")
        mixed, lam = self._mix(torch.stack(images).float())
        target = self._target(default_collate([label for _, label in batch]), lam)
        kept = (len(batch) + 1) // 2 if self.mode == "half" else len(batch)
        return mixed[:kept].round_().to(torch.uint8), target[:kept]
