"""Docstrings and signatures as Markdown: indented blocks are equations, the rest is text."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

WIDTH = 88
_CODE = re.compile(r"(`+[^`]+`+)")
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def escape(text: str) -> str:
    """Text without Markdown's own signs, but for spans of code; arXiv numbers become links."""
    parts = _CODE.split(text)
    for place in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_\[\]#|])", r"\\\1", parts[place]).replace("<", "&lt;")
        parts[place] = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", plain)
    return "".join(parts)


def prose(text: str | None) -> str:
    """A docstring."""
    written: list[str] = []
    paragraph: list[str] = []
    block: list[str] = []

    def flush() -> None:
        if paragraph:
            written.append(escape(" ".join(paragraph)))
        if block:
            written.append(fence("\n".join(block)))
        paragraph.clear()
        block.clear()

    for line in inspect.cleandoc(text or "").splitlines():
        indented = line.startswith("    ")
        if (not line and paragraph) or (line and not indented and block) or (indented and paragraph):
            flush()
        if indented or (not line and block):
            block.append(line)
        elif line:
            paragraph.append(line)
    flush()
    return "\n\n".join(written)


def fence(code: str, language: str = "text") -> str:
    """A block of code, shown as it is."""
    return f"```{language}\n{textwrap.dedent(code).strip()}\n```"


def signature(name: str, what: Callable[..., Any]) -> str:
    """How it is called, in lines of at most `WIDTH` characters where that is possible."""
    try:
        called = inspect.signature(what)
    except ValueError:
        return fence(name, "py")
    given, result = _given(called), ""
    if called.return_annotation is not inspect.Signature.empty and not isinstance(what, type):
        result = f" -> {_annotation(called.return_annotation)}"
    line = f"{name}({', '.join(given)}){result}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in given) + f"){result}"
    return fence(line, "py")


def _given(called: inspect.Signature) -> list[str]:
    """The parameters as they are written, with the * before those that are given by name only."""
    written, starred = [], False
    for parameter in called.parameters.values():
        kind, text = parameter.kind, parameter.name
        if kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            written.append("*")
        starred = starred or kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        text = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(kind, "") + text
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {_default(parameter.default)}"
        written.append(text)
    return written


def _annotation(what: Any) -> str:
    return what if isinstance(what, str) else inspect.formatannotation(what)


def _default(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
