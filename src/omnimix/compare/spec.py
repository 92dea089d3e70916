"""What a comparison is asked for: names with parameters, and its configuration as one frozen, hashable object.

A spec is `name:parameter=value:parameter=value`; values are numbers, true, false, none or words, joined by `+` to form
a sequence: `mixup:alpha=0.2:per_sample=true`, `manifold-mixup:taps=input+block1`.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core import registry
from ..core.method import Method

Value: TypeAlias = Any
"""bool, int, float, str, None, or a tuple of them."""
_WORDS = {"true": True, "false": False, "none": None}


def parse_value(text: str) -> Value:
    """The value that `text` writes: 32, 0.5, 1e-3, true, none, block1, or a+b for a tuple."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        number = float(text)
    except ValueError:
        return tuple(parse_value(part) for part in text.split("+")) if "+" in text.strip("+") else text
    return int(number) if number.is_integer() else number


def write_value(value: Value) -> str:
    """The canonical text of a value: equal values have equal texts, and `parse_value` reads it back."""
    if isinstance(value, (tuple, list)):
        return "+".join(write_value(part) for part in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


@dataclass(frozen=True)
class Spec:
    """A name and the parameters the user gave it, sorted by name. `str(spec)` is its identity."""

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    @staticmethod
    def parse(text: str) -> Spec:
        """ValueError for a text that is not `name:parameter=value:...`."""
        parts = [part.strip() for part in text.strip().split(":")]
        name = parts.pop(0)
        while parts and "=" not in parts[0]:  # timm:resnet18
            name += ":" + parts.pop(0)
        given: dict[str, Value] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if not (key.isidentifier() and equals and value):
                raise ValueError(f"{text!r}: {part!r} is not of the form parameter=value (as in mixup:alpha=0.2)")
            if key in given:
                raise ValueError(f"{text!r} gives {key!r} twice")
            given[key] = parse_value(value)
        if not re.fullmatch(r"[\w.:-]+", name) or name.endswith(":"):
            raise ValueError(f"{text!r} is not a name with parameters, such as mixup:alpha=0.2")
        return Spec(name, tuple(sorted(given.items())))

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={write_value(value)}" for key, value in self.parameters)])

    def resolved(self, defaults: Mapping[str, Value]) -> dict[str, Value]:
        """The parameters to create it with: the user's over `defaults`."""
        return {**defaults, **dict(self.parameters)}


def parse_specs(text: str | Sequence[str]) -> tuple[Spec, ...]:
    """Specs separated by commas (or given as a sequence); ValueError for none, or for the same one twice."""
    parts = text.split(",") if isinstance(text, str) else list(text)
    specs = tuple(Spec.parse(part) for part in parts if part.strip())
    if not specs:
        raise ValueError("methods must name at least one method, such as erm,mixup:alpha=0.2")
    for position, spec in enumerate(specs):
        if spec in specs[:position]:
            raise ValueError(f"the method {spec} is listed twice")
    return specs


def create(spec: Spec, defaults: Mapping[str, Value] | None = None) -> Method:
    """The method of a spec, its parameters laid over `defaults`; ValueError for what the registry does not know."""
    card = registry.info(spec.name)
    given = spec.resolved(defaults or {})
    allowed = card.parameters
    for key in given:
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
        if key not in allowed and near:
            raise ValueError(f"{spec.name} has no parameter {key!r}; did you mean {near[0]!r}?")
    try:
        return registry.create(spec.name, **fit_sequences(card.factory, given))
    except TypeError as error:
        raise ValueError(f"{spec}: {error}") from error


def fit_sequences(factory: Callable[..., Any], given: Mapping[str, Value]) -> dict[str, Value]:
    """A single value becomes a tuple of one where `factory` declares a sequence."""
    wants = inspect.signature(factory).parameters
    fitted = dict(given)
    for key, value in given.items():
        declared = str(wants[key].annotation) if key in wants else ""
        if ("Sequence[" in declared or "tuple[" in declared.lower()) and value is not None:
            fitted[key] = value if isinstance(value, (tuple, list)) else (value,)
    return fitted


def parse_seeds(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """`5` is the seeds 0..4; `3,5,7` are those. ValueError otherwise."""
    if isinstance(text, int):
        text = str(text)
    if isinstance(text, str):
        try:
            numbers = [int(part) for part in text.split(",") if part.strip()]
        except ValueError:
            raise ValueError(f"seeds must be a count (5) or seeds with commas (3,5,7), got {text!r}") from None
        seeds = tuple(numbers) if "," in text else tuple(range(numbers[0])) if numbers else ()
    else:
        seeds = tuple(text)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be a count >= 1 or different integers >= 0, got {text!r}")
    return seeds


class Settings(BaseModel):
    """Everything that a comparison is asked for. None: what the protocol says; no methods: the task's usual ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(min_length=1)
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    protocol: str = "default"
    baseline: str | None = None
    target: str | None = None
    task: str = "auto"
    drop: tuple[str, ...] = ()
    domain: str | None = None
    net: str | None = None
    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    label_noise: float = Field(0.0, ge=0, le=1)
    noise_seed: int = Field(0, ge=0)

    @property
    def specs(self) -> tuple[Spec, ...]:
        return parse_specs(self.methods)

    def with_methods(self, usual: Sequence[str]) -> Settings:
        """Itself, with `usual` where no methods were asked for."""
        return self if self.methods else self.model_copy(update={"methods": tuple(usual)})

    @property
    def baseline_spec(self) -> Spec:
        """The method others are compared with: the one asked for, else erm, else the first."""
        if self.baseline is not None:
            wanted = Spec.parse(self.baseline)
            if wanted not in self.specs:
                raise ValueError(
                    f"baseline {self.baseline!r} is not among the methods {', '.join(map(str, self.specs))}"
                )
            return wanted
        plain = Spec("erm")
        return plain if plain in self.specs else self.specs[0]


def settings(**given: Any) -> Settings:
    """Checked settings; ValueError with one line a fault."""
    try:
        checked = Settings(**given)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, f['loc']))} = {f['input']!r}: {f['msg']}" for f in error.errors())
        raise ValueError("; ".join(faults)) from None
    if checked.methods:
        _ = checked.baseline_spec
    return checked


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal configurations have equal texts. ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of a configuration."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
