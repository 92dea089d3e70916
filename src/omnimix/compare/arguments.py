"""Parameters as texts give them: what a constructor declares decides what they may be."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

Value: TypeAlias = Any
"""bool, int, float, str, None, or a tuple of them."""


def write_value(value: Value) -> str:
    """The canonical text of a value: equal values have equal texts, and `parse_value` reads it back."""
    if isinstance(value, (tuple, list)):
        return "+".join(write_value(part) for part in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def to_json(value: Any) -> Any:
    """Values in what JSON has: tuples are lists, and what is not finite is its canonical text."""
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(part) for part in value]
    return write_value(value) if isinstance(value, float) and not math.isfinite(value) else value


def fit_sequences(factory: Callable[..., Any], given: Mapping[str, Value]) -> dict[str, Value]:
    """A single value becomes a tuple of one where `factory` declares a sequence and nothing simpler."""
    wants = _declared(factory)
    return {
        key: (value,) if _takes_sequence(wants.get(key)) and not isinstance(value, (tuple, list, type(None))) else value
        for key, value in given.items()
    }


def check_types(factory: Callable[..., Any], given: Mapping[str, Value]) -> None:
    """ValueError for a value that is not of the type that `factory` declares."""
    wants = _declared(factory)
    for key, value in given.items():
        hint = wants.get(key, Any)
        if not _fits(value, hint):
            words = list(dict.fromkeys(_words(hint)))
            allowed = f"must be {' or '.join(words)}" if words else "takes an object, which only Python can give"
            raise ValueError(f"{key} {allowed}, got {value!r}")


def _declared(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters; of those that say none, or whose names are not known here, none."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}
    return {name: p.annotation for name, p in parameters.items() if p.annotation is not inspect.Parameter.empty}


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _takes_sequence(hint: Any) -> bool:
    """Whether it takes a sequence, and no single value besides."""
    kinds = [option for option in _options(hint) if option is not types.NoneType]
    return bool(kinds) and all(get_origin(kind) in (tuple, Sequence) for kind in kinds)


def _fits(value: Value, hint: Any) -> bool:
    return any(_is(value, option) for option in _options(hint))


def _is(value: Value, kind: Any) -> bool:
    origin, within = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in within)
    if origin in (tuple, Sequence):
        return isinstance(value, (tuple, list)) and all(_fits(part, within[0]) for part in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind) if isinstance(origin or kind, type) else False


def _words(hint: Any) -> list[str]:
    """What may be typed, in words."""
    known = {bool: "true or false", int: "an integer", float: "a number", str: "a name", types.NoneType: "none"}
    said: list[str] = []
    for option in _options(hint):
        within = get_args(option)
        if get_origin(option) is Literal:
            said += [repr(one) for one in within]
        elif get_origin(option) in (tuple, Sequence):
            said += [f"{words} (several joined by +)" for words in _words(within[0])]
        elif option in known:
            said.append(known[option])
    return said
