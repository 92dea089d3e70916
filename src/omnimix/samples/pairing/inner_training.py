"""The inner training of RegMix: copies of the network trained on neighbour mixtures, judged on the validation set.

    x~ = lam x_i + (1 - lam) x_j,  y~ likewise,  j among the k_i nearest;  v = validation loss after a few Adam steps

Choices of k are compared under the same random numbers: samples, neighbours, shares and dropout. Cost: forward and
backward passes of its own, on batches of 32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ...core.method import Setup
from ...core.pairing import NONE
from ...core.random import dirichlet, integers, permutation, uniform
from ...core.table import Table
from .neighbours import Neighbours, standardised
from .policy import Policy

SAMPLES, BATCH = 256, 32
"""Samples that get a k in one iteration, and the batch size."""
Learner: TypeAlias = tuple[nn.Module, torch.optim.Optimizer]
Draws: TypeAlias = tuple[Tensor, Tensor, Tensor, int]


class InnerTraining:
    """What training on neighbour mixtures with given k leads to on the validation set.

    given: with tables of "feature" and "label". start: the network to copy, in float32. lr: of Adam.
    """

    def __init__(self, given: Setup, start: nn.Module, neighbours: Neighbours, alpha: float, lr: float) -> None:
        assert given.table is not None
        assert given.validation is not None
        self.task, self.neighbours, self.alpha, self.lr, self.start = given.task, neighbours, alpha, lr, start
        self.device = next(start.parameters()).device
        self.x, self.y = self._columns(given.table)
        self.x_valid, self.y_valid = self._columns(given.validation)

    def _columns(self, table: Table) -> tuple[Tensor, Tensor]:
        x, y = table["feature"].to(self.device).float(), self.task.soft_target(table["label"]).to(self.device).float()
        return x, y

    def learner(self) -> Learner:
        model = copy.deepcopy(self.start).train()
        return model, torch.optim.Adam(model.parameters(), lr=self.lr, fused=True)

    def draws(self, rows: Tensor, steps: int, generator: torch.Generator) -> Draws:
        """Random numbers of `steps` steps: who (S, B), which neighbour (S, B), shares (S, B, 1), and a seed."""
        who = rows[integers(len(rows), steps, BATCH, generator=generator).to(rows.device)]
        point = uniform(steps, BATCH, generator=generator).to(rows.device)
        lam = dirichlet(self.alpha, steps * BATCH, 2, generator)[:, 0].float().view(steps, BATCH, 1)
        return who, point, lam.to(self.device), int(integers(2**62, 1, generator=generator))

    def train(self, learner: Learner, nearest: Tensor, draws: Draws) -> float:
        """Train on mixtures with the given k (N,); the validation loss, averaged over the last quarter of the steps."""
        (model, optimizer), (who, point, lam, seed) = learner, draws
        flat = who.flatten()
        other = self.neighbours.choose(flat, nearest[flat], point.flatten())
        other = torch.where(other == NONE, flat, other).view_as(who)
        one, two = who.to(self.device), other.to(self.device)
        x, y = (torch.lerp(t[two], t[one], lam) for t in (self.x, self.y))
        found = []
        with _global_seed(seed, self.device):  # equal dropout for the choices compared
            for step in range(len(who)):
                optimizer.zero_grad(set_to_none=True)
                self.task.losses(model(x[step]), y[step]).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if 4 * step >= 3 * (len(who) - 1):
                    found.append(self.validate(model))
        loss = float(torch.stack(found).mean())
        if not math.isfinite(loss):
            raise ValueError(
                f"the inner training of RegMix diverged at lr = {self.lr}; use a smaller lr, or scaled inputs"
            )
        return loss

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Tensor:
        model.eval()
        loss = self.task.losses(model(self.x_valid), self.y_valid).mean()
        model.train()
        return loss

    def learn(self, choices: Tensor, iterations: int, steps: int, generator: torch.Generator) -> Tensor:
        """(N, A) probabilities of the choices of k after REINFORCE."""
        near = self.neighbours.z
        z = torch.cat((near, standardised(self.y).to(near.device)), dim=1).float().cpu()
        policy, learner = Policy(z.shape[1], len(choices), generator), self.learner()
        plain = torch.zeros(len(z), dtype=torch.long, device=near.device)
        everyone = torch.arange(len(z), device=near.device)
        for _ in range(-(-iterations // 10)):  # harm by mixing shows only once there is a fit to harm
            self.train(learner, plain, self.draws(everyone, steps, generator))
        for _ in range(iterations):
            rows = permutation(len(z), generator).cpu()[:SAMPLES]
            action, draws = policy.sample(z[rows]), self.draws(rows.to(near.device), steps, generator)
            nearest = plain.clone()
            nearest[rows.to(near.device)] = choices[action].to(near.device)
            usual = self.train(copy.deepcopy(learner), plain, draws)
            policy.update(z[rows], action, self.train(learner, nearest, draws) - usual)
        return policy.probabilities(z)

    def best(self, choices: Tensor, rounds: int, steps: int, generator: torch.Generator) -> int:
        """The choice of one k for all that reaches the lowest validation loss, all with the same random numbers."""
        rows = torch.arange(len(self.x), device=self.neighbours.z.device)
        learners, lowest = [self.learner() for _ in choices], [math.inf] * len(choices)
        for _ in range(rounds):
            draws = self.draws(rows, steps, generator)
            for i, k in enumerate(choices.tolist()):
                lowest[i] = min(lowest[i], self.train(learners[i], torch.full_like(rows, k), draws))
        return lowest.index(min(lowest))


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block, PyTorch's global generators of the CPU and of `device` start from `seed`; restored after."""
    sources = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        sources.append(torch.cuda.default_generators[device.index or 0])
    states = [source.get_state() for source in sources]
    try:
        for source in sources:
            source.manual_seed(seed)
        yield
    finally:
        for source, state in zip(sources, states, strict=True):
            source.set_state(state)
