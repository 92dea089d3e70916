"""The pages of the command line and of the Python interface, made when the site is built from what the code says."""

import importlib
import inspect
import pkgutil
from typing import Any, get_args, get_origin, get_type_hints

from docstrings import escape, prose, signature

import omnimix
from omnimix import cli
from omnimix.core.method import Method

COMMANDS, API = "<!-- generated: commands -->", "<!-- generated: api -->"
ROOMS = ("data", "networks", "train", "compare")
"""Packages beside omnimix itself whose `__all__` is for users."""
INTEGRATIONS = ("sklearn", "torchvision", "timm", "lightning", "transformers", "loggers")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    for marker, make in ((COMMANDS, commands), (API, api)):
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def commands() -> str:
    """Every verb with its arguments and options."""
    for module in pkgutil.iter_modules(cli.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"omnimix.cli.{module.name}")
    from omnimix.cli.console import app

    parts = []
    verbs = {c.name or c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    for name, verb in sorted(verbs.items()):
        parts += [f"## omnimix {name}", prose(verb.__doc__), _options(verb)]
    return "\n\n".join(parts)


def _options(verb: Any) -> str:
    lines = ["| option | takes | default | |", "|---|---|---|---|"]
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, option = get_args(hints[name])
        # within Annotated, typer keeps the first name of an option as its "default"
        declared = [n for n in (option.default, *(option.param_decls or ())) if isinstance(n, str) and n[:1] == "-"]
        said = ", ".join(f"`{part}`" for part in declared) or f"`--{name.replace('_', '-')}`"
        if type(option).__name__ == "ArgumentInfo":
            said = f"`{name.upper()}`"
        default = parameter.default
        shown = "" if default in (None, "", False) else f"`{default}`"
        if default is inspect.Parameter.empty:
            shown = "required"
        lines.append(f"| {said} | {_takes(kind)} | {shown} | {escape(option.help or '')} |")
    return "\n".join(lines)


def _takes(kind: Any) -> str:
    """number, text, path; nothing for switches."""
    if get_origin(kind) is not None:
        inner = [part for part in get_args(kind) if part is not type(None)]
        return ", ".join(map(_takes, inner))
    return {"bool": "", "str": "text", "int": "number", "float": "number", "Path": "path"}.get(
        kind.__name__, kind.__name__
    )


def api() -> str:
    """What `omnimix.__all__` holds, and what is for users in other packages."""
    kinds: dict[str, list[str]] = {"Functions": [], "Methods": [], "Parts and vocabulary": []}
    for name in omnimix.__all__:
        what = getattr(omnimix, name)
        is_method = isinstance(what, type) and issubclass(what, Method)
        kinds["Functions" if not isinstance(what, type) else "Methods" if is_method else "Parts and vocabulary"] += [
            name
        ]
    parts = []
    for heading, some in kinds.items():
        parts.append(f"## {heading}")
        for name in sorted(some, key=str.lower):
            parts += entry(f"omnimix.{name}", name, getattr(omnimix, name))
    for path in [*ROOMS, *(f"integrations.{name}" for name in INTEGRATIONS), "testing"]:
        try:
            module = importlib.import_module(f"omnimix.{path}")
        except ImportError:
            parts += [f"## omnimix.{path}", "Not installed where this page was made."]
            continue
        parts += [f"## omnimix.{path}", prose(module.__doc__)]
        for name in _public(module):
            what = getattr(module, name)
            if callable(what):
                parts += entry(f"omnimix.{path}.{name}", name, what)
    return "\n\n".join(part for part in parts if part)


def _public(module: Any) -> list[str]:
    """`__all__`, else what is defined there."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    return [
        name
        for name, what in vars(module).items()
        if not name.startswith("_") and callable(what) and getattr(what, "__module__", "") == module.__name__
    ]


def entry(path: str, name: str, what: Any) -> list[str]:
    """A heading, how it is called, what it says, and its own public functions."""
    if not callable(what):
        return [f"### `{path}`"]
    parts = [f"### `{path}`", signature(name, what), prose(what.__doc__)]
    if isinstance(what, type) and what.__module__.startswith("omnimix"):
        for own, member in vars(what).items():
            if own.startswith("_") or not inspect.getdoc(member):
                continue
            if inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
                parts += [f"**`{name}.{own}`**", signature(own, getattr(what, own)), prose(inspect.getdoc(member))]
            elif isinstance(member, property):
                parts += [f"**`{name}.{own}`**: {escape(' '.join((inspect.getdoc(member) or '').split()))}"]
    return parts
