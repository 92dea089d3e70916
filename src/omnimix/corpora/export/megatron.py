"""Megatron-LM's blend, `30 prefixA 70 prefixB`, for --data-args-path; NeMo takes the same as a list of strings.

Weights of any scale, normalised by the reader; they are shares of packed sequences. An odd number of words, or one that
is no number where a weight should be, means there "all are prefixes": such files are refused when read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .base import Exporter, shares


class Megatron(Exporter):
    """Words of a file for `--data-args-path`, or after `--data-path`."""

    name, suffix, unit, forbidden = "megatron", ".txt", "sequences", " \t\n"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        return " ".join(blend(weights, paths)) + "\n"

    def read(self, text: str) -> dict[str, float]:
        return parse_blend(text.split())


class NeMo(Exporter):
    """JSON of the argument `paths` of NeMo 2's PreTrainingDataModule."""

    name, suffix, unit = "nemo", ".json", "sequences"

    def write(self, weights: Mapping[str, float], paths: Mapping[str, str]) -> str:
        return json.dumps({"paths": blend(weights, paths)}, indent=2) + "\n"

    def read(self, text: str) -> dict[str, float]:
        return parse_blend(json.loads(text)["paths"])


def blend(weights: Mapping[str, float], paths: Mapping[str, str]) -> list[str]:
    """Weights and prefixes in turn."""
    return [word for domain, weight in weights.items() for word in (repr(weight), paths[domain])]


def parse_blend(words: list[str]) -> dict[str, float]:
    """Shares by prefix; ValueError where the reader would take weights for prefixes."""
    if len(words) % 2:
        raise ValueError(f"a blend is weights and prefixes in turn, got {len(words)} words")
    try:
        return shares({path: float(weight) for weight, path in zip(words[::2], words[1::2], strict=True)})
    except ValueError as error:
        raise ValueError(f"a blend is weights and prefixes in turn: {error}") from None
