"""MergeME on real text: three models trained further from one base, each on one kind, made one mixture of experts.

The paper's two claims, on very small models: merging with TIES or DARE in place of the mean makes better mixtures than
branch-train-mix, before and after the same training; and routing by the perplexity of the prompt needs no training.
All losses are of the tokens after the first quarter of each sequence (the prompt), of texts that nothing before has
seen.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _text
from _common import record_all

from omnimix.corpora.proxy import Columns, Packed, pack
from omnimix.models.experts import Mixture, balance, gate_weights, log_likelihoods, mixture, train_only
from omnimix.models.experts.router import Routed
from omnimix.models.merge import DareLinear, Linear, Merger, Ties
from omnimix.networks.language_model import LanguageModel, token_losses

DOMAINS = ("reviews", "news", "web")
WEB_TOPIC = "20"  # software
VOCABULARY, CONTEXT, PROMPT, ROWS = 1024, 128, 32, 4  # rows of each domain in a step
NETWORK = {"width": 64, "layers": 2, "heads": 4}
STEPS, LR = 200, 5e-3  # of the base, on all domains
OWN_STEPS, OWN_LR, OWN_ROWS = 100, 3e-3, 12  # of each expert, on its own
TUNE_STEPS, TUNE_LR, ALPHA = 30, 2e-3, 0.01  # of the mixtures, on all domains
MEASURED = 30  # sequences of a domain to judge by
DENSITY = 0.5
MERGERS: dict[str, Merger] = {"mean": Linear(), "TIES": Ties(density=DENSITY), "DARE": DareLinear(density=DENSITY)}
GATES: dict[str, dict[str, Any]] = {
    "uniform": {"rule": "uniform"}, "perplexity, 2 best": {"rule": "perplexity", "k": 2},
    "perplexity, the best": {"rule": "perplexity", "k": 1}, "posterior": {"rule": "posterior"},
}  # fmt: skip


def texts(data: Path) -> Iterator[tuple[str, str]]:
    """Domain and text of every document."""
    for line in (data / "sentences" / "rt-polarity.all").read_text(encoding="latin-1").split("\n"):
        yield "reviews", line.partition(" ")[2]
    blocks = (data / "crossner" / "conll2003" / "train.txt").read_text(encoding="utf-8").split("\n\n")
    news = [" ".join(line.split("\t")[0] for line in block.splitlines() if line.strip()) for block in blocks]
    for start in range(0, len(news), 20):  # neighbours are of one article, and stay on one side
        yield "news", "\n".join(news[start : start + 20])
    with gzip.open(data / "weborganizer" / "documents.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if str(row["topic_id"]) == WEB_TOPIC:
                yield "web", row["text"]


def documents(data: Path, work: Path) -> Packed:
    file = work / "documents.jsonl"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "part", "w") as out:
            for domain, text in texts(data):
                if text.strip():
                    out.write(json.dumps({"domain": domain, "text": text}) + "\n")
        (work / "part").replace(file)
    return pack(
        file, work / "tokens", columns=Columns("domain", "text"), tokenizer=f"bpe:{VOCABULARY}", held_out={"test": 0.1}
    )


def plain(model: nn.Module) -> Any:
    return lambda inputs, targets, _: token_losses(model(inputs), targets).mean()


def balanced(model: Mixture) -> Any:
    return lambda inputs, targets, _: token_losses(model(inputs), targets).mean() + ALPHA * balance(model)


@torch.no_grad()
def loss(model: nn.Module, inputs: Tensor, targets: Tensor, **route: Tensor) -> float:
    """Nats a token, of what follows the prompts."""
    return token_losses(model(inputs, **route), targets)[:, PROMPT - 1 :].mean().item()


def dense(merger: Merger, models: Sequence[LanguageModel], base: LanguageModel) -> LanguageModel:
    """All weights merged."""
    made, start = copy.deepcopy(base), base.state_dict() if merger.base == "required" else None
    made.load_state_dict(merger([model.state_dict() for model in models], start))
    return made.eval()


def one(packed: Packed, seed: int, work: Path, steps: float) -> dict[str, Any]:
    """All that is measured for a seed: name -> loss by domain."""
    begun, own = time.process_time(), partial(_text.Reader, packed, seed=seed, context=CONTEXT)

    def counted(number: int) -> int:
        return max(1, round(steps * number))

    torch.manual_seed(seed)
    base = LanguageModel(packed.vocabulary, **NETWORK)
    _text.trained(
        work / f"base-{seed}.safetensors", base,
        partial(_text.optimise, base, own(DOMAINS, ROWS), counted(STEPS), LR, plain(base)),
    )  # fmt: skip
    experts = {}
    for name in DOMAINS:
        experts[name] = model = copy.deepcopy(base).train()
        reader = own([name], OWN_ROWS)
        _text.trained(
            work / f"{name}-{seed}.safetensors", model,
            partial(_text.optimise, model, reader, counted(OWN_STEPS), OWN_LR, plain(model)),
        )  # fmt: skip
    tests = {name: _text.held_out(packed, "test", name, MEASURED, CONTEXT) for name in DOMAINS}
    found: dict[str, dict[str, float]] = {}

    def measure(arm: str, model: nn.Module) -> None:
        found[arm] = {name: loss(model.eval(), *test) for name, test in tests.items()}

    measure("base", base)
    for name, model in experts.items():
        measure(f"dense, {name}", model)
    found["dense, own expert"] = {name: found[f"dense, {name}"][name] for name in DOMAINS}
    for name, merger in MERGERS.items():
        measure(f"dense, {name}", dense(merger, [*experts.values()], base))

    prompts = {name: log_likelihoods(experts, x[:, :PROMPT]) for name, (x, _) in tests.items()}
    right = [float((said.argmax(1) == i).float().mean()) for i, (said, _) in enumerate(prompts.values())]
    for separate in (False, True):
        for name, merger in MERGERS.items():
            sparse = mixture(base, experts, merger, separate=separate).eval()
            for rule, how in GATES.items():
                arm = f"{name}, {'separate' if separate else 'merged'} attention, {rule}"
                weights = {domain: gate_weights(*said, **how) for domain, said in prompts.items()}
                found[arm] = {
                    domain: loss(sparse, *test, weights=weights[domain]) for domain, test in tests.items()
                }  # fmt: skip

    for name, merger in MERGERS.items():
        generator = torch.Generator().manual_seed(seed)
        sparse = mixture(base, experts, merger, router=True, k=2, generator=generator)
        measure(f"routers, {name}, untrained", sparse)
        for what in ("routers", "all"):
            tuned = copy.deepcopy(sparse).train()
            if what == "routers":
                train_only(tuned, [part.router for part in tuned.modules() if isinstance(part, Routed)])
            reader = own(DOMAINS, ROWS)
            _text.optimise(tuned, reader, counted(TUNE_STEPS), TUNE_LR, balanced(tuned))
            measure(f"routers, {name}, {what} trained", tuned)
    tuned_dense = dense(Linear(), [*experts.values()], base).train()
    _text.optimise(tuned_dense, own(DOMAINS, ROWS), counted(TUNE_STEPS), TUNE_LR, plain(tuned_dense))
    measure("dense, mean, all trained", tuned_dense)
    return {"losses": found, "right expert": right, "seconds": time.process_time() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/mergeme"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=float, default=1.0, help="share of all training steps, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packed = documents(args.data, args.work)
    print("packed", time.process_time(), packed.tokens(), flush=True)
    runs = []
    for seed in range(args.seeds):
        file = args.work / f"seed-{seed}.json"
        if not file.exists():
            file.with_suffix(".tmp").write_text(json.dumps(one(packed, seed, args.work, args.steps)))
            file.with_suffix(".tmp").replace(file)
        runs.append(json.loads(file.read_text()))
        print("seed", seed, runs[-1]["seconds"], flush=True)

    def arms(names: Sequence[str]) -> dict[str, list[float]]:
        return {name: [float(np.mean([*run["losses"][name].values()])) for run in runs] for name in names}

    every = [*runs[0]["losses"]]
    merged = [name for name in every if "attention" in name]
    tables = {
        "without training: models and dense merges, mean loss in nats a token": (
            arms([name for name in every if name == "base" or (name.startswith("dense") and "trained" not in name)]),
            "dense, mean", False,
        ),
        "without training: mixtures whose experts a gate weights": (
            arms(["dense, mean", *merged]), "mean, merged attention, uniform", False
        ),
        "mixtures with routers, before and after training": (
            arms([name for name in every if name.startswith("routers") or name == "dense, mean, all trained"]),
            "routers, mean, all trained", False,
        ),
        "interference: TIES and DARE against the mean, routers trained": (
            arms([f"routers, {name}, routers trained" for name in MERGERS]), "routers, mean, routers trained", False
        ),
    }  # fmt: skip
    settings = {
        "domains": DOMAINS, "vocabulary": VOCABULARY, "context": CONTEXT, "prompt": PROMPT, "network": NETWORK,
        "weights": sum(p.numel() for p in LanguageModel(packed.vocabulary, **NETWORK).parameters()),
        "base": {"steps": STEPS, "lr": LR, "rows of a domain": ROWS},
        "experts": {"steps": OWN_STEPS, "lr": OWN_LR, "rows": OWN_ROWS},
        "mixtures": {"steps": TUNE_STEPS, "lr": TUNE_LR, "alpha": ALPHA, "rows of a domain": ROWS, "k": 2},
        "density": DENSITY, "sequences measured": MEASURED, "tokens": packed.tokens(), "share of steps": args.steps,
        "runs": runs, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, tables)
    with open(args.out.with_name("tables.md"), "a") as file:
        file.write(by_domain(runs))


def by_domain(runs: list[dict[str, Any]]) -> str:
    """Perplexity of every arm by domain, and how often the gate finds the right expert."""
    lines = ["", "**Perplexity by domain** (exp of the mean loss over seeds)", ""]
    lines += [f"| model | {' | '.join(DOMAINS)} | geometric mean |", "|---" * (len(DOMAINS) + 2) + "|"]
    for arm in runs[0]["losses"]:
        losses = [float(np.mean([run["losses"][arm][name] for run in runs])) for name in DOMAINS]
        cells = [f"{math.exp(value):.1f}" for value in (*losses, float(np.mean(losses)))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    right = np.mean([run["right expert"] for run in runs], axis=0)
    said = ", ".join(f"{name} {share:.2f}" for name, share in zip(DOMAINS, right, strict=True))
    return "\n".join([*lines, "", f"Share of prompts that the right expert predicts best: {said}.", ""])


if __name__ == "__main__":
    main()
