"""The transfer law of fine-tuning mixtures (DMO) on real text: from 4 k + 1 small runs to the mixture for any budget.

The "base model" counts pairs of subwords in documents of 20 topics, and in some of the food and the health documents;
"fine-tuning" adds N_i tokens of each of 4 topics to the counts (interpolated with single subwords), other documents of
food and health among them. Such a model is trained in a second, so that every mixture of a grid can be tried at every
budget, and the law be judged by what it leaves on the table. Compared: uniform, in proportion to size, a ridge
regression on the same 17 runs, and the best of the grid, which no method can know.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

from omnimix.corpora import Mixture
from omnimix.corpora.proxy import Columns, Packed, pack
from omnimix.corpora.weigh import Ridge, TransferLaw, optimal, optimal_range, perturbations

TOPICS = ("2", "10", "12", "18")  # software development, food, health, religion
NAMES = dict(zip(TOPICS, ("software development", "food", "health", "religion"), strict=True))
VOCABULARY, BASE, PRIOR, SMOOTH = 512, 6_000, 0.005, 200.0
KNOWN = {"10": 0.5, "12": 0.25}
"""The share of a topic's documents that the base model has seen."""
BUDGETS = (1, 4, 10)
"""Times the tokens of the base run."""
STEP = 8


class Counts:
    """A bigram model: p(b | a) = (c_ab + m p(b)) / (c_a + m), with p(b) from single subwords."""

    def __init__(self, packed: Packed, seed: int) -> None:
        self.packed, self.v = packed, packed.vocabulary
        self.random = np.random.default_rng(seed)
        train, test = packed.parts["train"], packed.parts["test"]
        place = {name: i for i, name in enumerate(packed.domains)}
        rest = [self.pairs(train.tokens[train.start[i] : train.end[i]]) for n, i in place.items() if n not in TOPICS]
        self.prior = PRIOR * np.sum(rest, axis=0)
        self.own = {
            name: np.asarray(train.tokens[train.start[place[name]] : train.end[place[name]]]) for name in TOPICS
        }
        self.start = {name: int(self.random.integers(len(ids))) for name, ids in self.own.items()}
        self.test = {name: self.pairs(test.tokens[test.start[place[name]] : test.end[place[name]]]) for name in TOPICS}
        self.seen: dict[tuple[str, int], np.ndarray] = {}

    def pairs(self, ids: np.ndarray) -> np.ndarray:
        """(v, v) how often one subword follows another."""
        wide = np.asarray(ids, dtype=np.int64)
        return np.bincount(wide[:-1] * self.v + wide[1:], minlength=self.v**2).reshape(self.v, self.v).astype(float)

    def part(self, name: str, tokens: int) -> np.ndarray:
        """Counts of the first tokens of a topic from where this seed begins: the smaller are in the larger."""
        if (name, tokens) not in self.seen:
            ids = np.roll(self.own[name], -self.start[name])[:tokens]
            if len(ids) < tokens:
                raise ValueError(f"{NAMES[name]} has {len(ids)} tokens, {tokens} are wanted")
            self.seen[name, tokens] = self.pairs(ids) if tokens > 1 else np.zeros((self.v, self.v))
        return self.seen[name, tokens]

    def losses(self, amounts: np.ndarray) -> np.ndarray:
        """(k,) held-out losses in nats a token after `amounts` (k,) tokens of the topics."""
        c = self.prior + sum(self.part(name, int(n)) for name, n in zip(TOPICS, amounts, strict=True))
        single = (c.sum(0) + 0.5) / (c.sum() + 0.5 * self.v)
        log_p = np.log(c + SMOOTH * single) - np.log(c.sum(1, keepdims=True) + SMOOTH)
        return np.array([-(t * log_p).sum() / t.sum() for t in self.test.values()])


def grid() -> np.ndarray:
    """(n, k) all mixtures in eighths."""
    rows = [row for row in itertools.product(range(STEP + 1), repeat=len(TOPICS)) if sum(row) == STEP]
    return np.array(rows) / STEP


def one(packed: Packed, seed: int) -> dict[str, Any]:
    """budget -> arm -> summed loss, and the weights."""
    model, k = Counts(packed, seed), len(TOPICS)
    runs = perturbations(TOPICS, BASE / 1e6)
    measured = np.array([model.losses(row * 1e6) for row in runs])
    laws = {name: TransferLaw(i).fit(runs, measured[:, i]) for i, name in enumerate(TOPICS)}
    shares = runs / runs.sum(1, keepdims=True)
    ridge = [Ridge().fit(shares, measured[:, i]) for i in range(k)]
    sizes = {name: float(len(ids)) for name, ids in model.own.items()}
    mixtures = grid()
    found: dict[str, Any] = {"laws": {NAMES[n]: {p: getattr(law, p) for p in ("beta", "c", "gamma", "alpha", "e")}
                                      for n, law in laws.items()}}  # fmt: skip
    for times in BUDGETS:
        budget = times * k * BASE
        law = optimal(laws, budget / 1e6)
        predicted = np.sum([r.predict(mixtures) for r in ridge], axis=0)
        arms = {
            "uniform": np.full(k, 1 / k), "proportional": Mixture(sizes).vector(TOPICS), "dmo": law.vector(TOPICS),
            "ridge": mixtures[predicted.argmin()],
        }  # fmt: skip
        tried = np.array([model.losses(w * budget).sum() for w in mixtures])
        losses = {arm: float(model.losses(w * budget).sum()) for arm, w in arms.items()}
        losses["best of the grid"] = float(tried.min())
        span = optimal_range(laws, budget / 1e6)
        found[str(times)] = {
            "losses": losses, "weights": {arm: w.tolist() for arm, w in arms.items()},
            "best": mixtures[tried.argmin()].tolist(), "range": {NAMES[n]: list(r) for n, r in span.items()},
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/sft-mixing"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packed = pack(
        args.data / "weborganizer" / "documents.jsonl.gz", args.work / "tokens", columns=Columns("topic_id", "text"),
        tokenizer=f"bpe:{VOCABULARY}", held_out={"test": 0.2},
    )  # fmt: skip
    runs = []
    for seed in range(args.seeds):
        runs.append(one(packed, seed))
        print(seed, {times: runs[-1][str(times)]["losses"] for times in BUDGETS}, flush=True)
    outcomes = {
        f"summed held-out loss of 4 topics, {times} times the tokens of the base run": (
            {arm: [run[str(times)]["losses"][arm] for run in runs] for arm in runs[0][str(times)]["losses"]},
            "uniform", False,
        )
        for times in BUDGETS
    }  # fmt: skip
    settings = {
        "topics": NAMES, "base tokens of a topic": BASE, "vocabulary": VOCABULARY, "prior": PRIOR, "known": KNOWN,
        "smoothing": SMOOTH, "grid": f"steps of 1/{STEP}", "runs": runs, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, outcomes)
    with open(args.out.with_name("tables.md"), "a") as out:
        out.write("\n**Weights** (mean over seeds)\n\n| budget | arm | " + " | ".join(NAMES.values()) + " |\n")
        out.write("|---" * (2 + len(NAMES)) + "|\n")
        for times in BUDGETS:
            rows = {arm: [run[str(times)]["weights"][arm] for run in runs] for arm in runs[0][str(times)]["weights"]}
            rows["best of the grid"] = [run[str(times)]["best"] for run in runs]
            for arm, values in rows.items():
                out.write(f"| {times} x | {arm} | " + " | ".join(f"{w:.3f}" for w in np.mean(values, axis=0)) + " |\n")


if __name__ == "__main__":
    main()
