"""A small policy over discrete choices for each training sample, learned by REINFORCE from one loss for all choices.

    phi <- phi - eta mean_i [ A grad log pi_phi(a_i | z_i) - w grad H(pi_phi(. | z_i)) ],   A = (v - baseline) / spread

v: the loss that followed the choices a; baseline and spread: moving average and deviation of the losses before it.
Dividing by the spread is ours: it keeps the entropy weight w meaningful for any unit of the loss.
Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ...core.random import uniform


def reinforce(logits: Tensor, action: Tensor, advantage: float, entropy: float = 0.0) -> Tensor:
    """The scalar whose descent makes `action` (N,) less likely under `logits` (N, A) for a positive advantage (a loss).

    mean_i [advantage * log pi(action_i) - entropy * H(pi_i)]
    """
    log_p = logits.log_softmax(dim=1)
    chosen = log_p.gather(1, action.unsqueeze(1)).squeeze(1)
    return (advantage * chosen + entropy * (log_p.exp() * log_p).sum(dim=1)).mean()


class Policy:
    """Categorical choices among `count` actions for rows z (N, D): an MLP with three hidden layers of 100 ReLU.

    It starts nearly uniform. entropy: the weight of the entropy bonus. window: updates over which losses are averaged.
    """

    def __init__(
        self,
        inputs: int,
        count: int,
        generator: torch.Generator,
        *,
        lr: float = 1e-3,
        entropy: float = 0.01,
        window: int = 20,
    ) -> None:
        sizes = [inputs, 100, 100, 100, count]
        self.weights = []
        for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6 / a) * (0.01 if layer == 3 else 1.0)
            weight = (2 * uniform(a, b, generator=generator).cpu() - 1) * bound
            self.weights += [weight.float().requires_grad_(), torch.zeros(b, requires_grad=True)]
        self.optimizer = torch.optim.Adam(self.weights, lr=lr, fused=True)
        self.generator, self.entropy, self.window = generator, entropy, window
        self.baseline: float | None = None
        self.spread = 0.0

    def logits(self, z: Tensor) -> Tensor:
        """(N, count)"""
        *hidden, (weight, bias) = zip(self.weights[::2], self.weights[1::2], strict=True)
        for w, b in hidden:
            z = torch.relu(z @ w + b)
        return z @ weight + bias

    @torch.no_grad()
    def probabilities(self, z: Tensor) -> Tensor:
        """(N, count), rows sum to 1."""
        return self.logits(z).softmax(dim=1)

    def sample(self, z: Tensor) -> Tensor:
        """(N,) actions."""
        return sample_rows(self.probabilities(z), self.generator)

    def update(self, z: Tensor, action: Tensor, loss: float) -> None:
        """Make `action` (N,) more likely if `loss` is lower than usual, less likely if higher; the first sets usual."""
        if self.baseline is None:
            self.baseline = loss
            return
        gap = loss - self.baseline
        self.spread = self.spread or abs(gap)
        advantage = gap / self.spread if self.spread else 0.0
        self.optimizer.zero_grad()
        reinforce(self.logits(z), action, advantage, self.entropy).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.baseline += gap / self.window
        self.spread = math.sqrt(self.spread**2 + (gap**2 - self.spread**2) / self.window)


def sample_rows(p: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) columns drawn from the rows of p (N, A)."""
    point = uniform(len(p), 1, generator=generator).to(p.device)
    return (p.double().cumsum(dim=1) <= point).sum(dim=1).clamp(max=p.shape[1] - 1)
