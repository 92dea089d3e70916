"""What writes new columns beside documents: classifiers, scorers and language models share this one face.

An annotator is anything with `annotate(documents) -> columns`; a document is a mapping, as a row of a file, and a
column has one value a document. What it says of a document must not depend on the others of the batch, so that a corpus
can be annotated shard by shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Document = Mapping[str, Any]
SHOWN = 80
"""Characters of a value that a message shows."""


@runtime_checkable
class Annotator(Protocol):
    """Writes new columns beside documents."""

    def annotate(self, documents: Sequence[Document]) -> Mapping[str, Sequence[Any]]:
        """name -> values, one a document and in their order. The names do not depend on the documents."""
        ...


def annotated(annotator: Annotator, documents: Sequence[Document]) -> dict[str, list[Any]]:
    """The columns of an annotator, as lists; ValueError where one is not as long as the documents, or there already."""
    columns = {name: list(values) for name, values in annotator.annotate(documents).items()}
    who = type(annotator).__name__
    if not columns:
        raise ValueError(f"{who} gave no column")
    for name, values in columns.items():
        if len(values) != len(documents):
            raise ValueError(f"{who}: column {name!r} has {len(values)} values for {len(documents)} documents")
    there = [name for name in columns if any(name in document for document in documents)]
    if there:
        renames = " ".join(f"--rename {name}=NAME" for name in there)
        raise ValueError(
            f"{who}: column {', '.join(map(repr, there))} is in the documents already: give the new one another name "
            f"(on the command line: {renames})"
        )
    return columns


def shown(value: object) -> str:
    """A value for a message: its `repr`, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def texts(documents: Sequence[Document], column: str | Sequence[str] = "text") -> list[str]:
    """A column of text of the documents, or several joined by empty lines.

    ValueError that tells which document has no text there.
    """
    columns = (column,) if isinstance(column, str) else tuple(column)
    found = []
    for row, document in enumerate(documents):
        parts = []
        for name in columns:
            text = document.get(name)
            if not isinstance(text, str):
                raise ValueError(
                    f"document {row}: column {name!r} must hold text, got {shown(text)}; "
                    f"its columns are {', '.join(map(str, document))}"
                )
            parts.append(text)
        found.append("\n\n".join(parts))
    return found
