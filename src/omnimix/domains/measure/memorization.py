"""How much of the label noise a model has learned by heart: accuracy on parts of the training set, over steps.

Models that resist label noise are right on clean rows before they agree with flipped labels. Source: Qiao, Low,
"Understanding Domain Generalization: A Noise Robustness Perspective", ICLR 2024, arXiv 2401.14846. Each part counts its
rows alike; the authors' code averages domains, whatever number of flipped rows each holds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Memorization:
    """Accuracies on parts of the training set, whose rows are known by their number, whatever order they come in.

    y: (N,) class ids as trained on. flipped: (N,) whether y is wrong. hard: (N,) whether a spurious feature points away
    from y; None: no such part. history: what `record` gave.
    """

    def __init__(self, y: Tensor, flipped: Tensor, hard: Tensor | None = None) -> None:
        self.y = y
        self.parts = {"memorised": flipped, "clean": ~flipped} | ({} if hard is None else {"hard": hard})
        for name, part in self.parts.items():
            if part.dtype != torch.bool or part.shape != y.shape or y.ndim != 1:
                raise ValueError(
                    f"the rows that are {name} must be a mask of the shape of y (N,), got {part.dtype} of shape "
                    f"{tuple(part.shape)} for y {tuple(y.shape)}"
                )
        self.history: list[dict[str, float]] = []

    def record(self, step: int, output: Tensor, index: Tensor | None = None) -> dict[str, float]:
        """{"step", "memorised", "clean", "hard"}: how often the outputs (B, C) of rows `index` (B,) say y; all: None.

        "memorised" is the share on flipped rows. NaN for a part with no row among them.
        """
        index = torch.arange(len(self.y)) if index is None else index.to(self.y.device)
        if output.ndim != 2 or len(output) != len(index):
            raise ValueError(f"output must be (B, C) for {len(index)} rows, got {tuple(output.shape)}")
        right = (output.argmax(dim=1).to(self.y.device) == self.y[index]).double()
        row: dict[str, float] = {"step": step}
        for name, part in self.parts.items():
            here = right[part[index]]
            row[name] = float(here.mean()) if len(here) else math.nan
        self.history.append(row)
        return row
