"""The plain training loop of the small evidence experiments: shuffle, mix, Adam; one thread, one seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import omnimix as om


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network that `build` makes under `seed`: equal initial weights for every arm of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(
    method: om.Method,
    model: nn.Module,
    task: om.Task,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    epochs: int,
    batch: int,
    lr: float,
) -> nn.Module:
    """Train `model` in place with Adam for `epochs`; the data order depends on `seed` only, not on the method."""
    order, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_003)
    steps = epochs * -(-len(x) // batch)
    method.setup(model, task, om.Table(label=y, feature=x.flatten(1)), steps=steps, generator=draws)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=order).split(batch):
            anchors, guests = method.rows(index)
            rows = anchors if guests is None else torch.cat((anchors, guests.T.reshape(-1)))
            method.step(model, om.Batch(x[rows], y[rows], index=rows, anchors=len(anchors)), optimizer)
            method.after_step()
        method.after_epoch()
    return model.eval()
