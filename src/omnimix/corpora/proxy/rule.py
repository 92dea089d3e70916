"""What a training step of a proxy does with domains: whom it draws, how it weighs losses or gradients, what it learns.

A `Rule` says what the draws follow, and leaves the gradient of each global batch in the parameters. `Follow` trains on
a given mixture and learns nothing; the rules of `corpora.weigh` change weights while they train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...networks.language_model import IGNORED, LanguageModel, token_losses
from ..mixture import Mixture

Draws = Literal["equal", "weights", "mixture"]
Losses = tuple[Tensor, Tensor]
"""(k,) float64: the sum of the token losses of every domain in the global batch, and the number of its tokens."""


@dataclass
class Setting:
    """What a rule learns of the run before it starts. batch: sequences of a step; held_out: (k,) losses on the
    validation part by now.
    """

    domains: tuple[str, ...]
    vocabulary: int
    tokens: dict[str, int]
    steps: int
    batch: int
    device: torch.device
    held_out: Callable[[], Tensor]

    @property
    def k(self) -> int:
        return len(self.domains)


@dataclass
class Step:
    """A batch. inputs, targets: (B, T), this rank's rows; domain: (B,); lr: the learning rate of the step; number: 0,
    1, ...; total: sums a tensor over the ranks; forward: logits, in the run's precision.
    """

    model: LanguageModel
    inputs: Tensor
    targets: Tensor
    domain: Tensor
    k: int
    lr: float
    number: int
    total: Callable[[Tensor], Tensor]
    forward: Callable[[LanguageModel, Tensor], Tensor]
    ranks: int = 1

    def losses(self, model: LanguageModel | None = None, rows: Tensor | slice = slice(None)) -> Tensor:
        """(B, T) token losses, 0 where there is nothing to predict."""
        return token_losses(self.forward(model or self.model, self.inputs[rows]), self.targets[rows])

    def by_domain(self, values: Tensor) -> Tensor:
        """(k,) float64 sums over the global batch of values (B, T) of this rank."""
        rows = values.detach().double().sum(1)
        return self.total(rows.new_zeros(self.k).index_add(0, self.domain, rows))

    def tokens(self) -> Tensor:
        """(k,) float64 predicted tokens of every domain in the global batch."""
        return self.by_domain(self.targets != IGNORED)

    def backward(self, losses: Tensor, weight: Tensor) -> None:
        """Leave the gradient of sum over tokens of weight[domain] * loss, over the global batch; weight: (k,)."""
        (losses * weight[self.domain].to(losses.dtype).unsqueeze(1)).sum().backward()  # type: ignore[no-untyped-call]
        self.share_gradients()

    def share_gradients(self) -> None:
        """Sum what the ranks have in .grad."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.ranks == 1:
            return
        summed = self.total(torch.cat([p.grad.flatten() for p in parameters]))  # type: ignore[union-attr]
        for p, found in zip(parameters, torch.split(summed, [p.numel() for p in parameters]), strict=True):
            p.grad = found.view_as(p)


class Rule:
    """Subclasses say what is drawn, and override `backward`.

    draws: "equal", as many rows of every domain; "weights", by `weights` as they change; "mixture", by the mixture that
    `mixture` gives. average: the result is the mean of the weights over the steps, not the last ones: a trait of the
    method.
    """

    draws: Draws = "equal"
    average = False
    weights: Tensor
    """(k,) float64, on the run's device: the mixture by now."""

    def setup(self, setting: Setting) -> None:
        """Called once before the first step."""
        self.setting = setting
        self.weights = torch.full((setting.k,), 1 / setting.k, dtype=torch.float64, device=setting.device)
        self.sum = torch.zeros_like(self.weights)
        self.counted = 0

    def mixture(self) -> Mixture:
        """What the first step is drawn by."""
        shares = self.weights.tolist() if self.draws == "weights" else [1.0] * self.setting.k
        return Mixture(dict(zip(self.setting.domains, shares, strict=True)), unit="sequences")

    def backward(self, step: Step) -> Losses:
        """Leave the gradient of the global batch in the parameters' .grad; gives the losses by domain."""
        raise NotImplementedError

    def note(self) -> None:
        """Count the present weights into the mean."""
        self.sum = self.sum + self.weights
        self.counted += 1

    def result(self) -> Tensor:
        """(k,) float64 weights that the run ended with."""
        return self.sum / self.counted if self.average and self.counted else self.weights

    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, as JSON holds them: runs of other rules do not continue this one."""
        kept = (bool, int, float, str, list, tuple, dict, type(None))
        given = {name: v for name, v in self.__dict__.items() if isinstance(v, kept) and name != "counted"}
        return {"rule": type(self).__name__, **given}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "sum": self.sum, "counted": self.counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.setting.device
        self.weights, self.sum = state["weights"].to(device), state["sum"].to(device)
        self.counted = state["counted"]


class Follow(Rule):
    """Plain training on a mixture, constant or in phases: the mean token loss of the batch."""

    draws = "mixture"

    def __init__(self, mixture: Mixture) -> None:
        self.given = mixture

    def settings(self) -> dict[str, Any]:
        return {"rule": "Follow", "mixture": self.given.to_dict()}

    def mixture(self) -> Mixture:
        return self.given

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        unknown = set(self.given.domains) - set(setting.domains)
        if unknown:
            raise ValueError(f"the mixture names {sorted(unknown)}; the documents have {', '.join(setting.domains)}")

    def backward(self, step: Step) -> Losses:
        losses, tokens = step.losses(), step.tokens()
        step.backward(losses, (1 / tokens.sum()).expand(step.k))
        return step.by_domain(losses), tokens
