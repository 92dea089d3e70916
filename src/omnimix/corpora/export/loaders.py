"""Libraries that interleave data sets by probabilities: Hugging Face datasets, mosaicml streaming, litdata, TorchTitan.

They draw rows, so that weights are shares of documents, unless rows are packed sequences already: export then a
mixture whose unit is "documents" by declaration. TorchTitan packs before it mixes ("pack-then-mix"): shares of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .base import Exporter, shares


class HuggingFace(Exporter):
    """JSON: `files` to load in this order, and the arguments of `interleave_datasets`.

    stopping_strategy is "all_exhausted": the default stops at the first data set that ends, and so cuts the mixture.
    """

    name, suffix, unit = "hf", ".json", "documents"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        how = {"probabilities": [*weights.values()], "seed": 0, "stopping_strategy": "all_exhausted"}
        return json.dumps({"files": [paths[d] for d in weights], "interleave_datasets": how}, indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        found = json.loads(text)
        probabilities = found["interleave_datasets"]["probabilities"]
        if abs(sum(probabilities) - 1) > 1e-6:
            raise ValueError(f"probabilities must sum to 1, got {sum(probabilities)}")
        return dict(zip(found["files"], probabilities, strict=True))


class Streaming(Exporter):
    """JSON: keyword arguments of one mosaicml `Stream` each; all have a proportion, as it demands."""

    name, suffix, unit = "streaming", ".json", "documents"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        return (
            json.dumps({"streams": [{"local": paths[d], "proportion": w} for d, w in weights.items()]}, indent=2) + "\n"
        )

    def read(self, text: str) -> dict[str, float]:
        streams = json.loads(text)["streams"]
        if any("proportion" not in one or {"repeat", "choose"} & set(one) for one in streams):
            raise ValueError("every stream needs a proportion, and neither repeat nor choose beside it")
        return shares({one["local"]: one["proportion"] for one in streams})


class LitData(Exporter):
    """JSON: `datasets` in this order, and the other arguments of litdata's `CombinedStreamingDataset`.

    Weights are refused there together with iterate_over_all=True, its default.
    """

    name, suffix, unit = "litdata", ".json", "documents"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        how = {"weights": [*weights.values()], "iterate_over_all": False, "seed": 42}
        return json.dumps({"datasets": [paths[d] for d in weights], **how}, indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        found = json.loads(text)
        if found["iterate_over_all"]:
            raise ValueError("litdata takes weights with iterate_over_all=false only")
        return shares(dict(zip(found["datasets"], found["weights"], strict=True)))


class TorchTitan(Exporter):
    """JSON: keyword arguments of one `WeightedDataset` each, of a DatasetMixConfig that packs before it mixes."""

    name, suffix, unit = "torchtitan", ".json", "tokens"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        rows = [{"dataset": paths[d], "weight": w} for d, w in weights.items()]
        return json.dumps({"mixing": "pack-then-mix", "datasets": rows}, indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        return shares({row["dataset"]: row["weight"] for row in json.loads(text)["datasets"]})
