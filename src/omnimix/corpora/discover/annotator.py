"""A language model as annotator: it is shown a taxonomy as lettered options and answers with a letter.

The options are in another order for every document, drawn from a hash of its text, so that no letter is favoured and
the same document is asked the same wherever it stands. With a function that tells the log-probabilities of answers,

    p(label) = softmax over labels of  (1/n) sum_j log p(token_j of the label's letter),

a soft label for `TaxonomyClassifier`. After Wettig et al., "Organize the Web", ICML 2025, arXiv 2502.10341, with
prompts of our own. Cost: a prompt as long as the document, for each document.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
from scipy.special import softmax

from ...core.checks import at_least, one_of
from ..annotation import Document, texts
from .embed import CHARACTERS, Array
from .taxonomy import Taxonomy

Ask = Callable[[list[str]], Sequence[str]]
"""Prompts -> answers, one each and in their order."""
Score = Callable[[list[str], list[str]], Array]
"""N prompts and C answers -> (N, C) mean log-probability of the tokens of each answer."""
PROMPT = """{instruction}

{options}

{examples}Document:
<<<
{text}
>>>

Answer with the {sign} of one option from the list, and nothing else."""
AGAIN = "\n\nYour last answer was {answer!r}. That is not one of the {sign}s {signs}. Answer with one {sign} only."
REFUSALS = ("raise", "skip")


class TaxonomyAnnotator:
    """Labels documents by a taxonomy. Writes the columns `name` and, with `score`, `name_confidence`.

    ask: prompts -> answers. score: prompts and answers -> log-probabilities, for soft labels instead. Give one of them.
    examples: (text, label) pairs that are shown as solved, in another order for every document. retries: how often a
    document is asked again, told what was wrong. refusal: "raise", or "skip", which leaves the label None. seed: of the
    orders. counts: how many were asked, asked again, and refused since the start.
    """

    def __init__(
        self, taxonomy: Taxonomy, ask: Ask | None = None, *, score: Score | None = None,
        examples: Sequence[tuple[str, str]] = (), columns: Sequence[str] = ("text",), retries: int = 2,
        refusal: str = "raise", characters: int = CHARACTERS, seed: int = 42,
    ) -> None:  # fmt: skip
        if (ask is None) == (score is None):
            raise ValueError("give either ask (prompts -> answers) or score (prompts, answers -> log-probabilities)")
        self.taxonomy, self.ask, self.score = taxonomy, ask, score
        self.examples = list(zip((text for text, _ in examples), taxonomy.ids([y for _, y in examples]), strict=True))
        self.columns, self.retries = tuple(columns), at_least("retries", retries, 0)
        self.refusal, self.characters = one_of("refusal", refusal, REFUSALS), at_least("characters", characters, 1)
        self.seed, self.counts = seed, Counter[str]()
        letters = len(taxonomy) <= len(ascii_uppercase)
        self.sign = "letter" if letters else "number"
        self.signs = list(ascii_uppercase[: len(taxonomy)]) if letters else [str(i + 1) for i in range(len(taxonomy))]

    def annotate(self, documents: Sequence[Document]) -> dict[str, list[Any]]:
        """The label of each document; ValueError that tells which document got no valid answer, and what it got."""
        name = self.taxonomy.name
        if self.score is not None:
            p = self.probabilities(documents)
            best = p.argmax(1)
            return {
                name: [self.taxonomy.names[i] for i in best],
                f"{name}_confidence": p[np.arange(len(p)), best].tolist(),
            }
        labels: list[str | None] = [None] * len(documents)
        contents = texts(documents, self.columns)
        orders = [self.order(text) for text in contents]
        prompts = [self.prompt(text) for text in contents]
        open_rows, answers = list(range(len(documents))), dict[int, str]()
        for attempt in range(self.retries + 1):
            if not open_rows:
                break
            self.counts["asked" if attempt == 0 else "asked again"] += len(open_rows)
            given = self._ask([
                prompts[row] + (AGAIN.format(answer=answers[row][:200], sign=self.sign, signs=", ".join(self.signs))
                                if attempt else "")
                for row in open_rows
            ])  # fmt: skip
            for row, answer in zip(open_rows, given, strict=True):
                at = self.parse(answer)
                if at is None:
                    answers[row] = answer
                else:
                    labels[row] = self.taxonomy.names[orders[row][at]]
            open_rows = [row for row in open_rows if labels[row] is None]
        self.counts["refused"] += len(open_rows)
        if open_rows and self.refusal == "raise":
            row = open_rows[0]
            raise ValueError(
                f"document {row} ({contents[row][:60]!r}): the answer for {name} is {answers[row][:200]!r} after "
                f"{self.retries} retries; allowed is one of {', '.join(self.signs)}. {len(open_rows)} of "
                f'{len(documents)} documents have no valid answer; refusal="skip" leaves them without a label'
            )
        return {name: labels}

    def probabilities(self, documents: Sequence[Document]) -> Array:
        """(N, C) soft labels in the order of the taxonomy, from `score`."""
        if self.score is None:
            raise ValueError("soft labels need score (prompts, answers -> log-probabilities)")
        contents = texts(documents, self.columns)
        self.counts["asked"] += len(contents)
        logs = np.asarray(self.score([self.prompt(text) for text in contents], list(self.signs)), dtype=np.float64)
        if logs.shape != (len(contents), len(self.taxonomy)) or np.isnan(logs).any() or (logs.max(1) == -np.inf).any():
            raise ValueError(
                f"score must give ({len(contents)}, {len(self.taxonomy)}) log-probabilities, some of each row above "
                f"-infinity, got {logs.shape}"
            )
        found = np.empty_like(logs)
        for row, text in enumerate(contents):
            found[row, self.order(text)] = logs[row]  # the j-th sign stands for the label order[j]
        return np.asarray(softmax(found, axis=1))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "counts": Counter[str]()}  # which do not decide what it writes, see `fingerprint`

    def order(self, text: str) -> Array:
        """(C,) which label each sign stands for in the prompt of this text."""
        return self._draws(text, "options").permutation(len(self.taxonomy))

    def prompt(self, text: str) -> str:
        """What the language model is asked about a text."""
        order = self.order(text)
        names, about = self.taxonomy.names, list(self.taxonomy.labels.values())
        question = self.taxonomy.question or f"its {self.taxonomy.name}"
        shown = self._draws(text, "examples").permutation(len(self.examples))
        solved = "".join(
            f"Document:\n<<<\n{self._cut(self.examples[i][0])}\n>>>\n\n"
            f"Answer: {self.signs[int(np.flatnonzero(order == self.examples[i][1])[0])]}\n\n"
            for i in shown
        )
        return PROMPT.format(
            instruction=f"Sort the document below into the one option that describes best {question}. If several fit, "
            "take the one that most of the document is about.",
            options="\n".join(
                f"{sign}: {names[i]}" + (f" ({about[i]})" if about[i] else "")
                for sign, i in zip(self.signs, order, strict=True)
            ),
            examples=solved, text=self._cut(text), sign=self.sign,
        )  # fmt: skip

    def parse(self, answer: str) -> int | None:
        """The position of the answered sign: it must come first, alone or before a mark as in "C.", "(C)", "C: ...".

        None for anything else: "A page about health" and "A-level tests" are no answer A, "I, as an AI" is no answer I.
        """
        found = re.match(r"\s*(?:\*\*|[\"'(\[])?([A-Z]|\d+)(?:\*\*|[\"')\]])?\s*(?:[.:)\]-]+(?=[\s*]|$)|$|\n)", answer)
        return self.signs.index(found[1]) if found and found[1] in self.signs else None

    def _ask(self, prompts: list[str]) -> Sequence[str]:
        assert self.ask is not None
        given = self.ask(prompts)
        if len(given) != len(prompts) or not all(isinstance(answer, str) for answer in given):
            raise ValueError(
                f"ask must give {len(prompts)} texts for as many prompts, got {len(given)}: {given!r:.200}"
            )
        return given

    def _cut(self, text: str) -> str:
        return text if len(text) <= self.characters else text[: self.characters] + "... (cut)"

    def _draws(self, text: str, what: str) -> np.random.Generator:
        # Python's own hash differs from process to process
        digest = hashlib.sha256(f"{self.seed} {what} {text}".encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))
