"""What every exporter shares: the unit that its consumer counts in, what it cannot say, and zero weights left out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...core.checks import one_of
from ..mixture import Mixture, Unit


@dataclass(frozen=True)
class Exported:
    """text: the file's. suffix: of its name. unit: in which its weights are shares. dropped: domains of weight 0."""

    text: str
    suffix: str
    unit: str
    dropped: tuple[str, ...]


class Exporter(ABC):
    """Writes the domain weights as one trainer reads them."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    unit: ClassVar[Unit | None]
    """What the consumer's weights are shares of; None: whatever the mixture's are."""
    forbidden: ClassVar[str] = ""
    """Characters that names and paths cannot have there."""

    @abstractmethod
    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        """The file: positive weights of sum 1 by domain, and where each domain lies (its name, where not told)."""

    @abstractmethod
    def read(self, text: str) -> dict[str, float]:
        """Weights by path (or by name, where the file holds names), of sum 1, as the consumer understands the text."""


def export(
    exporter: Exporter,
    mixture: Mixture,
    *,
    paths: Mapping[str, str] | None = None,
    tokens: Mapping[str, float] | None = None,
    phase: int | None = None,
) -> Exported:
    """A mixture as the file of a trainer.

    paths: where each domain's data lie there. tokens: mean tokens of a document of each domain, for trainers that count
    documents where the mixture counts tokens, or the other way round. phase: 0, 1, ...; which part of a schedule to
    write, since no format here holds one. ValueError for what the format cannot say.
    """
    if phase is not None and not 0 <= phase < len(mixture.phases):
        raise ValueError(f"phase must lie in 0..{len(mixture.phases) - 1}, got {phase}")
    if phase is None and not mixture.constant:
        raise ValueError(
            f"{exporter.name} files hold constant weights, the mixture has {len(mixture.phases)} phases: export each "
            "by its number (phase=0, 1, ...), or the mixture.overall()"
        )
    one = Mixture(mixture.phases[phase or 0].weights, unit=mixture.unit)
    weights = _in_unit(one, exporter, tokens).weights
    kept = {domain: weight for domain, weight in weights.items() if weight > 0}
    places = {domain: str((paths or {}).get(domain, domain)) for domain in kept}
    for domain, place in places.items():
        bad = [c for c in exporter.forbidden if c in place]
        if bad or not place:
            raise ValueError(
                f"{exporter.name} cannot read the path {place!r} of {domain!r}: it has {bad[0] if bad else ''!r}"
            )
    if len(set(places.values())) < len(places):
        raise ValueError("two domains have the same path: the file could not tell them apart")
    unit = exporter.unit or one.unit
    return Exported(
        exporter.write(kept, places), exporter.suffix, unit, tuple(domain for domain in weights if domain not in kept)
    )


def _in_unit(mixture: Mixture, exporter: Exporter, tokens: Mapping[str, float] | None) -> Mixture:
    unit = exporter.unit
    if unit is None or unit == mixture.unit or {unit, mixture.unit} == {"tokens", "sequences"}:
        return mixture  # packed sequences are of equal length
    if tokens is None:
        raise ValueError(
            f"{exporter.name} counts {unit}, the mixture's weights are shares of {mixture.unit}: give the mean tokens "
            "of a document of every domain (tokens=)"
        )
    through = mixture if mixture.unit != "sequences" else Mixture(mixture.weights, unit="tokens")
    return through.to_unit("tokens" if unit == "sequences" else one_of("unit", unit, ("tokens", "documents")), tokens)


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Positive weights of any scale as shares of sum 1; ValueError for others."""
    total = math.fsum(weights.values())
    if not weights or not all(weight > 0 and math.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"weights must be finite and > 0, got {dict(weights)}")
    return {name: weight / total for name, weight in weights.items()}
