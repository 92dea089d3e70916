"""What to merge, and how: the settings of a merge, tensor by tensor, from the command line or from mergekit's YAML."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ...core.checks import at_least, one_of
from ..merge import DareLinear, DareTies, Linear, Merger, ModelStock, Slerp, TaskArithmetic, Ties, UniformSoup

Setting: TypeAlias = Any
"""A value, a list of numbers (interpolated over the layers), or a list of {filter: part of a tensor's name, value}."""

METHODS: dict[str, tuple[type[Merger], tuple[str, ...]]] = {
    "linear": (Linear, ("weight", "normalize")),
    "soup": (UniformSoup, ()),
    "slerp": (Slerp, ("t",)),
    "task-arithmetic": (TaskArithmetic, ("weight", "lambda", "normalize")),
    "ties": (Ties, ("weight", "density", "lambda", "normalize", "trim")),
    "dare-linear": (DareLinear, ("weight", "density", "lambda", "normalize", "seed")),
    "dare-ties": (DareTies, ("weight", "density", "lambda", "normalize", "seed")),
    "model-stock": (ModelStock, ()),
}
"""The operators that need nothing but checkpoints, and their options."""
PER_MODEL = {"weight": "weights", "density": "density"}
ARGUMENT = {**PER_MODEL, "lambda": "lam"}
"""Options whose constructor argument is called otherwise."""
MERGEKIT: dict[str, dict[str, Setting]] = {
    "ties": {"density": 1.0, "trim": "tensor"},
    "dare-linear": {"density": 1.0},
    "dare-ties": {"density": 1.0},
}
"""Defaults of mergekit that are not ours; its files mean what they mean there."""
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """A merge to make. ValueError for a method, an option or a value that is not there.

    method: of METHODS. models, base: paths. common: options for all models; per_model: options of each, which go first.
    dtype: name of the dtype of the result, None for that of the inputs. experts_per_token: make a mixture of experts
    that chooses so many: the feed-forward networks of all models are the experts, `method` merges the rest, vectors and
    what fits the patterns `average` (names of tensors, with wildcards) are averaged, and routers are drawn by the
    option `seed`.
    """

    method: str
    models: tuple[str, ...]
    base: str | None = None
    common: Mapping[str, Setting] = field(default_factory=dict)
    per_model: tuple[Mapping[str, Setting], ...] = ()
    dtype: str | None = None
    experts_per_token: int | None = None
    average: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        if self.experts_per_token is None:
            if self.average:
                raise ValueError("average is for mixtures of experts: give experts_per_token too")
        elif at_least("experts_per_token", self.experts_per_token, 1) > len(self.models):
            raise ValueError(f"experts_per_token must be at most the number of models, {len(self.models)}")
        kind, _ = METHODS[self.method]
        options = taken(self.method, self.experts_per_token is not None)
        for given in (self.common, *self.per_model):
            for name in given:
                if name not in options:
                    raise ValueError(f"{self.method} has no option {name!r}; it takes {', '.join(options) or 'none'}")
        for given in self.per_model:
            for name in given:
                one_of(f"an option of one model of {self.method}", name, PER_MODEL)
        self.merger("", 0.0).fit(len(self.models), self.base is not None)
        if kind is Ties and self.common.get("trim") != "tensor" and not self._constant():
            raise ValueError(
                "ties with trim 'model' takes one value for all tensors; use trim 'tensor' with lists and filters"
            )

    def _constant(self) -> bool:
        values = [value for given in (self.common, *self.per_model) for value in given.values()]
        return not any(isinstance(value, (list, dict)) for value in values)

    def merger(self, tensor: str, depth: float) -> Merger:
        """The operator for a tensor. depth: place of its layer, 0 first to 1 last; 0 for what is in no layer."""
        kind, options = METHODS[self.method]
        arguments: dict[str, Any] = {}
        for option in options:
            common = _value(self.common.get(option), tensor, depth)
            argument = ARGUMENT.get(option, option)
            own = [_value(given.get(option), tensor, depth) for given in self.per_model]
            if option in PER_MODEL and any(value is not None for value in own):
                fallback = common if common is not None else 1.0
                arguments[argument] = [fallback if value is None else value for value in own]
            elif option == "weight" and common is not None:
                arguments[argument] = [common] * len(self.models)
            elif common is not None:
                arguments[argument] = common
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(f"{self.method}: a value of the wrong kind: {error}") from None

    def facts(self) -> dict[str, Any]:
        """As JSON has it, with the defaults of options that were not given."""
        kind, options = METHODS[self.method]
        signature = inspect.signature(kind).parameters
        defaults = {option: signature[ARGUMENT.get(option, option)].default for option in options}
        common = {option: 1.0 if value is None else value for option, value in {**defaults, **self.common}.items()}
        sparse = {"experts_per_token": self.experts_per_token, "average": list(self.average), "router_seed": self.seed}
        return {
            "method": self.method, "models": list(self.models), "base": self.base, "options": common,
            "model_options": [dict(given) for given in self.per_model], "dtype": self.dtype,
            **({} if self.experts_per_token is None else sparse),
        }  # fmt: skip

    @property
    def seed(self) -> int:
        """Of the routers."""
        return at_least("seed", self.common.get("seed", 0), 0)


def taken(method: str, sparse: bool = False) -> tuple[str, ...]:
    """The options of a method; with `sparse` as part of a mixture of experts."""
    options = METHODS[method][1]
    return options if not sparse or "seed" in options else (*options, "seed")


def depths(names: Sequence[str]) -> dict[str, float]:
    """The place of each tensor's layer, 0 first to 1 last; the layer is the first number in the name."""
    layer = {name: int(found[1]) for name in names if (found := re.search(r"(?:^|\.)(\d+)(?=\.)", name))}
    last = max(layer.values(), default=0)
    return {name: (layer[name] / last if last else 1.0) if name in layer else 0.0 for name in names}


def _value(setting: Setting, tensor: str, depth: float) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, (list, tuple)):
        return setting
    if setting and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in setting):
        place = depth * (len(setting) - 1)
        low = min(int(place), len(setting) - 1)
        high = min(low + 1, len(setting) - 1)
        return setting[low] + (place - low) * (setting[high] - setting[low])
    for part in setting:
        if not isinstance(part, Mapping) or "value" not in part:
            raise ValueError(f"a list must hold numbers, or entries with 'value' and perhaps 'filter', got {setting!r}")
        if part.get("filter") in (None, "*") or part["filter"] in tensor:
            return _value(part["value"], tensor, depth)
    return None


def read_recipe(file: str | Path) -> Recipe:
    """A recipe from a YAML file as mergekit has it, with mergekit's defaults; paths are relative to where one stands.

    ValueError for what is not read here: other methods, slices that stack layers, tokenizers that would change.
    """
    import yaml

    try:
        held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is no YAML: {error}") from None
    if not isinstance(held, dict):
        raise ValueError(f"{file}: must hold 'merge_method' and 'models'")
    try:
        return _recipe(held)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "experts_per_token", "average",
)  # fmt: skip
"""The last two are ours."""


def _recipe(held: dict[str, Any]) -> Recipe:
    for key in held:
        one_of("key", key, KEYS)
    method = str(held.get("merge_method")).replace("_", "-")
    one_of("merge_method", method, METHODS)
    listed, inner = _listed(held)
    common = {**MERGEKIT.get(method, {}), **_options(held.get("parameters"), method), **_options(inner, method)}
    paths, own = [], []
    for part in listed:
        if not isinstance(part, dict) or not isinstance(part.get("model"), str):
            raise ValueError(f"every entry of models must have 'model', a path, got {part!r}")
        if unknown := set(part) - {"model", "parameters", "layer_range"}:
            raise ValueError(f"an entry of models has 'model' and 'parameters', got {sorted(unknown)}")
        paths.append(part["model"])
        own.append(_options(part.get("parameters"), method))
    base = held.get("base_model")
    if METHODS[method][0].base == "required":  # a base listed among the models adds no change
        keep = [i for i, path in enumerate(paths) if path != base]
        paths, own = [paths[i] for i in keep], [own[i] for i in keep]
    else:
        if method == "slerp" and base is not None:  # there the base is the end at t = 0
            paths = [base, *(path for path in paths if path != base)]
            own = []
        base = None
    if not any(own):
        own = []
    dtype, average = held.get("out_dtype") or held.get("dtype"), held.get("average", [])
    if not isinstance(average, list) or not all(isinstance(pattern, str) for pattern in average):
        raise ValueError(f"average must be a list of patterns of tensor names, got {average!r}")
    return Recipe(
        method, tuple(paths), base, common, tuple(own), dtype, held.get("experts_per_token"), tuple(average)
    )  # fmt: skip


def _listed(held: dict[str, Any]) -> tuple[list[Any], Any]:
    """The models, and the parameters of the only slice where slices are given."""
    models, slices = held.get("models"), held.get("slices")
    if isinstance(models, list) and models and slices is None:
        return models, None
    if models is not None or not isinstance(slices, list) or not slices:
        raise ValueError("must have 'models', a list (or 'slices')")
    if len(slices) > 1 or not isinstance(slices[0], dict) or not isinstance(slices[0].get("sources"), list):
        raise ValueError("slices that stack or drop layers are not merged here; give 'models', or one slice of all")
    sources = slices[0]["sources"]
    ranges = [part.get("layer_range") if isinstance(part, dict) else None for part in sources]
    if any(span != ranges[0] for span in ranges) or not isinstance(ranges[0], list) or ranges[0][:1] != [0]:
        raise ValueError(f"all sources of a slice must have one layer_range from 0 to the last layer, got {ranges}")
    for part in sources:
        layers = _layers(part.get("model"))
        if layers is not None and ranges[0][1:] != [layers]:
            raise ValueError(f"layer_range {ranges[0]} is not all {layers} layers of {part['model']}")
    return sources, slices[0].get("parameters")


def _layers(path: Any) -> int | None:
    from .reader import read_json

    config = Path(str(path)) / "config.json"
    layers = read_json(config, {}).get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def _options(held: Any, method: str) -> dict[str, Setting]:
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise ValueError(f"parameters must name options, got {held!r}")
    options = {"lambda" if name == "lam" else name: value for name, value in held.items()}
    options.pop("int8_mask", None)  # saves memory there, and means nothing else
    rescale = options.pop("rescale", None)
    if rescale is not None and rescale != method.startswith("dare"):
        raise ValueError(f"rescale: {str(rescale).lower()} is not had here with {method}")
    return options
