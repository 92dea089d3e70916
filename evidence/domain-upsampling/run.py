"""Domain upsampling on real web documents: does a small domain help most when it comes last?

"web" is 12 broad topics, "domain" 2 other ones with few documents. The base mixture holds 5 % of the domain; the last
fraction f of the run has half of it. Controls: the mixture that consumes the same without the order (static), the two
phases the other way round (reversed), and the second mixture all along (f=1). The learning rate is constant, so that no
phase is favoured by it. Losses on held-out documents of both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

from omnimix.compare.proxies import run_proxies
from omnimix.corpora.proxy import Packed, Training, pack
from omnimix.corpora.weigh import branches

WEB = ("0", "1", "3", "4", "6", "7", "8", "9", "11", "13", "17", "21")
DOMAIN = ("2", "18")  # software development, religion
FEW, VOCABULARY = 120, 512
BEFORE, AFTER = {"web": 0.95, "domain": 0.05}, {"web": 0.5, "domain": 0.5}
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 1.0)
CONTROLS = ("static f=0.2", "reversed f=0.2")
TRAINING = Training(
    steps=360, batch=4, context=64, width=64, layers=2, heads=2, lr=3e-3, schedule="constant", measure=200
)  # fmt: skip


def corpus(file: Path, out: Path) -> Packed:
    """All documents of the web topics, and 120 of each domain topic; a tenth of both is held out."""
    random = np.random.default_rng(0)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    rows = []
    for topics, name in ((WEB, "web"), (DOMAIN, "domain")):
        for topic in topics:
            own = [d["text"] for d in documents if str(d["topic_id"]) == topic]
            kept = own if name == "web" else [own[i] for i in random.permutation(len(own))[:FEW]]
            rows += [{"domain": name, "text": text} for text in kept]
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not (out / "documents.jsonl").exists():  # a stopped run finds its packed tokens again
        (out / "documents.tmp").write_text(text, encoding="utf-8")
        (out / "documents.tmp").replace(out / "documents.jsonl")
    return pack(
        out / "documents.jsonl", out / "tokens", tokenizer=f"bpe:{VOCABULARY}", held_out={"test": 0.1},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/domain-upsampling"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=TRAINING.steps)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packed = corpus(args.data / "weborganizer" / "documents.jsonl.gz", args.work)
    training = replace(TRAINING, steps=args.steps)
    made = branches(BEFORE, AFTER, FRACTIONS)
    arms = {name: made[name] for name in [f"f={f:g}" for f in FRACTIONS] + list(CONTROLS)}
    jobs, runs, failed = run_proxies(
        packed, list(arms.values()), training, args.work / "runs", seeds=range(args.seeds), parts=("test",), workers=1
    )  # fmt: skip
    assert not failed, failed
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    epochs: dict[str, list[float]] = {name: [] for name in arms}
    for name, job in zip([name for name in arms for _ in range(args.seeds)], jobs, strict=True):
        found = runs[job.key]
        losses[name].append({domain: float(found.domains[domain]["test"]) for domain in packed.domains})
        epochs[name].append(float(found.extras["epochs"]["domain"]))
    outcomes = {
        f"held-out loss of the {domain}{note}": (
            {name: [one[domain] for one in rows] for name, rows in losses.items()}, base, False
        )
        for domain in ("domain", "web")
        for base, note in (("f=0", ""), ("static f=0.2", ", against the static mixture"))
    }  # fmt: skip
    settings = {
        "before": BEFORE, "after": AFTER, "training": vars(training), "tokens": packed.tokens(),
        "documents": packed.documents(), "epochs of the domain": epochs, "losses": losses, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, outcomes)


if __name__ == "__main__":
    main()
