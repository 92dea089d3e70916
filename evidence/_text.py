"""What the evidence scripts of small language models share: batches of packed text by domain, and a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from omnimix.core import checkpoint as files
from omnimix.corpora.proxy import Packed


class Reader:
    """Training batches with the same number of rows of each domain, every sequence once before any comes again."""

    def __init__(self, packed: Packed, domains: Sequence[str], rows: int, seed: int, context: int) -> None:
        self.packed, self.domains, self.rows, self.context = packed, domains, rows, context
        self.random, self.waiting = np.random.default_rng(seed), {name: np.empty(0, int) for name in domains}

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets, and the domain of every row as its place in `domains`."""
        index = []
        for name in self.domains:
            while len(self.waiting[name]) < self.rows:
                size = self.packed.sequences("train", self.context)[self.packed.domains.index(name)]
                self.waiting[name] = np.append(self.waiting[name], self.random.permutation(size))
            index.append(self.waiting[name][: self.rows])
            self.waiting[name] = self.waiting[name][self.rows :]
        domain = np.repeat([self.packed.domains.index(name) for name in self.domains], self.rows)
        inputs, targets = self.packed.read("train", domain, np.concatenate(index), self.context)
        return inputs, targets, torch.arange(len(self.domains)).repeat_interleave(self.rows)


def held_out(packed: Packed, part: str, domain: str, count: int, context: int) -> tuple[Tensor, Tensor]:
    """The same `count` sequences for every seed and arm, spread over the part."""
    place = packed.domains.index(domain)
    size = int(packed.sequences(part, context)[place]) - 1  # the last one is short
    index = np.linspace(0, size - 1, min(count, size)).round().astype(int)
    return packed.read(part, np.full(len(index), place), index, context)


def optimise(
    model: nn.Module, reader: Reader, steps: int, lr: float, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    """AdamW with a tenth of warm-up and a cosine. loss: of a batch, as the reader gives it."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    for step in range(steps):
        batch = reader.next()
        rate = min(1.0, (step + 1) / (0.1 * steps)) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        optimizer.zero_grad()
        loss(*batch).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def trained(file: Path, model: nn.Module, train: Callable[[], None]) -> nn.Module:
    """The model as `train` leaves it, computed once, for evaluation."""
    if file.exists():
        model.load_state_dict(files.load(file)["model"])
    else:
        train()
        files.save(file, {"model": model.state_dict()})
    return model.eval()
