"""From text to token ids: bytes, or byte-pair encoding by the tokenizers library, learned here or read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

END = "<|end|>"
"""The token that closes a document."""


class Tokenizer(Protocol):
    """vocabulary: the number of ids; end: the id that closes a document."""

    vocabulary: int
    end: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...


class Bytes:
    """The bytes of UTF-8 text, 0 to 255; 256 closes a document."""

    vocabulary, end = 257, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class Subwords:
    """A tokenizer.json of the tokenizers library. end: its token that closes a document."""

    def __init__(self, inner: Any, end: str = END) -> None:
        found = inner.token_to_id(end)
        if found is None:
            raise ValueError(f"the tokenizer has no token {end!r}; say which one closes a document (end=)")
        self.inner, self.vocabulary, self.end = inner, int(inner.get_vocab_size()), int(found)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(found.ids, dtype=np.uint32) for found in encoded]


def learn_subwords(texts: Iterable[str], vocabulary: int) -> Subwords:
    """Byte-level byte-pair encoding with `vocabulary` tokens, learned from a stream of texts."""
    t = _library()
    if vocabulary < 257:
        raise ValueError(f"vocabulary must be >= 257 (every byte and the end of a document), got {vocabulary}")
    inner = t.Tokenizer(t.models.BPE())
    inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = t.decoders.ByteLevel()
    trainer = t.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=t.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return Subwords(inner)


def load_subwords(file: str | Path, end: str = END) -> Subwords:
    """The tokenizer of a tokenizer.json; ValueError if the file is none."""
    t = _library()
    if not Path(file).is_file():
        raise ValueError(f"tokenizer must be 'bytes', 'bpe:VOCABULARY' or a tokenizer.json, got {str(file)!r}")
    try:
        inner = t.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other kind
        raise ValueError(f"{file}: not a tokenizer.json ({error})") from None
    return Subwords(inner, end)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ValueError("subword tokens need the tokenizers library: pip install tokenizers; or use 'bytes'") from None
    return tokenizers
