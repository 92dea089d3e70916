"""What a comparison is asked for: names with parameters, and its configuration as one frozen, hashable object.

A spec is `name:parameter=value:parameter=value`; values are numbers, true, false, none or words, joined by `+` to form
a sequence: `mixup:alpha=0.2:per_sample=true`, `manifold-mixup:taps=input+block1`. A variant may follow: `erm@2x` trains
for twice the epochs, `c-mixup@pairs` and `c-mixup@resampling` are controls of a method that selects partners.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core import registry
from ..core.method import Method
from .arguments import Value, check_types, fit_sequences, write_value

_WORDS = {"true": True, "false": False, "none": None}
MOST_SEEDS = 100_000
"""A longer count is a slip of the pen."""
_VARIANT = re.compile(r"@([a-z][a-z-]*|[0-9.]+x)$")


def parse_value(text: str) -> Value:
    """The value that `text` writes: 32, 0.5, 1e-3, true, none, block1, or a+b for a tuple."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        number = float(text)
    except ValueError:
        return tuple(parse_value(part) for part in text.split("+")) if "+" in text.strip("+") else text
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class Spec:
    """A name and the parameters the user gave it, sorted by name.

    times: of the epochs that others train for. control: the name of a control of the method, or "".
    """

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()
    times: float = 1.0
    control: str = ""

    @staticmethod
    def parse(text: str) -> Spec:
        """ValueError for a text that is not `name:parameter=value:...`."""
        variant = _VARIANT.search(text.strip())
        parts = [part.strip() for part in text.strip()[: variant and variant.start()].split(":")]
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
        spec = Spec(name, tuple(sorted(given.items())))
        if variant is None:
            return spec
        if not variant[1].endswith("x") or variant[1][0].isalpha():
            return replace(spec, control=variant[1])
        return replace(spec, times=_times(text, variant[1][:-1]))

    def __str__(self) -> str:
        times = "" if self.times == 1 else f"@{Decimal(write_value(self.times)):f}x"  # never as 1e+09
        variant = f"@{self.control}" if self.control else times
        return ":".join([self.name, *(f"{key}={write_value(value)}" for key, value in self.parameters)]) + variant

    def resolved(self, defaults: Mapping[str, Value]) -> dict[str, Value]:
        """The parameters to create it with: the user's over `defaults`."""
        return {**defaults, **dict(self.parameters)}


def _times(text: str, number: str) -> float:
    try:
        times = float(number)
    except ValueError:
        times = 0.0
    if times <= 0:
        raise ValueError(
            f"{text!r}: {number + 'x'!r} must be a number > 0 of epochs relative to the others, as in erm@2x"
        )
    return times


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
        fitted = fit_sequences(card.factory, given)
        check_types(card.factory, fitted)
        method = registry.create(spec.name, **fitted)
    except (TypeError, ValueError, AttributeError) as error:  # also of words where it takes an object
        raise ValueError(f"{spec}: {error}") from error
    return _control(spec, method) if spec.control else method


def _control(spec: Spec, method: Method) -> Method:
    from ..samples.pairing.controls import controls

    try:
        known = controls(method)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    if spec.control not in known:
        raise ValueError(f"{spec}: {spec.name} has no control {spec.control!r}; there are: {', '.join(known)}")
    return known[spec.control]


def cost(spec: Spec, method: Method) -> float:
    """Gradient evaluations of a step of the method that `create(spec)` made, relative to plain training."""
    return registry.info(spec.name).cost if method.cost is None else method.cost


def decisive(spec: Spec, parameters: Mapping[str, Value]) -> tuple[str, dict[str, str]]:
    """What names a method in the key of a run: its name with its control, and the parameters that are not its defaults.

    So texts of the same method have one key. How long it trains is for the budget to say.
    """
    card = registry.info(spec.name)
    defaults = {name: write_value(value) for name, value in card.parameters.items()}
    texts = {name: write_value(value) for name, value in fit_sequences(card.factory, parameters).items()}
    return str(Spec(spec.name, control=spec.control)), {n: text for n, text in texts.items() if text != defaults[n]}


def control_specs(spec: Spec, method: Method) -> list[Spec]:
    """The controls of a method that selects partners; none for others. ValueError where they cannot be made."""
    from ..samples.pairing.controls import controls, selects

    if not selects(method):
        return []
    try:
        return [replace(spec, control=name) for name in controls(method)]
    except ValueError as error:
        raise ValueError(f"controls of {spec}: {error}") from error


def parse_seeds(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """`5` is the seeds 0..4; `3,5,7` are those. ValueError otherwise."""
    if isinstance(text, int):
        text = str(text)
    if isinstance(text, str):
        try:
            numbers = [int(part) for part in text.split(",") if part.strip()]
        except ValueError:
            raise ValueError(f"seeds must be a count (5) or seeds with commas (3,5,7), got {text!r}") from None
        if "," not in text and numbers and numbers[0] > MOST_SEEDS:
            raise ValueError(f"seeds = {numbers[0]} are more than {MOST_SEEDS}; a single large seed is written {text},")
        seeds = tuple(numbers) if "," in text else tuple(range(numbers[0])) if numbers else ()
    else:
        seeds = tuple(text)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise ValueError(f"seeds must be a count >= 1 or different integers >= 0 and below 2^32, got {text!r}")
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
    size: int | None = Field(None, ge=1)
    rows: int | None = Field(None, ge=1)
    data_seed: int = Field(0, ge=0)
    batch_norm: Literal["train", "frozen"] | None = None
    net: str | None = Field(None, min_length=1)
    epochs: int | None = Field(None, ge=1, lt=2**31)
    batch: int | None = Field(None, ge=1, lt=2**31)
    lr: float | None = Field(None, gt=0)
    devices: int | None = Field(None, ge=1)
    label_noise: float = Field(0.0, ge=0, le=1)
    noise_seed: int = Field(0, ge=0)
    tune: int = Field(0, ge=0, le=10_000)
    selection: str | None = None
    controls: bool = False
    equal_compute: bool = False
    evaluations: int | None = Field(None, ge=1)

    @property
    def specs(self) -> tuple[Spec, ...]:
        return parse_specs(self.methods)

    def with_methods(self, usual: Sequence[str]) -> Settings:
        """Itself, with `usual` where no methods were asked for."""
        return self if self.methods else self.model_copy(update={"methods": tuple(usual)})

    def expanded(self, defaults: Mapping[str, Mapping[str, Value]], samples: float = math.inf) -> Settings:
        """Itself, with the rows among its methods that `controls` and `equal_compute` ask for.

        defaults: of parameters, by the name of the method. samples: of how many a plain run takes gradients. A control
        stands behind its method, erm@2x at the end.
        """
        rows: list[Spec] = []
        for spec in self.specs:
            rows.append(spec)
            if self.controls and not spec.control and spec.times == 1:
                rows += control_specs(spec, create(spec, defaults.get(spec.name)))
        if self.equal_compute:
            methods = [(spec, create(spec, defaults.get(spec.name))) for spec in rows]
            costs = {round(cost(spec, own) * spec.times + own.samples_ahead / samples, 2) for spec, own in methods}
            rows += [Spec("erm", times=times) for times in sorted(costs) if times > 1]
        return self.model_copy(update={"methods": tuple(dict.fromkeys(map(str, rows)))})

    @property
    def variants(self) -> list[str]:
        """What the rows mean that are more than a method with parameters."""
        said = []
        if any(spec.control for spec in self.specs):
            said.append(
                "NAME@pairs trains on the samples that NAME pairs, without mixing them; NAME@resampling on one sample "
                "of each pair, drawn at random: a gain that they share with NAME is one of resampling, not of mixing"
            )
        elif self.controls:
            said.append("no method here selects whom it mixes, so there are no controls")
        if any(spec.times != 1 for spec in self.specs):
            said.append(
                "NAME@2x trains for twice the epochs of the others; for erm, these are as many gradient evaluations as "
                "a method takes that costs twice as much"
            )
        elif self.equal_compute:
            said.append(
                "every method here costs as many gradient evaluations as erm, so erm has no row of equal compute"
            )
        return said

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
        raise ValueError("; ".join(map(_fault, error.errors()))) from None
    if checked.methods:
        _ = checked.baseline_spec
    if checked.evaluations is not None:
        others = ["epochs"] * (checked.epochs is not None) + ["equal_compute"] * checked.equal_compute
        others += [str(spec) for spec in (checked.specs if checked.methods else ()) if spec.times != 1]
        if others:
            raise ValueError(
                f"evaluations = {checked.evaluations} decides how long every method trains; leave out "
                f"{', '.join(others)}"
            )
    return checked


def _fault(found: Mapping[str, Any]) -> str:
    """A fault that pydantic found, in the words of our own checks."""
    name, value = ".".join(map(str, found["loc"])), found["input"]
    _, should, rule = found["msg"].partition(" should ")
    return f"{name} must {rule}, got {value!r}" if should else f"{name} = {value!r}: {found['msg']}"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal configurations have equal texts. ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of a configuration."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
