"""Axolotl and LLaMA-Factory, which count documents (examples).

Axolotl's `weight` is no share of the mixture: it is the fraction of a data set that is kept,

    kept_i = (target_i / size_i) / max_j (target_j / size_j),

so that the sizes of the data sets, in documents, must be known. Source: their documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import Exporter, shares


class Axolotl(Exporter):
    """YAML of the key `datasets`. sizes: documents of each domain."""

    name, suffix, unit = "axolotl", ".yaml", "documents"

    def __init__(self, sizes: Mapping[str, float] | None = None, kind: str = "completion") -> None:
        self.sizes, self.kind = sizes, kind

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        rate = {domain: weight / self._size(domain) for domain, weight in weights.items()}
        most = max(rate.values())
        rows = [{"path": paths[d], "type": self.kind, "weight": r / most} for d, r in rate.items()]
        return _dump({"datasets": rows})

    def read(self, text: str) -> dict[str, float]:
        """As paths are read, sizes are looked up by path."""
        return shares({row["path"]: row["weight"] * self._size(row["path"]) for row in _load(text)["datasets"]})

    def _size(self, domain: str) -> float:
        size = (self.sizes or {}).get(domain)
        if not size or size <= 0:
            raise ValueError(f"axolotl's weight is a fraction of a data set: give the documents of {domain!r} (sizes=)")
        return size


class LLaMAFactory(Exporter):
    """YAML of the keys `dataset`, `mix_strategy` and `interleave_probs`."""

    name, suffix, unit, forbidden = "llama-factory", ".yaml", "documents", ","

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        probabilities = ",".join(map(repr, weights.values()))
        names = ",".join(paths[d] for d in weights)
        return _dump({"dataset": names, "mix_strategy": "interleave_over", "interleave_probs": probabilities})

    def read(self, text: str) -> dict[str, float]:
        found = _load(text)
        names, probabilities = found["dataset"].split(","), str(found["interleave_probs"]).split(",")
        return shares({name.strip(): float(p) for name, p in zip(names, probabilities, strict=True)})


def _dump(value: object) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False))


def _load(text: str) -> dict:  # type: ignore[type-arg]
    import yaml

    return dict(yaml.safe_load(text))
