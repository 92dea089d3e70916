"""DoReMi: train a proxy on what it has left to gain over a reference, and average the weights that this takes.

    lam_i = sum over tokens of domain i of max(loss_proxy - loss_reference, 0) / number of these tokens
    alpha <- (1 - c) alpha exp(eta lam) / sum_j alpha_j exp(eta lam_j) + c / k,    loss = sum_i alpha_i mean loss_i
    result: (1/T) sum_t alpha_t

Source: Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", NeurIPS 2023, arXiv
2305.10429, Algorithm 1. Cost: a reference run, and a proxy run of 4/3 (a forward pass of the reference each step).
Domains are drawn equally; `reference_code=True` gives the released loss (a mean over tokens, whose weights are
renormalised in the batch) and average (with the initial weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import checkpoint as files
from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from ...networks.language_model import LanguageModel
from ..mixture import Mixture
from ..proxy import Follow, Packed, Rule, Setting, Step, Trained, Training, network, train
from ..proxy.rule import Losses

ABSENT = ("last", "zero")


def excess(losses: Tensor, reference: Tensor) -> Tensor:
    """What each token has left to gain: max(loss - reference, 0), cut token by token, not after the mean."""
    return (losses - reference).clamp(min=0)


def update(weights: Tensor, lam: Tensor, eta: float = 1.0, smoothing: float = 1e-3) -> Tensor:
    """(k,) float64 weights after an exponentiated-gradient step on excess losses lam (k,), at least smoothing / k."""
    moved = torch.softmax(weights.double().log() + eta * lam.double(), dim=0)
    return (1 - smoothing) * moved + smoothing / len(moved)


class DoReMi(Rule):
    """The proxy's rule. reference: a trained network. absent: the excess loss of a domain that a batch lacks: its
    "last" (log of the vocabulary before the first), or "zero".
    """

    average = True

    def __init__(
        self,
        reference: LanguageModel,
        *,
        eta: float = 1.0,
        smoothing: float = 1e-3,
        absent: str = "last",
        reference_code: bool = False,
    ) -> None:
        self.reference = reference.eval().requires_grad_(False)
        self.eta, self.smoothing = non_negative("eta", eta), in_unit("smoothing", smoothing)
        self.absent, self.reference_code = one_of("absent", absent, ABSENT), reference_code

    def setup(self, setting: Setting) -> None:
        super().setup(setting)
        self.reference.to(setting.device)
        self.lam = torch.full_like(self.weights, math.log(setting.vocabulary))
        if self.reference_code:
            self.note()

    def backward(self, step: Step) -> Losses:
        losses, tokens = step.losses(), step.tokens()
        with torch.no_grad():
            own = step.losses(self.reference)
        found = step.by_domain(excess(losses.detach(), own))
        missing = self.lam if self.absent == "last" else torch.zeros_like(self.lam)
        self.lam = torch.where(tokens > 0, found / tokens.clamp(min=1), missing)
        self.weights = update(self.weights, self.lam, self.eta, self.smoothing)
        if self.reference_code:
            per_token = self.weights / (self.weights * tokens).sum()
        else:
            per_token = self.weights / tokens.clamp(min=1)
        step.backward(losses, per_token)
        return step.by_domain(losses), tokens

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lam": self.lam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.lam = state["lam"].to(self.setting.device)


@dataclass
class Round:
    """One round: the mixture that the reference was trained on, and both runs."""

    start: Mixture
    reference: Trained
    proxy: Trained

    @property
    def change(self) -> float:
        """The largest difference between the weights before and after."""
        return max(abs(self.proxy.weights[name] - self.start.weights.get(name, 0.0)) for name in self.proxy.weights)


def doremi(
    packed: Packed,
    training: Training,
    *,
    start: Mixture | None = None,
    rounds: int = 1,
    tolerance: float = 1e-3,
    seed: int = 0,
    parts: tuple[str, ...] = ("valid",),
    folder: Path | None = None,
    progress: Callable[[float], None] | None = None,
    **settings: Any,
) -> tuple[Mixture, list[Round]]:
    """Train references and proxies in up to `rounds` rounds, each from the weights that the last one found, until no
    weight changes by `tolerance`; gives the mixture and what each round did.

    start: the first reference's mixture; default: in proportion to the tokens. folder: for checkpoints. settings: of
    `DoReMi`.
    """
    at_least("rounds", rounds, 1)
    positive("tolerance", tolerance)
    mixture = Mixture(packed.tokens()) if start is None else start
    done: list[Round] = []
    for number in range(rounds):

        def tell(half: int, number: int, share: float) -> None:
            if progress is not None:
                progress((number + (half + share) / 2) / rounds)

        kept = [folder and folder / f"round{number}-{name}.safetensors" for name in ("reference", "proxy")]
        reference = _finished(packed, training, mixture, seed, kept[0], partial(tell, 0, number))
        frozen = network(packed, training, seed)
        frozen.load_state_dict(reference.model)
        proxy = train(
            packed, DoReMi(frozen, **settings), training, seed=seed, parts=parts, checkpoint=kept[1],
            progress=partial(tell, 1, number),
        )  # fmt: skip
        done.append(Round(mixture, reference, proxy))
        mixture = Mixture(proxy.weights, provenance={"method": "doremi", "rounds": number + 1, **settings})
        if done[-1].change < tolerance:
            break
    return mixture, done


def _finished(
    packed: Packed, training: Training, mixture: Mixture, seed: int, file: Path | None, tell: Callable[[float], None]
) -> Trained:
    """The reference, trained or as it was kept: a proxy that was interrupted needs the same one."""
    kept = file and file.with_suffix(".done.safetensors")
    wanted = files.flatten({"data": packed.digest, "training": asdict(training), "seed": seed,
                            "start": mixture.to_dict()})[0]  # fmt: skip
    if kept is not None and kept.exists():
        state = files.load(kept)
        if state.pop("wanted") != wanted:
            raise ValueError(f"{kept} is the reference of another run; remove it, or choose another folder")
        tell(1.0)
        return Trained.load(state)
    found = train(packed, Follow(mixture), training, seed=seed, checkpoint=file, progress=tell)
    if kept is not None:
        files.save(kept, {**vars(found), "wanted": wanted})
    return found
