"""RegMix: mix each training sample of a regression with its k nearest neighbours, k learned for each sample.

    k_i ~ pi_phi(. | x_i, y_i) over {0, 1, 2, 4, ..., N - 1};  j uniform among the k_i nearest;  lam ~ Beta(alpha, alpha)
    x~ = lam x_i + (1 - lam) x_j,  y~ likewise;   phi follows the validation loss of a copy trained on these (`policy.py`)

Where y is curved, mixing with far neighbours puts the label off by lam (1 - lam) times half the curvature times the
squared distance; where it is flat, it averages noise. The reward is the difference in validation loss to a second copy,
from the same weights and with the same random numbers, trained without mixing. All random choices, sizes and rates of the
paper that could not be sourced are ours. One validation loss rewards hundreds of choices, so what is learned is coarse.
Source: Hwang, Whang, "RegMix: Data Mixing Augmentation for Regression", preprint 2021-2022, arXiv 2106.03374. Cost: 1, after
2 * iterations * inner_steps gradient steps on batches of 32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ...core.checks import at_least, one_of, positive
from ...core.method import Mix, Setup
from ...core.pairing import NONE
from ...core.random import dirichlet, integers, permutation, uniform
from ...core.ratio import Beta
from ...core.registry import register
from ...core.table import Table
from .neighbours import Neighbours, standardised
from .policy import Policy, sample_rows

SAMPLES, BATCH = 256, 32
"""Samples that get a k in one iteration, and the batch size of the inner training."""
Learner: TypeAlias = tuple[nn.Module, torch.optim.Optimizer]
Draws: TypeAlias = tuple[Tensor, Tensor, Tensor, int]


def actions(rows: int) -> Tensor:
    """The numbers of neighbours to choose from: 0, 1, 2, 4, ... below rows - 1, and rows - 1."""
    powers = [2**p for p in range(rows.bit_length()) if 2**p < rows - 1]
    return torch.tensor(sorted({0, *powers, rows - 1}))


@register(
    "regmix-regression",
    paper="RegMix: Data Mixing Augmentation for Regression, preprint 2021-2022, arXiv 2106.03374",
    tasks=("regression",),
)
class RegMix(Mix):
    """Mix each training sample with its k nearest neighbours, k learned for each sample on the validation set.

    k: "learned" for each sample; "global", one for all, the best of 0, 1, 2, 4, ..., N - 1 on the validation set; or a
    number in 0..N-1 (0 is plain training, N - 1 mixup without self-pairs). alpha > 0 of Beta(alpha, alpha), one share a
    sample. iterations, inner_steps: of the learning. lr: of Adam in the inner training; that of the training to come
    is a good value. decide: fix each k at the policy's "argmax" or "sample" it anew. The network must take rows of the
    table's "feature". Learning happens when the first rows are asked for, on copies; the model stays untouched.
    """

    def __init__(
        self,
        k: int | Literal["learned", "global"] = "learned",
        alpha: float = 2.0,
        *,
        iterations: int = 500,
        inner_steps: int = 20,
        lr: float = 0.01,
        decide: Literal["argmax", "sample"] = "argmax",
    ) -> None:
        self.k = one_of("k", k, ("learned", "global")) if isinstance(k, str) else at_least("k", k, 0)
        self.iterations, self.inner_steps = (
            at_least("iterations", iterations, 1),
            at_least("inner_steps", inner_steps, 1),
        )
        self.alpha, self.lr = positive("alpha", alpha), positive("lr", lr)
        self.decide = one_of("decide", decide, ("argmax", "sample"))
        self.needs = ("label", "feature") if isinstance(k, str) else ("feature",)
        self.neighbours = Neighbours(k if isinstance(k, int) else 0)
        super().__init__(self.neighbours, Beta(alpha, per_sample=True))

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self._policy: Tensor | None = None
        self._waiting = isinstance(self.k, str)
        if not self._waiting:
            return
        if given.validation is None or not {"label", "feature"} <= set(given.validation):
            raise ValueError(
                f"k = {self.k!r} is chosen on validation samples: pass setup(..., validation=Table(label=..., "
                "feature=...)), or give k as a number"
            )
        self._actions = actions(len(self.neighbours.nearest))
        self._start = copy.deepcopy(
            given.model
        ).float()  # the model as it is now, whenever the first rows are asked for

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._waiting:
            self._choose()
        if self._policy is not None:
            chosen = self._actions[sample_rows(self._policy[index.cpu()], self.generator)]
            self.neighbours.nearest[index] = chosen.to(self.neighbours.nearest.device)
        return super().rows(index)

    def _choose(self) -> None:
        """Find k on copies of the network."""
        inner = _Inner(self._given(), self._start, self.neighbours, self.alpha, self.lr)
        self.neighbours.list_up_to(int(self._actions[self._actions < len(inner.x) - 1].max()))
        if self.k == "global":
            budget = max(1, 2 * self.iterations // len(self._actions))
            self.neighbours.assign(
                int(self._actions[inner.best(self._actions, budget, self.inner_steps, self.generator)])
            )
        else:
            p = inner.learn(self._actions, self.iterations, self.inner_steps, self.generator)
            self.neighbours.assign(self._actions[p.argmax(dim=1)])
            self._policy = p if self.decide == "sample" else None
        self._waiting, self._start = False, nn.Module()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.given is not None and not self._waiting:
            state["k"] = self.neighbours.nearest.clone()
            if self._policy is not None:
                state["policy"] = self._policy.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if "k" in state:
            self.neighbours.assign(state["k"])
            self._policy = state.get("policy")
            self._waiting, self._start = False, nn.Module()


class _Inner:
    """Training of copies of the network on neighbour mixtures, and their validation loss."""

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
        return model, torch.optim.Adam(model.parameters(), lr=self.lr)

    def draws(self, rows: Tensor, steps: int, generator: torch.Generator) -> Draws:
        """Random numbers of `steps` steps: who (S, B), which neighbour (S, B), shares (S, B, 1), and a seed."""
        who = rows[integers(len(rows), steps, BATCH, generator=generator).to(rows.device)]
        point = uniform(steps, BATCH, generator=generator).to(self.device)
        lam = dirichlet(self.alpha, steps * BATCH, 2, generator)[:, 0].float().view(steps, BATCH, 1)
        return who, point, lam.to(self.device), int(integers(2**62, 1, generator=generator))

    def train(self, learner: Learner, nearest: Tensor, draws: Draws) -> float:
        """Train on mixtures with the given k (N,); the validation loss, averaged over the last quarter of the steps."""
        (model, optimizer), (who, point, lam, seed) = learner, draws
        flat = who.flatten()
        other = self.neighbours.choose(flat, nearest[flat], point.flatten())
        other = torch.where(other == NONE, flat, other).view_as(who)
        x, y = (torch.lerp(t[other], t[who], lam) for t in (self.x, self.y))
        found = []
        with _global_seed(seed, self.device):  # equal dropout for the choices compared
            for step in range(len(who)):
                optimizer.zero_grad(set_to_none=True)
                self.task.losses(model(x[step]), y[step]).mean().backward()
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
        z = torch.cat((self.neighbours.z, standardised(self.y)), dim=1).float().cpu()
        policy, learner = Policy(z.shape[1], len(choices), generator), self.learner()
        plain = torch.zeros(len(z), dtype=torch.long, device=self.device)
        for _ in range(iterations):
            rows = permutation(len(z), generator).cpu()[:SAMPLES]
            action, draws = policy.sample(z[rows]), self.draws(rows.to(self.device), steps, generator)
            nearest = plain.clone()
            nearest[rows.to(self.device)] = choices[action].to(self.device)
            usual = self.train(copy.deepcopy(learner), plain, draws)
            policy.update(z[rows], action, self.train(learner, nearest, draws) - usual)
        return policy.probabilities(z)

    def best(self, choices: Tensor, rounds: int, steps: int, generator: torch.Generator) -> int:
        """The choice of one k for all that reaches the lowest validation loss, all with the same random numbers."""
        rows = torch.arange(len(self.x), device=self.device)
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
        torch.cuda.init()
        sources.append(torch.cuda.default_generators[device.index or 0])
    states = [source.get_state() for source in sources]
    try:
        for source in sources:
            source.manual_seed(seed)
        yield
    finally:
        for source, state in zip(sources, states, strict=True):
            source.set_state(state)
