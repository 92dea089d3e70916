"""RIDG: samples of a class, of whatever domain, should get their logits for the same reasons.

    R_n[k, j] = W[k, j] z_n[j],   loss = CE + alpha sum_c mean_{n of c} |R_n - Rbar_c|^2 / K
    Rbar_c <- (1 - m) Rbar_c + m mean_{n of c} R_n   before the penalty, in which it is a constant

Summed over j, R_n gives the logits; z: inputs of the linear head with weights W (K, J). Source: Chen, Zhang, Song, van
den Hengel, Liu, "Domain Generalization via Rationale Invariance", ICCV 2023, arXiv 2308.11158. Cost: 1. No tensor of
samples x K x J is made:

    sum_{n of c} |R_n - Rbar_c|^2 = sum_{n of c} sum_j |W[:, j]|^2 (z_n[j] - zbar_c[j])^2 + n_c |W zbar_c - Rbar_c|^2

The paper's equation (per="sample") and pseudo-code (per="entry") scale the penalty otherwise; the default is the
authors' code, which alpha and m belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative, one_of
from ...core.distinct import distinct
from ...core.method import Method, Setup
from ...core.registry import register
from ...core.search import Log
from ...core.split import Split

Per = Literal["class", "sample", "entry"]
What = Literal["rationale", "feature", "logit"]


def rationale_distances(z: Tensor, weight: Tensor, share: Tensor, bank: Tensor) -> Tensor:
    """(P,) the mean squared distance of the rationales of each class from its row of `bank` (P, K, J).

    z: (B, J). weight: (K, J). share: (P, B), 1 / count for the samples of the class, 0 elsewhere.
    """
    centre = share @ z
    spread = (z - (share > 0).to(z.dtype).T @ centre).square() @ weight.square().sum(dim=0)
    return share @ spread + (weight * centre.unsqueeze(1) - bank).square().sum(dim=(1, 2))


@register(
    "ridg",
    paper="Domain Generalization via Rationale Invariance, ICCV 2023, arXiv 2308.11158",
    tasks=("classification",),
    level="domains",
    search={"alpha": Log(1e-2, 1e-1), "m": Log(1e-4, 1e-1)},
)
class RIDG(Method):
    """Pull what each feature contributes to each logit towards the running mean of the sample's class.

    alpha >= 0: the weight. m in [0, 1]: how much of the mean a batch brings; 0 keeps the first one, 1 takes the
    batch's. per: "class" sums the means of the classes over samples, "sample" is the mean over all samples, "entry" is
    "class" divided by J. invariant: "rationale", or, to compare, "feature" or "logit". mean: "moving", or, to compare,
    "zero". Soft labels count as their largest class.
    """

    def __init__(
        self,
        alpha: float = 0.01,
        m: float = 0.001,
        *,
        per: Per = "class",
        invariant: What = "rationale",
        mean: Literal["moving", "zero"] = "moving",
    ) -> None:
        self.alpha, self.m = non_negative("alpha", alpha), in_unit("m", m)
        self.per = one_of("per", per, ("class", "sample", "entry"))
        self.invariant = one_of("invariant", invariant, ("rationale", "feature", "logit"))
        self.mean = one_of("mean", mean, ("moving", "zero"))

    def on_setup(self, given: Setup) -> None:
        self.split = given.split or Split(given.model)
        self.bank, self.seen = torch.empty(0), torch.zeros(given.task.outputs, dtype=torch.bool)
        head = self.split.model.get_submodule(self.split.head_name)
        if self.invariant == "rationale" and not isinstance(head, nn.Linear):
            raise ValueError(
                f"ridg reads the weights of a linear head; {self.split.head_name!r} is a {type(head).__name__}: "
                "give setup(..., split=omnimix.split(model, head=...)), or take invariant='feature' or 'logit'"
            )

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        z, output = self.split.features_and_output(batch.x, model)
        label = self.task.soft_target(batch.y).argmax(dim=1)
        return self.task.mean_loss(output, batch.y) + self.alpha * self.penalty(z.flatten(1), output, label)

    def penalty(self, z: Tensor, output: Tensor, label: Tensor) -> Tensor:
        """The penalty of features z (B, J) and logits (B, K); moves the means of the classes (B,) first."""
        z, weight = self._contributions(z, output)
        classes, place, count = distinct(label, len(self.seen))
        slot = torch.arange(len(classes), device=z.device)
        share = (place == slot.unsqueeze(1)).to(z.dtype) / count.clamp(min=1).unsqueeze(1)
        with torch.no_grad():  # places left over move the first class as its own place does
            centre = share[torch.where(count > 0, slot, 0)] @ z
            bank = self._moved(classes, weight * centre.unsqueeze(1))
        distance = rationale_distances(z, weight, share, bank)
        if self.per == "sample":
            return torch.dot(count.to(distance.dtype), distance) / len(z)
        return torch.where(count > 0, distance, 0.0).sum() / (weight.numel() if self.per == "entry" else len(weight))

    def _contributions(self, z: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """(values (B, J), weights (K, J)) whose products are to be alike within a class."""
        if self.invariant == "rationale":
            head = self.split.model.get_submodule(self.split.head_name)
            assert isinstance(head, nn.Linear)
            return z.float(), head.weight.float()
        value = (z if self.invariant == "feature" else output).float()
        return value, torch.ones(1, value.shape[1], device=value.device)

    def _moved(self, classes: Tensor, mean: Tensor) -> Tensor:
        """(P, K, J) the means of these classes after they have moved towards those of the batch."""
        if self.mean == "zero":
            return torch.zeros_like(mean)
        if not len(self.bank):
            self.bank = mean.new_zeros(len(self.seen), *mean.shape[1:])
        self.bank, self.seen = self.bank.to(mean.device), self.seen.to(mean.device)
        seen = self.seen[classes].view(-1, 1, 1)
        now = torch.where(seen, torch.lerp(self.bank[classes], mean, self.m), mean)
        self.bank[classes], self.seen[classes] = now, True
        return now

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "bank": self.bank, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.bank, self.seen = state["bank"].clone(), state["seen"].clone()
