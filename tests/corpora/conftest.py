"""A small corpus with three domains that differ in their letters."""

import json

import numpy as np
import pytest

from omnimix.corpora.proxy import pack

LETTERS = {"a": "abcd ", "b": "efgh ", "c": "abef "}
DOCUMENTS = {"a": 40, "b": 24, "c": 20}
HELD_OUT = {"valid": 0.2, "test": 0.1}


def documents(seed=4):
    random = np.random.default_rng(seed)
    found = [
        {"domain": name, "text": "".join(random.choice(list(LETTERS[name]), size=int(random.integers(20, 60))))}
        for name, count in DOCUMENTS.items()
        for _ in range(count)
    ]
    return [found[i] for i in random.permutation(len(found))]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The documents as JSON lines."""
    file = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    return file


@pytest.fixture(scope="session")
def packed(corpus, tmp_path_factory):
    """The documents as bytes."""
    return pack(corpus, tmp_path_factory.mktemp("packed"), held_out=HELD_OUT)
