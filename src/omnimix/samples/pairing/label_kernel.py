"""Partners with a similar label: drawn with a probability that falls with the distance between the labels.

    P_ij = w_ij / sum_k w_ik,   w_ij = exp(-||y_i - y_j||^2 / (2 h^2))   (or top-hat: w_ij = 1 where ||y_i - y_j|| <= h)

Source: Yao et al., "C-Mixup: Improving Generalization in Regression", NeurIPS 2022, arXiv 2210.05775. The sample itself
is a candidate, always the likeliest. Draws are exact and never build the N x N matrix of a large set: scalar labels
take one sort and then O(1) expected work a draw, vector labels O(N) a draw.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.checks import at_least, one_of, positive
from ...core.pairing import NONE, InBatch, InTable
from ...core.random import integers
from ...core.table import Table
from .label_draws import KERNELS, SMALL, ExplicitRows, Kernel, SortedLabels, choose, distances, log_weights


def label_kernel_probabilities(labels: Tensor, bandwidth: float, kernel: Kernel = "gaussian") -> Tensor:
    """(N, N) float64 P: row i holds the probabilities of the partners of sample i; for small N.

    labels: real (N,) or (N, D). bandwidth > 0, in label units. ValueError for class ids and arguments out of range.
    """
    y = _real(labels)
    positive("bandwidth", bandwidth)
    return log_weights(distances(y, y), bandwidth, one_of("kernel", kernel, KERNELS)).softmax(dim=1)


class LabelKernel(InTable):
    """Partners from the whole training set, drawn by the label kernel with replacement; the table needs "label".

    bandwidth: h > 0 in label units; None takes a quarter of the labels' standard deviation (for vector labels, of their
    root mean square distance from the mean). kernel: "gaussian", or "tophat" (edges included). k: how many samples are
    mixed into one, itself included. ValueError for class ids, which have no distance.
    """

    def __init__(self, bandwidth: float | None = None, kernel: Kernel = "gaussian", k: int = 2) -> None:
        self.bandwidth = None if bandwidth is None else positive("bandwidth", bandwidth)
        self.kernel: Kernel = one_of("kernel", kernel, KERNELS)
        self.k = at_least("k", k, 2)
        self._rows: ExplicitRows | SortedLabels | None = None

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        if table is None:
            raise ValueError("LabelKernel needs the labels of the training set: pass table=omnimix.Table(label=...)")
        y = _real(_labels(table, self.bandwidth).cpu())
        width = _quarter_sd(y).item() if self.bandwidth is None else self.bandwidth
        self._rows = (SortedLabels if y.ndim == 1 and len(y) > SMALL else ExplicitRows)(y, width, self.kernel)

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor:
        return self.draw(index, generator)  # every row has a candidate, itself: nothing to replace or to count

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        if self._rows is None:
            raise ValueError("call LabelKernel.prepare(table, generator) (setup does) before drawing partners")
        return self._rows.draw(index.cpu(), self.k - 1, generator).to(index.device)


class BatchLabelKernel(InBatch):
    """Partners by the label kernel among the rows of the batch: for large images or high-dimensional labels.

    After `prepare` with a table, the loader adds a uniform guest for each anchor, and partners come from all 2B rows
    ("C-Mixup-batch" of the reference); without one, from the B rows of the batch. bandwidth None: a quarter of the
    standard deviation of the table's labels, else of the batch's. domain="different": only rows of another domain, a
    row without any stays unmixed (the reference's satellite images). Others: see `LabelKernel`.
    """

    def __init__(
        self,
        bandwidth: float | None = None,
        kernel: Kernel = "gaussian",
        k: int = 2,
        *,
        domain: Literal["any", "different"] = "any",
    ) -> None:
        self.bandwidth = None if bandwidth is None else positive("bandwidth", bandwidth)
        self.kernel: Kernel = one_of("kernel", kernel, KERNELS)
        self.k = at_least("k", k, 2)
        self.domain = one_of("domain", domain, ("any", "different"))
        self._size, self._width = 0, self.bandwidth
        self._y: Tensor | None = None

    def prepare(self, table: Table | None, generator: torch.Generator) -> None:
        self._size, self._width = 0 if table is None else len(table), self.bandwidth
        self._y = None if table is None or "label" not in table else _real(_labels(table, self.bandwidth))
        if self._width is None and self._y is not None:
            self._width = _quarter_sd(self._y).item()

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor | None:
        return integers(self._size, len(index), 1, generator=generator).to(index.device) if self._size else None

    def partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        y = _real(batch.y)
        if self._y is not None and batch.index is not None:
            y = self._y[batch.index.to(self._y.device)].to(batch.device)
        width = _quarter_sd(y) if self._width is None else self._width
        log_weight = log_weights(distances(y[: len(batch)], y), width, self.kernel)
        if self.domain == "any":
            return choose(log_weight.exp_().cumsum(dim=1), self.k - 1, generator)
        if batch.domain is None:
            raise ValueError("domain='different' needs batch.domain: the domain of every row of the batch")
        same = batch.domain[: len(batch)].unsqueeze(1) == batch.domain
        cumulated = log_weight.masked_fill_(same, -torch.inf).softmax(dim=1).cumsum(dim=1)
        return torch.where(cumulated[:, -1:].isnan(), NONE, choose(cumulated, self.k - 1, generator))


def _labels(table: Table, bandwidth: float | None) -> Tensor:
    """The labels in the units of `bandwidth`: as they were before any normalisation, if one is given."""
    return table["raw_label" if bandwidth is not None and "raw_label" in table else "label"]


def _real(labels: Tensor) -> Tensor:
    """The labels as float64 (N,) or (N, D)."""
    if not labels.is_floating_point():
        raise ValueError(
            f"the label kernel needs real-valued labels, got {labels.dtype}: class ids have no distance; "
            "for classification use mixup or selective-mixup"
        )
    y = labels.double()
    if y.ndim == 0 or len(y) == 0 or (y.device.type == "cpu" and not bool(y.isfinite().all())):
        raise ValueError(f"labels must be finite numbers of shape (N,) or (N, D), got {labels}")
    return y.flatten() if y[0].numel() == 1 else y.flatten(1)


def _quarter_sd(y: Tensor) -> Tensor:
    spread = (y - y.mean(dim=0)).view(len(y), -1).square().sum(dim=1).mean().sqrt()
    return (0.25 * spread).clamp(min=torch.finfo(y.dtype).tiny)  # equal labels: any bandwidth is uniform
