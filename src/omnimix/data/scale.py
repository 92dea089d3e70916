"""Imputation and scaling of inputs, with parameters from the training rows only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.checks import one_of

Kind = Literal["standard", "minmax", "none"]
KINDS = ("standard", "minmax", "none")


@dataclass(frozen=True, eq=False)
class Scaler:
    """x -> (x - shift) / scale for each column of a table or channel of an image; NaN becomes `fill` before.

    "standard" takes mean and standard deviation, "minmax" minimum and range, "none" changes nothing but NaN. fill is
    the column's median (0 where it has no value at all). A constant column keeps scale 1.
    """

    kind: Kind
    shift: Tensor
    scale: Tensor
    fill: Tensor | None = None

    @staticmethod
    def fit(x: Tensor, kind: Kind = "standard") -> Scaler:
        """From training rows x: a table (n, D), NaN allowed, or images (n, C, H, W)."""
        one_of("kind", kind, KINDS)
        if x.ndim > 2:
            return Scaler.fit_images((x,), kind)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"x must be (n, D) with n > 0, or images; got {tuple(x.shape)}")
        values = x.double().numpy()
        absent = np.isnan(values)
        empty = absent.all(axis=0)
        fill = np.nanmedian(np.where(empty, 0.0, values), axis=0)
        values = np.where(absent, fill, values)
        low, high = values.min(axis=0), values.max(axis=0)
        return _scaler(kind, values.mean(axis=0), values.std(axis=0), low, high, _float(fill))

    @staticmethod
    def fit_images(chunks: Iterable[Tensor], kind: Kind = "standard") -> Scaler:
        """From training images that come in chunks (n, C, ...); one mean and deviation a channel."""
        one_of("kind", kind, KINDS)
        count, parts = 0, []
        for chunk in chunks:
            pixels = chunk.double().transpose(0, 1).flatten(1)
            count += pixels.shape[1]
            parts.append(torch.stack((pixels.sum(1), pixels.square().sum(1), pixels.amin(1), pixels.amax(1))))
        if not count:
            raise ValueError("there are no images to fit the scaler on")
        total = torch.stack(parts)
        mean = total[:, 0].sum(0) / count
        deviation = (total[:, 1].sum(0) / count - mean.square()).clamp(min=0).sqrt()
        low, high = total[:, 2].amin(0), total[:, 3].amax(0)
        return _scaler(kind, mean.numpy(), deviation.numpy(), low.numpy(), high.numpy(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """Imputed and scaled x, same shape, float32."""
        across = (1, -1) + (1,) * (x.ndim - 2)
        if self.fill is not None:
            x = torch.where(x.isnan(), self.fill.to(x.device).view(across), x)
        if self.kind == "none":
            return x
        return (x - self.shift.to(x.device).view(across)) / self.scale.to(x.device).view(across)


def _float(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _scaler(kind: Kind, mean: Any, deviation: Any, low: Any, high: Any, fill: Tensor | None) -> Scaler:
    shift, scale = (low, high - low) if kind == "minmax" else (mean, deviation)
    return Scaler(kind, _float(shift), _float(np.where(high > low, scale, 1.0)), fill)
