"""The files of papers' code: DoReMi's JSON, RegMix's YAML, WebOrganizer's JSON. They hold names and any unit."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .base import Exporter, shares
from .finetuning import _dump, _load


class DoReMi(Exporter):
    """{"train_domain_weights": {..}, "eval_domain_weights": {..}}, as doremi's configs; DoGE's are the same."""

    name, suffix, unit = "doremi", ".json", None

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        own = {paths[domain]: weight for domain, weight in weights.items()}
        return json.dumps({"train_domain_weights": own, "eval_domain_weights": own}, indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        weights = json.loads(text)["train_domain_weights"]
        return shares({name: weight for name, weight in weights.items() if weight})


class RegMix(Exporter):
    """train: {name: weight}, as regmix's mixture configs."""

    name, suffix, unit = "regmix", ".yaml", None

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        return _dump({"train": {paths[domain]: weight for domain, weight in weights.items()}})

    def read(self, text: str) -> dict[str, float]:
        return shares({name: weight for name, weight in _load(text)["train"].items() if weight})


class WebOrganizer(Exporter):
    """[{"domain": name, "weight": weight}, ..], as WebOrganizer's selection script reads."""

    name, suffix, unit = "weborganizer", ".json", None

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        return json.dumps([{"domain": paths[d], "weight": w} for d, w in weights.items()], indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        return shares({row["domain"]: row["weight"] for row in json.loads(text) if row["weight"]})
