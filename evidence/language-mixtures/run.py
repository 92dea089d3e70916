"""Mixtures for a language model on real web documents in 24 topics: RegMix end to end, DoReMi, DoGE, R&B and ODM.

The documents are thinned so that the largest topic holds about sixteen times the smallest. Search: 64 proxies on
designed mixtures and a fit (RegMix); a reference and a proxy (DoReMi), or one proxy (DoGE), of the same FLOPs in all.
Judgement: a larger model, trained on each mixture or under the online rule, three seeds, losses on documents that
nothing before has seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import record_all

from omnimix.compare.proxies import run_proxies
from omnimix.corpora import Mixture
from omnimix.corpora.proxy import Columns, Packed, Training, network, pack, train
from omnimix.corpora.weigh.design import MixtureDesign
from omnimix.corpora.weigh.online import RULES, weigh_online
from omnimix.corpora.weigh.run_table import RunTable
from omnimix.corpora.weigh.scores import spearman
from omnimix.corpora.weigh.study import How, fit, parse, study

TOPICS = (
    "adult", "art", "software development", "crime and law", "education and jobs", "hardware", "entertainment",
    "social life", "fashion", "finance", "food", "games", "health", "history", "home and hobbies", "industrial",
    "literature", "politics", "religion", "science", "software", "sports", "transportation", "travel",
)  # fmt: skip
TARGET = "19"  # science
PROXY = Training(steps=240, batch=2, context=64, width=48, layers=2, heads=2, lr=1e-2, measure=8)
LARGE = Training(steps=720, batch=4, context=64, width=64, layers=2, heads=2, lr=5e-3, measure=32)
"""Small batches: for the same tokens, 4 sequences a step reach 4.85 nats on the validation part where 16 reach 5.19."""
SEARCH = replace(PROXY, batch=24)
VOCABULARY, RUNS, RATIO = 512, 64, 16.0
ONLINE = ("r-and-b", "odm")


def thinning() -> dict[str, float]:
    """topic -> share of its training documents to keep: geometric from 1 to 1/RATIO, in an order drawn with seed 0."""
    order = np.random.default_rng(0).permutation(len(TOPICS))
    return {str(topic): float(RATIO ** (-place / (len(TOPICS) - 1))) for place, topic in enumerate(order)}


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, computed once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".tmp").write_text(json.dumps(make()))
        file.with_suffix(".tmp").replace(file)
    return json.loads(file.read_text())


def search(packed: Packed, method: str, flops: float, training: Training, work: Path) -> dict[str, Any]:
    """DoReMi or DoGE with as many FLOPs in all as the RegMix proxies took."""
    per_token = 14.0 if method == "doremi" else 6.0  # DoReMi: the reference's run, and its forward passes
    size = network(packed, training, seed=0).size
    steps = round(flops / (per_token * size * training.batch * training.context))
    found = weigh_online(
        packed, replace(training, steps=steps), method, seed=0, folder=work / "checkpoints" / method
    )  # fmt: skip
    return {"weights": found.mixture.weights, "steps": steps, "flops": found.flops, "seconds": found.seconds}


def choose(table: RunTable, target: str) -> tuple[str, dict[str, float]]:
    """The regressor with the highest rank correlation over five folds of the proxy runs, and all of them."""
    folds = np.random.default_rng(0).permutation(len(table)) % 5
    found = {}
    for name in ("ridge", "lightgbm"):
        predicted = np.empty(len(table))
        for fold in range(5):
            model = fit(table.take(np.flatnonzero(folds != fold)), target, parse(name, {}))
            predicted[folds == fold] = model.predict(table.weights[folds == fold])
        found[name] = spearman(predicted, table.loss(target))
    return max(found, key=lambda name: found[name]), found


def measured(packed: Packed, arm: str, seed: int, training: Training, work: Path) -> dict[str, Any]:
    """The larger model trained under an online rule."""
    file = work / "checkpoints" / f"{arm}-{seed}.safetensors"
    done = train(packed, RULES[arm](), training, seed=seed, parts=("test",), checkpoint=file)
    weights = np.mean([list(weights.values()) for _, weights in done.path], axis=0)
    mean = dict(zip(packed.domains, weights.tolist(), strict=True))
    return {"losses": done.losses["test"], "mean_weights": mean, "seconds": done.seconds, "flops": done.flops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/language-mixtures"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=RUNS, help="proxies")
    parser.add_argument("--search-share", type=float, default=1.0, help="FLOPs of DoReMi and of DoGE over all proxies'")
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    proxy = replace(PROXY, steps=PROXY.steps // args.shorten)
    large = replace(LARGE, steps=LARGE.steps // args.shorten)
    asked_for = json.dumps([VOCABULARY, args.runs, args.search_share, vars(proxy), vars(large), vars(SEARCH)])
    # what other settings gave is not taken for these
    work = args.work / hashlib.sha256(asked_for.encode()).hexdigest()[:8]
    begun = time.process_time()

    packed = pack(
        args.data / "weborganizer" / "documents.jsonl.gz", args.work / "tokens", columns=Columns("topic_id", "text"),
        tokenizer=f"bpe:{VOCABULARY}", held_out={"valid": 0.06, "test": 0.06}, keep=thinning(),
    )  # fmt: skip
    sizes = packed.tokens()
    print("packed", time.process_time() - begun, flush=True)

    design = MixtureDesign(sizes)
    rows = design.draw(args.runs, torch.Generator().manual_seed(0))
    asked = [Mixture(dict(zip(design.domains, row.tolist(), strict=True))) for row in rows]
    jobs, runs, failed = run_proxies(packed, asked, proxy, work / "proxies", workers=1)
    assert not failed, failed
    flops = sum(runs[job.key].extras["flops"] for job in jobs)
    print("proxies", sum(run.seconds for run in runs.values()), flops, flush=True)

    table = RunTable.read(work / "proxies" / "mixtures.csv", work / "proxies" / "losses-valid.csv")
    proposals, fits = {}, {}
    for label, column in (("regmix", "loss/mean"), ("regmix, target", f"loss/{TARGET}")):
        best, scores = choose(table, column)
        found = study(table, column, best, parse(best, {}), how=How(sizes=sizes, seed=0))
        proposals[label] = found.proposal
        fits[label] = {"regressor": best, "spearman over five folds": scores, "predicted": found.predicted}
    arms = {
        "proportional": Mixture(sizes),
        "uniform": Mixture(dict.fromkeys(packed.domains, 1.0)),
        **proposals,
        "target only": Mixture({name: float(name == TARGET) for name in packed.domains}),
    }
    searches = {
        name: kept(
            work / "searches" / f"{name}.json",
            lambda name=name: search(packed, name, args.search_share * flops, SEARCH, work),
        )
        for name in ("doremi", "doge")
    }
    arms |= {name: Mixture(found["weights"]) for name, found in searches.items()}
    print("searches", {name: found["seconds"] for name, found in searches.items()}, flush=True)

    seeds = range(args.seeds)
    jobs, runs, failed = run_proxies(
        packed, list(arms.values()), large, work / "large", seeds=seeds, parts=("test",), workers=1
    )  # fmt: skip
    assert not failed, failed
    losses = {name: [] for name in arms}
    names = [name for name in arms for _ in seeds]
    for name, job in zip(names, jobs, strict=True):
        losses[name].append({domain: runs[job.key].domains[domain]["test"] for domain in packed.domains})
    online = {}
    for name in ONLINE:
        done = []
        for seed in seeds:
            file = work / "online" / f"{name}-{seed}.json"
            done.append(kept(file, lambda name=name, seed=seed: measured(packed, name, seed, large, work)))
        losses[f"{name} (online)"] = [one["losses"] for one in done]
        online[name] = [one["mean_weights"] for one in done]

    outcomes: dict[str, Callable[[dict[str, float]], float]] = {
        "mean held-out loss of the 24 topics": lambda one: float(np.mean(list(one.values()))),
        "held-out loss of the target topic (science)": lambda one: one[TARGET],
        "held-out loss of the worst topic": lambda one: max(one.values()),
        "held-out loss in proportion to the tokens": lambda one: sum(
            one[name] * size for name, size in sizes.items()
        ) / sum(sizes.values()),
    }  # fmt: skip
    tables = {
        title: ({arm: [score(one) for one in found] for arm, found in losses.items()}, "proportional", False)
        for title, score in outcomes.items()
    }
    settings = {
        "vocabulary": VOCABULARY, "proxies": args.runs, "proxy": vars(proxy), "larger model": vars(large),
        "tokens": sizes, "target": TARGET, "search flops of the proxies": flops, "search share": args.search_share,
        "fits": fits,
        "searches": {name: {k: v for k, v in found.items() if k != "weights"} for name, found in searches.items()},
        "weights": {name: mixture.weights for name, mixture in arms.items()}, "online mean weights": online,
        "losses by topic": losses, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, tables)
    with open(args.out.with_name("tables.md"), "a") as file:
        file.write(by_topic(losses, arms, sizes))


def by_topic(losses: dict[str, list[dict[str, float]]], arms: dict[str, Mixture], sizes: dict[str, float]) -> str:
    """Mean losses by topic, and what the mixtures give to each."""
    whole = sum(sizes.values())
    lines = ["", "**Mean held-out loss by topic** (nats a token; mean over seeds)", ""]
    lines += [f"| topic | share of tokens | {' | '.join(losses)} |", "|---" * (len(losses) + 2) + "|"]
    for name in sorted(sizes, key=int):
        cells = [f"{np.mean([one[name] for one in found]):.3f}" for found in losses.values()]
        lines.append(f"| {TOPICS[int(name)]} | {sizes[name] / whole:.3f} | {' | '.join(cells)} |")
    lines += ["", "**Weights**", "", f"| topic | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for name in sorted(sizes, key=int):
        cells = [f"{mixture.weights[name]:.3f}" for mixture in arms.values()]
        lines.append(f"| {TOPICS[int(name)]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
