"""RegMix: mix each training sample of a regression with its k nearest neighbours, k learned for each sample.

    k_i ~ pi_phi(. | x_i, y_i) in {0, 1, 2, 4, ..., N - 1};  j uniform among the k_i nearest;  lam ~ Beta(alpha, alpha)
    x~ = lam x_i + (1 - lam) x_j,  y~ likewise;  phi follows the validation loss of a copy so trained (`policy.py`)

Where y is curved, mixing with far neighbours puts the label off by lam (1 - lam) times half the curvature times the
squared distance; where it is flat, it averages noise. The reward is the difference in validation loss to a second copy,
from the same weights and with the same random numbers, trained without mixing. Sizes and rates, which could not be
sourced, are ours.

One validation loss rewards hundreds of choices at once, so what is learned is coarse. On 100 noisy points of a function
flat on one half and a sine on the other, the policy's mean k came to 1.4-3.4 on the curved half and 2.5-16.6 on the
flat one (4 seeds; chance is 25): harm by far neighbours is learned, but where k makes no difference it stays arbitrary,
and so is its "argmax" there.
Source: Hwang, Whang, "RegMix: Data Mixing Augmentation for Regression", preprint 2021-2022, arXiv 2106.03374. Cost: 1,
after 2.1 * iterations * inner_steps gradient steps on batches of 32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.checks import at_least, one_of, positive
from ...core.method import Mix, Setup
from ...core.ratio import Beta
from ...core.registry import register
from ...core.search import Log
from .inner_training import BATCH, InnerTraining
from .neighbours import Neighbours
from .policy import sample_rows


def actions(rows: int) -> Tensor:
    """The numbers of neighbours to choose from: 0, 1, 2, 4, ... below rows - 1, and rows - 1."""
    powers = [2**p for p in range(rows.bit_length()) if 2**p < rows - 1]
    return torch.tensor(sorted({0, *powers, rows - 1}))


@register(
    "regmix-regression",
    paper="RegMix: Data Mixing Augmentation for Regression, preprint 2021-2022, arXiv 2106.03374",
    tasks=("regression",),
    search={"alpha": Log(0.1, 8)},
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
        self.iterations = at_least("iterations", iterations, 1)
        self.inner_steps = at_least("inner_steps", inner_steps, 1)
        self.alpha, self.lr = positive("alpha", alpha), positive("lr", lr)
        self.decide = one_of("decide", decide, ("argmax", "sample"))
        self.needs = ("label", "feature") if isinstance(k, str) else ("feature",)
        if isinstance(k, str):
            plain = -(-iterations // 10) if k == "learned" else 0
            self.samples_ahead = (2 * iterations + plain) * inner_steps * BATCH
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
        self._start = copy.deepcopy(given.model).float()  # the network as it is now, not when rows are asked for

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._waiting:
            self._choose()
        if self._policy is not None:
            chosen = self._actions[sample_rows(self._policy[index.cpu()], self.generator)]
            self.neighbours.nearest[index] = chosen.to(self.neighbours.nearest.device)
        return super().rows(index)

    def _choose(self) -> None:
        """Find k on copies of the network."""
        inner = InnerTraining(self._given(), self._start, self.neighbours, self.alpha, self.lr)
        self.neighbours.list_up_to(max((k for k in self._actions.tolist() if k < len(inner.x) - 1), default=0))
        if self.k == "global":
            rounds = max(1, 2 * self.iterations // len(self._actions))  # as many steps as learning takes
            best = inner.best(self._actions, rounds, self.inner_steps, self.generator)
            self.neighbours.assign(int(self._actions[best]))
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
