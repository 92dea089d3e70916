"""What writes new columns beside documents: classifiers, scorers and language models share this one face.

An annotator is anything with `annotate(documents) -> columns`; a document is a mapping, as a row of a file, and a
column has one value a document. What it says of a document must not depend on the others of the batch, so that a corpus
can be annotated shard by shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Document = Mapping[str, Any]


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
        if any(name in document for document in documents):
            raise ValueError(f"{who}: column {name!r} is in the documents already: give it another name")
    return columns


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
                    f"document {row}: column {name!r} must hold text, got {text!r}; "
                    f"its columns are {', '.join(map(str, document))}"
                )
            parts.append(text)
        found.append("\n\n".join(parts))
    return found
