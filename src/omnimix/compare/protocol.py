"""What a comparison holds equal for all methods: the split, the preparation, the budget, the network, the selection.

A protocol is data. `PROTOCOLS[name]` holds one for a built-in data set by its name, or for "table" and "image" in
general.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.checks import one_of
from ..core.task import Classification
from ..data.noise import flip_labels
from ..data.scale import Kind, Scaler
from ..data.source import Source
from ..data.subset import interleaved
from ..train.budget import Budget
from ..train.parts import Data, Part

BatchNorm = Literal["train", "frozen"]
BATCH_NORM: tuple[BatchNorm, ...] = ("train", "frozen")
Sizes = tuple[float, float, float]
RULES = ("validation", "last")
"""How the run of a method is selected where the test rows are a random part or the publisher's; see `selection`."""
DOMAIN_RULES = ("training-domain", "leave-one-domain-out", "oracle", "last")
"""The same where whole domains are held out."""
IN_MEMORY = 2**28
"""Images of a part that take more bytes than this as floats are converted batch by batch."""


class Splits(NamedTuple):
    """Rows of the source."""

    train: Tensor
    valid: Tensor
    test: Tensor


@dataclass(frozen=True)
class Hold:
    """The domains (ids) that a run does not train on: the one that is tested, or two for a run that only validates.

    oracle: the tested domain validates, not the training domains.
    """

    out: tuple[int, ...]
    oracle: bool = False


@dataclass(frozen=True)
class Protocol:
    """sizes: training, validation and test rows, as shares that sum to 1 or as counts. official: use the data set's own
    test rows (and validation rows) where it has them. scale: of the inputs, with parameters from `scale_by`.
    standardise_target: train regression on standardised targets (metrics are in raw units always). shuffle: whose
    generator draws the split; "numpy" is `RandomState(seed).permutation`, as reference code draws it. methods:
    parameters of methods that differ from their own defaults; those that a user types come before both. by_domain: a
    run for every domain, which it does not train on; sizes are then those of the parts of a domain. selection: one of
    `RULES`, or of `DOMAIN_RULES`. batch_norm: "frozen" keeps the statistics of batch-norm layers as they come, with
    pretrained weights for instance; their scales train.
    """

    name: str
    source: str
    network: str
    budget: Budget
    sizes: Sizes = (0.6, 0.2, 0.2)
    official: bool = True
    scale: Kind = "standard"
    scale_by: Literal["training rows", "all rows"] = "training rows"
    standardise_target: bool = True
    shuffle: Literal["torch", "numpy"] = "torch"
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_domain: bool = False
    selection: str = "validation"
    batch_norm: BatchNorm = "train"

    def describe(self) -> dict[str, Any]:
        """What it holds equal for all runs, as JSON; what it says of single methods is left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("methods", "source", "selection")}


_TABLE = Protocol(
    "default",
    "omnimix: 60/20/20 by seed, MLP 128-128, Adam, best validation loss",
    "mlp",
    Budget(epochs=100, batch_size=32, lr=1e-3, drop_last=False),
)
_IMAGE = Protocol(
    "default",
    "omnimix: official test rows where there are some, small CNN, Adam with a cosine schedule, last epoch",
    "small-cnn",
    Budget(epochs=30, batch_size=128, lr=1e-3, schedule="cosine", select="last"),
    sizes=(0.8, 0.1, 0.1),
)
_DIGITS = Protocol(
    "default",
    "omnimix: 400 training and 1,000 test rows, MLP 64-256-256-10, Adam, 200 epochs, last epoch",
    "mlp:activation=relu:hidden=256+256",
    Budget(epochs=200, batch_size=50, lr=1e-3, select="last"),
    sizes=(400, 397, 1000),
    scale="none",
)


def _by_domain(protocol: Protocol, network: str, official: bool = False) -> Protocol:
    split = "the publisher's split of each" if official else "each domain split 80/20 by seed"
    return replace(
        protocol,
        name="domains-official" if official else "domains",
        source=f"DomainBed, ICLR 2021: a run for every held-out domain, {split}, equal parts in every batch; {network}",
        budget=replace(protocol.budget, order="domains"),
        sizes=(0.8, 0.2, 0),
        official=official,
        by_domain=True,
        selection="training-domain",
    )


def _c_mixup(batch_size: int, sizes: Sizes, mixing: Mapping[str, Any]) -> Protocol:
    return Protocol(
        "c-mixup",
        "C-Mixup, NeurIPS 2022: its code's splits, scaling, network, optimiser and settings",
        "mlp",
        Budget(epochs=100, batch_size=batch_size, lr=1e-2),
        sizes=sizes,
        official=False,
        scale="minmax",
        scale_by="all rows",
        standardise_target=False,
        shuffle="numpy",
        methods={
            "mixup": {"alpha": 2},
            "manifold-mixup": {"alpha": 2, "taps": ("block1",)},
            "c-mixup": {"alpha": 2, **mixing},
        },
    )


PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "default": {"table": _TABLE, "image": _IMAGE, "digits": _DIGITS},
    "c-mixup": {
        "airfoil": _c_mixup(16, (1003, 300, 200), {"bandwidth": 1.75, "place": "block1"}),
        "no2": _c_mixup(32, (200, 200, 100), {"bandwidth": 1.2}),
    },
    "domains": {
        "table": _by_domain(_TABLE, "MLP 128-128, Adam"),
        "image": _by_domain(_IMAGE, "small CNN, Adam with a cosine schedule"),
    },
    "domains-official": {"image": _by_domain(_IMAGE, "small CNN, Adam with a cosine schedule", official=True)},
}


def choose(name: str, source: Source) -> Protocol:
    """The protocol `name` for this data set; ValueError if there is none, or if it needs domains that are not there."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    known = PROTOCOLS[name]
    if any(protocol.by_domain for protocol in known.values()):
        check_domains(source)
    if name == "domains-official" and set(source.official or ()) != {"train", "valid"}:
        whole = "it has test rows of its own (--protocol default takes those)" if source.official else "it has none"
        raise ValueError(
            f"the protocol {name!r} needs the publisher's training and validation rows of every domain; for "
            f"{source.name} {whole}; use --domain-protocol leave-one-out"
        )
    if source.builtin and source.name in known:
        return known[source.name]
    if source.kind in known:
        return known[source.kind]
    raise ValueError(
        f"the protocol {name!r} is defined for the built-in data sets {', '.join(known)}, not for {source.name!r}; "
        "use --protocol default"
    )


def adjust(
    protocol: Protocol,
    *,
    net: str | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    devices: int | None = None,
    selection: str | None = None,
    batch_norm: BatchNorm | None = None,
) -> Protocol:
    """The protocol with what the user asked for in place of its own; ValueError for a rule that it does not have."""
    rules = DOMAIN_RULES if protocol.by_domain else RULES
    if selection is not None and selection not in rules:
        known = f"the protocol {protocol.name!r} selects by {', '.join(rules)}; got selection = {selection!r}"
        raise ValueError(known if protocol.by_domain else f"{known} (more rules: --protocol domains)")
    asked: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "lr": lr, "devices": devices}
    budget = replace(protocol.budget, **{name: value for name, value in asked.items() if value is not None})
    return replace(
        protocol,
        budget=budget,
        network=net or protocol.network,
        selection=selection or protocol.selection,
        batch_norm=one_of("batch_norm", batch_norm or protocol.batch_norm, BATCH_NORM),
    )


def official_rows(protocol: Protocol, source: Source) -> Mapping[str, Tensor] | None:
    """The parts that the publisher fixed, where the protocol takes them: with test rows, or of every domain."""
    found = source.official if protocol.official else None
    return found if found is not None and (protocol.by_domain or "test" in found) else None


def tested_domains(source: Source) -> list[int]:
    """The ids of the domains that have rows."""
    return [] if source.domain is None else torch.unique(source.domain).tolist()


def check_domains(source: Source) -> None:
    """ValueError unless there are two domains or more, each with rows enough to split 80/20."""
    if source.domain is None:
        raise ValueError(
            "the protocol 'domains' holds out one domain after the other: say which column holds them (--domain)"
        )
    found = tested_domains(source)
    if len(found) < 2:
        raise ValueError(f"the protocol 'domains' needs two domains or more; {source.name} has {len(found)}")
    for domain in found:
        count = int((source.domain == domain).sum())
        if count < 5:
            raise ValueError(
                f"the domain {source.domain_names[domain]!r} has {count} rows; the protocol 'domains' needs 5 or more "
                "in each: leave it out, or merge it with another"
            )


def split(protocol: Protocol, source: Source, seed: int, hold: Hold | None = None) -> Splits:
    """Training, validation and test rows of a seed: shuffled, for classes in equal proportions.

    hold: for protocols by domain; None holds out the first domain.
    """
    if protocol.by_domain:
        return _split_by_domain(protocol, source, seed, hold or Hold((tested_domains(source)[0],)))
    official = official_rows(protocol, source)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(source)) if official is None else official["train"]
    if protocol.shuffle == "numpy":
        rows = rows[torch.from_numpy(np.random.RandomState(seed).permutation(len(rows)))]
    else:
        rows = rows[torch.randperm(len(rows), generator=generator)]
    if isinstance(source.task, Classification) and source.y.ndim == 1:
        rows = rows[interleaved(source.y[rows], generator)]
    if official is None:
        return Splits(*_cut(protocol.sizes, rows, protocol.name))
    if "valid" in official:
        return Splits(rows, official["valid"], official["test"])
    share = protocol.sizes[1] / (protocol.sizes[0] + protocol.sizes[1])
    train, valid, _ = _cut((1 - share, share, 0), rows, protocol.name)
    return Splits(train, valid, official["test"])


def _split_by_domain(protocol: Protocol, source: Source, seed: int, hold: Hold) -> Splits:
    """The split of a domain depends on the seed and the domain alone, whichever is held out.

    A publisher's split has no seed; a domain that is held out by it is tested as a whole, but for rows that validate.
    """
    assert source.domain is not None
    inner, outer, official = {}, {}, official_rows(protocol, source)
    for domain in tested_domains(source):
        name = hashlib.sha256(f"{seed}/{source.domain_names[domain]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "little"))
        if official is not None:
            inner[domain], outer[domain] = (part[source.domain[part] == domain] for part in official.values())
            continue
        rows = torch.nonzero(source.domain == domain).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        if isinstance(source.task, Classification) and source.y.ndim == 1:
            rows = rows[interleaved(source.y[rows], generator)]
        cut = int(protocol.sizes[1] * len(rows))
        outer[domain], inner[domain] = rows[:cut], rows[cut:]

    def join(parts: Mapping[int, Tensor], out: bool) -> Tensor:
        return torch.cat([rows for domain, rows in parts.items() if (domain in hold.out) == out]).sort().values

    test = join(inner, True)
    if official is not None and not hold.oracle:
        test = torch.cat((test, join(outer, True))).sort().values
    if len(hold.out) > 1:
        return Splits(join(inner, False), test, test)
    return Splits(join(inner, False), join(outer, hold.oracle), test)


def _cut(sizes: Sizes, rows: Tensor, name: str) -> list[Tensor]:
    count = len(rows)
    if max(sizes) > 1:
        wanted = [int(size) for size in sizes]
        if sum(wanted) > count:
            raise ValueError(f"the protocol {name!r} needs {sum(wanted)} rows ({sizes}), the data has {count}")
    else:
        wanted = [round(sizes[0] * count), round(sizes[1] * count)]
        wanted.append(count - sum(wanted) if sizes[2] else 0)
        if any(size > 0 and got < 2 for size, got in zip(sizes, wanted, strict=True)):
            raise ValueError(f"{count} rows are too few to split into {sizes}; 10 or more are needed")
    return [part.sort().values for part in torch.split(rows[: sum(wanted)], wanted)]


@dataclass(frozen=True)
class Scaled:
    """Rows of a source that are decoded and scaled when they are asked for."""

    source: Source
    rows: Tensor
    scaler: Scaler

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Tensor:
        return self.scaler(self.source.take(self.rows[index.cpu()])).to(index.device)


def prepare(protocol: Protocol, source: Source, splits: Splits, label_noise: float = 0.0, noise_seed: int = 0) -> Data:
    """What one run trains and is scored on. label_noise: the share of labels replaced, in training and validation.

    Which ones, and by what, is drawn for all rows of the source, so that it does not depend on the split.
    """
    scaler = source.scaler(
        splits.train if protocol.scale_by == "training rows" else torch.arange(len(source)), protocol.scale
    )
    y, scale = source.y, None
    if source.task.name == "regression" and protocol.standardise_target:
        offset, spread = y[splits.train].mean(0), y[splits.train].std(0)
        spread = torch.where(spread > 0, spread, 1.0)
        y, scale = (y - offset) / spread, (offset, spread)
    noisy = y
    if label_noise:
        generator = torch.Generator().manual_seed(noise_seed)
        noisy = flip_labels(y, source.task.outputs, label_noise, generator)[0]

    def part(rows: Tensor, y: Tensor) -> Part | None:
        if not len(rows):
            return None
        domain = None if source.domain is None else source.domain[rows]
        lazy = Scaled(source, rows, scaler)
        small = source.kind == "table" or len(rows) * math.prod(source.input_shape) * 4 <= IN_MEMORY
        raw = None if scale is None else source.y[rows]
        return Part(scaler(source.take(rows)) if small else lazy, y[rows], domain, raw)

    train = part(splits.train, noisy)
    assert train is not None
    return Data(train, part(splits.valid, noisy), part(splits.test, y), source.task, scale)
