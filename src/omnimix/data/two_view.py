"""Two views of every class, stacked as channels: a training image shows its own class and a fixed partner class.

    train: (w x, (1 - w) x2), w ~ U(0, 1) at every access, x2 a random image of class pi(y);   test: (x, 0)

Source: the CatChannel benchmark of Chidambaram, Wang, Wu, Ge, "Provably Learning Diverse Features in Multi-View Data
with Midpoint Mixup", ICML 2023, arXiv 2210.13512. A network that leans on the second view fails the test.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..core.random import permutation, uniform


def pair_classes(classes: int, generator: torch.Generator) -> Tensor:
    """pi (classes,): a random involution without fixed points; ValueError for an odd number of classes."""
    if classes < 2 or classes % 2:
        raise ValueError(f"classes must be even to be paired, got {classes}; leave one class out")
    order = permutation(classes, generator).cpu()
    pi = torch.empty(classes, dtype=torch.long)
    pi[order[0::2]], pi[order[1::2]] = order[1::2], order[0::2]
    return pi


def one_view(x: Tensor) -> Tensor:
    """Test inputs (B, 2C, ...): the images (B, C, ...) and zeros for the second view."""
    return torch.cat((x, torch.zeros_like(x)), dim=1)


class TwoView(Dataset[tuple[Tensor, Tensor]]):
    """The training set: rows (2C, H, W) and class ids. The second images are drawn once, the weights at every access.

    x: float (N, C, ...). y: class ids (N,) of 0..classes-1, each present, classes even. generator: the pairing, the
    images and the weights (in DataLoader workers PyTorch's worker seed takes over for the weights).
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int, generator: torch.Generator) -> None:
        self.x, self.y, self.generator = x, y, generator
        self.pi = pair_classes(classes, generator)
        count = torch.bincount(y, minlength=classes)
        if len(count) != classes or bool((count == 0).any()):
            raise ValueError(f"y must hold every class 0..{classes - 1}, its counts are {count.tolist()}")
        start, other = count.cumsum(0) - count, self.pi[y]
        draw = (uniform(len(y), generator=generator).cpu() * count[other]).long()
        self.second = y.argsort(stable=True)[start[other] + draw]
        """(N,) rows of the second images."""
        self._worker: tuple[int, torch.Generator] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.take(torch.tensor([row]))[0], self.y[row]

    def take(self, rows: Tensor) -> Tensor:
        """(n, 2C, ...) inputs of `rows` (n,), with fresh weights."""
        first, second = self.x[rows], self.x[self.second[rows]]
        w = uniform(len(rows), generator=self._source()).to(first.device, first.dtype)
        w = w.view(-1, *[1] * (first.ndim - 1))
        return torch.cat((w * first, (1 - w) * second), dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draws of the weights are, for checkpoints; those of DataLoader workers follow PyTorch's seed."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.generator.set_state(state["generator"])

    def _source(self) -> torch.Generator:
        worker = get_worker_info()
        if worker is None:
            return self.generator
        if self._worker is None or self._worker[0] != worker.seed:
            self._worker = worker.seed, torch.Generator().manual_seed(worker.seed)
        return self._worker[1]
