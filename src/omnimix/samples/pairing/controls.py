"""Controls for methods that choose partners: train on the chosen samples without mixing them.

    pairs without mixing:  loss = mean_i sum_k loss(f(x_ik), y_ik) / K          (K times the samples of a plain step)
    resampling only:       loss = mean_i loss(f(x_ik), y_ik), k uniform in 1..K (as many samples as a plain step)
    resampled first:       the first sample of every pair comes from a uniform class, domain, or cell of both

A gain that the controls share is one of resampling, not of mixing. Cost: K where partners come from outside the batch
(else 1), 1, and that of the method resampled.
Source: Teney, Wang, Abbasnejad, "Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup", ICML
2024, arXiv 2305.16817.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, one_of
from ...core.method import Method, Mix, Setup
from ...core.pairing import InTable, Pairing
from ...core.random import integers, uniform
from ...core.registry import create, register
from ...core.tree import tree_map
from .effective import groups
from .regmix_regression import RegMix

Control: TypeAlias = Literal["pairs", "resampling"]
By: TypeAlias = Literal["class", "domain", "cell"]
COLUMNS: dict[By, tuple[str, ...]] = {"class": ("label",), "domain": ("domain",), "cell": ("label", "domain")}


class _Paired(Method):
    """What the controls share: the pairing, and the share of steps in which the method would mix."""

    cost = 1.0

    def __init__(self, pairing: Pairing, probability: float = 1.0) -> None:
        self.pairing, self.probability = pairing, in_unit("probability", probability)

    def on_setup(self, given: Setup) -> None:
        self.pairing.prepare(given.table, self.generator)

    def pairs(self, rows: int) -> Tensor:
        """(rows, 1) True where the method would mix."""
        return uniform(rows, 1, generator=self.generator) < self.probability

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch)
        return self.paired_loss(model, batch) if model.training else self.plain_loss(model, batch.alone)

    @abstractmethod
    def paired_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch with its guests."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "missing": self.pairing.missing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.pairing.missing = int(state["missing"])


class PairsWithoutMixing(_Paired):
    """The pairs of any pairing, both samples trained on as they are, in one forward pass with weight 1/K each."""

    def __init__(self, pairing: Pairing, probability: float = 1.0) -> None:
        super().__init__(pairing, probability)
        if type(pairing).rows is not Pairing.rows:  # guests come on top of the batch
            self.cost = float(pairing.k)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return index, self.pairing.rows(index, self.generator)

    def paired_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        partner = self.pairing(batch, self.generator)
        partner = torch.where(self.pairs(len(batch)).to(partner.device), partner, partner[:, :1])
        return self.task.losses(model(batch.x), batch.y)[partner].mean()


class ResamplingOnly(_Paired):
    """Every sample replaced by one of its pair, drawn uniformly, itself included; plain loss."""

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        guests = self.pairing.rows(index, self.generator)
        if guests is None or not isinstance(self.pairing, InTable):  # guests of others are candidates, no partners yet
            return index, guests
        return self._one(torch.cat((index.unsqueeze(1).to(guests.device), guests), dim=1)), None

    def paired_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(self.pairing, InTable):  # chosen when the rows were asked for
            return self.plain_loss(model, batch.alone)
        chosen = self._one(self.pairing(batch, self.generator))
        return self.task.losses(model(tree_map(lambda t: t[chosen], batch.x)), batch.y[chosen]).mean()

    def _one(self, rows: Tensor) -> Tensor:
        """One of the columns of (B, K) for each row; the first where the method would not mix."""
        column = integers(rows.shape[1], len(rows), 1, generator=self.generator) * self.pairs(len(rows))
        return rows.gather(1, column.to(rows.device)).squeeze(1)


def selects(method: Method) -> bool:
    """Whether a method chooses partners by more than chance, so that there is something to control for."""
    return hasattr(method, "controls") or (isinstance(method, Mix) and method.pairing.selects)


def controls(method: Method) -> dict[str, Method]:
    """The controls of a method that selects partners, by name: those that its own `controls()` gives, or where it has
    no such function, "pairs" and "resampling" of its pairing.

    ValueError for methods that pair at random or not, and for `RegMix` unless its k is a number.
    """
    if hasattr(method, "controls"):
        return dict(method.controls())
    if not isinstance(method, Mix) or not selects(method):
        raise ValueError(f"{type(method).__name__} does not select partners, so there is nothing to control for")
    if isinstance(method, RegMix) and isinstance(method.k, str):  # the pairing alone has k = 0
        raise ValueError(
            f"RegMix(k={method.k!r}) learns k on validation samples, which its controls do not; "
            "give k as a number: controls(RegMix(k=...))"
        )
    pairs = PairsWithoutMixing(copy.deepcopy(method.pairing), method.probability)
    resampling = ResamplingOnly(copy.deepcopy(method.pairing), method.probability)
    pairs.needs = resampling.needs = method.needs
    return {"pairs": pairs, "resampling": resampling}


class Resampled(Method):
    """Any method, its samples drawn so that classes, domains, or cells of both are equally frequent.

    by: "class", "domain" or "cell". method: default ERM. Every batch is drawn anew, with replacement, so the caller
    must load the rows that `rows` names (as `partner_loader` does). ValueError otherwise.
    """

    def __init__(self, by: By = "class", method: Method | None = None) -> None:
        self.by = one_of("by", by, tuple(COLUMNS))
        self.method = Method() if method is None else method
        self.cost, self.samples_ahead = self.method.cost, self.method.samples_ahead
        self.needs = tuple(dict.fromkeys((*COLUMNS[by], *self.method.needs)))
        self._asked = False

    def on_setup(self, given: Setup) -> None:
        self._asked = False
        columns = [groups(given.table, name).cpu() for name in COLUMNS[self.by]]
        cell = torch.unique(torch.stack(columns), dim=1, return_inverse=True)[1]
        self._order, self._size = torch.argsort(cell, stable=True), cell.bincount()
        self._start = self._size.cumsum(0) - self._size
        self.method.setup(
            given.model,
            given.task,
            given.table,
            validation=given.validation,
            steps=given.steps,
            split=given.split,
            generator=self.generator,
        )

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        self._asked = True
        cell = integers(len(self._size), len(index), generator=self.generator).cpu()
        rank = (uniform(len(index), generator=self.generator).cpu() * self._size[cell]).long()
        return self.method.rows(self._order[self._start[cell] + rank].to(index.device))

    def _loaded(self, model: nn.Module) -> Method:
        if model.training and not self._asked:
            raise ValueError(
                "resampling chooses the rows of every batch: load the rows that method.rows(index) returns, "
                "for example with omnimix.partner_loader"
            )
        return self.method

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        return self._loaded(model).loss(model, batch, **streams)

    def step(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, *args: Any, **kw: Any) -> Tensor:
        return self._loaded(model).step(model, batch, optimizer, *args, **kw)

    def after_step(self) -> None:
        super().after_step()
        self.method.after_step()

    def before_epoch(self) -> None:
        self.method.before_epoch()

    def after_epoch(self) -> None:
        self.method.after_epoch()

    def after_validation(self, loss: float) -> None:
        self.method.after_validation(loss)

    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        self.method.after_training(model, batches)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        return self.method.predict(model, x)

    def predict_in(self, model: nn.Module, x: Any, domain: Tensor) -> Tensor:
        return self.method.predict_in(model, x, domain)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.method.load_state_dict(state["method"])


@register(
    "resampling",
    paper="Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup, ICML 2024, "
    "arXiv 2305.16817",
    tasks=("classification",),
)
def resampling(by: By = "class", method: str = "erm") -> Method:
    """Batches in which classes, domains, or cells of both are equally frequent.

    by: "class", "domain" or "cell". method: the name of the method that trains on them, with its defaults.
    """
    return Resampled(by, create(method))
