"""DEMix layers on real web documents: five topics to train on, two that come later, one expert taken out again.

Dense and DEMix have the same active size, see the same batches for the same steps (equal tokens a topic), and start
from the same weights. Losses are of documents that nothing before has seen, priors of other held-out documents.
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
from collections.abc import Sequence
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
from omnimix.models.experts import DEMix, DomainMixture, domain_posterior
from omnimix.networks.language_model import LanguageModel, token_losses

TOPICS = {"software": 20, "sports": 21, "food": 10, "religion": 18, "politics": 17}
NEW = {"health": 12, "travel": 23}
REMOVED = "sports"
VOCABULARY, CONTEXT, ROWS = 1024, 128, 4  # rows of each topic in a step
NETWORK = {"width": 64, "layers": 2, "heads": 4}
STEPS, LR = 240, 5e-3
DAPT_STEPS, DAPT_LR, DAPT_ROWS = 100, 1e-3, 8
MEASURED, SAMPLED, BATCH = 40, 30, 10  # sequences of a topic to judge by, and to estimate priors from; of a batch


def documents(data: Path, work: Path) -> Packed:
    """The seven topics, packed."""
    file, names = work / "documents.jsonl", {number: name for name, number in (TOPICS | NEW).items()}
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        with gzip.open(data / "weborganizer" / "documents.jsonl.gz", "rt") as lines, open(work / "part", "w") as out:
            for line in lines:
                row = json.loads(line)
                if int(row["topic_id"]) in names:
                    out.write(json.dumps({"topic": names[int(row["topic_id"])], "text": row["text"]}) + "\n")
        (work / "part").replace(file)
    return pack(
        file, work / "tokens", columns=Columns("topic", "text"), tokenizer=f"bpe:{VOCABULARY}",
        held_out={"valid": 0.1, "test": 0.1},
    )  # fmt: skip


def held_out(packed: Packed, part: str, topic: str, count: int) -> tuple[Tensor, Tensor]:
    return _text.held_out(packed, part, topic, count, CONTEXT)


def dense(packed: Packed, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(packed.vocabulary, **NETWORK)


def trained(
    work: Path, name: str, model: nn.Module, packed: Packed, topics: Sequence[str], rows: int, seed: int, steps: int,
    lr: float, routed: bool | str,
) -> nn.Module:  # fmt: skip
    """The model after training, computed once. routed: give the model its rows' topics, or this one."""

    def loss(inputs: Tensor, targets: Tensor, topic: Tensor) -> Tensor:
        route = {} if routed is False else {"domain": topic if routed is True else routed}
        return token_losses(model(inputs, **route), targets).mean()

    reader = _text.Reader(packed, topics, rows, seed, CONTEXT)
    train = partial(_text.optimise, model, reader, steps, lr, loss)
    return _text.trained(work / f"{name}.safetensors", model, train)


@torch.no_grad()
def likelihoods(model: nn.Module, inputs: Tensor, targets: Tensor, **route: str) -> Tensor:
    """(B, T) log-probabilities of the targets."""
    batches = zip(inputs.split(BATCH), targets.split(BATCH), strict=True)
    return torch.cat([-token_losses(model(x, **route), y) for x, y in batches])


def batches(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))


def mixed(found: Tensor, prior: dict[str, float] | None, history: str | int) -> float:
    """Loss of the mixture of experts whose log-likelihoods are found (n, B, T)."""
    n = len(found)
    pi = torch.full((n,), 1 / n) if prior is None else torch.tensor([*prior.values()])
    return -(domain_posterior(found, pi.log(), history) + found).logsumexp(0).mean().item()


def measure(demix: DEMix, packed: Packed, topic: str, own: str | None) -> dict[str, float]:
    """Losses on the test documents of a topic by every way of choosing experts, in nats a token."""
    test, sample = held_out(packed, "test", topic, MEASURED), held_out(packed, "valid", topic, SAMPLED)
    found = torch.stack([likelihoods(demix, *test, domain=name) for name in demix.domains])
    prior = DomainMixture(demix).estimate(batches(*sample))
    last_prior = DomainMixture(demix, history="last_token").estimate(batches(*sample))
    losses = {f"expert {name}": -one.mean().item() for name, one in zip(demix.domains, found, strict=True)}
    updating = DomainMixture(demix, updating=True)
    losses |= {
        "nearest expert": losses[f"expert {max(prior, key=lambda name: prior[name])}"],
        "uniform prior": mixed(found, None, "full"),
        "updating prior": -torch.cat([updating.score(x, y) for x, y in batches(*test)]).mean().item(),
        "cached prior": mixed(found, prior, "full"),
        "uniform prior, last token": mixed(found, None, "last_token"),
        "cached prior, last token": mixed(found, last_prior, "last_token"),
        "plain average": -(found.logsumexp(0) - math.log(len(found))).mean().item(),
    }
    if own:
        losses["own expert"] = losses[f"expert {own}"]
    return losses | {f"prior {name}": value for name, value in prior.items()}


def one(packed: Packed, seed: int, work: Path) -> dict[str, Any]:
    """All that is measured for a seed."""
    topics, begun = list(TOPICS), time.process_time()
    plain = trained(work, f"dense-{seed}", dense(packed, seed), packed, topics, ROWS, seed, STEPS, LR, False)
    demix = DEMix(dense(packed, seed), topics)
    trained(work, f"demix-{seed}", demix, packed, topics, ROWS, seed, STEPS, LR, True)
    rest = [name for name in topics if name != REMOVED]
    never = DEMix(dense(packed, seed), rest)
    trained(work, f"never-{seed}", never, packed, rest, ROWS, seed, STEPS, LR, True)
    tests = {name: held_out(packed, "test", name, MEASURED) for name in (*TOPICS, *NEW)}
    result: dict[str, Any] = {
        "dense": {name: -likelihoods(plain, *test).mean().item() for name, test in tests.items()},
        "demix": {name: measure(demix, packed, name, name if name in topics else None) for name in tests},
        "never": measure(never, packed, REMOVED, None),
        "seconds": {"training": time.process_time() - begun},
    }

    pruned = copy.deepcopy(demix)
    removal = pruned.remove(REMOVED, probe=tests["food"][0][:4])
    result["removed"] = measure(pruned, packed, REMOVED, None)
    result["removal"] = {"proved": removal.proved, "parameters": removal.parameters, "sha256": removal.sha256}

    result["added"] = {}
    for new in NEW:
        prior = DomainMixture(demix).estimate(batches(*held_out(packed, "valid", new, SAMPLED)))
        nearest = max(prior, key=lambda name: prior[name])
        grown = copy.deepcopy(demix)
        grown.add(new, like=nearest)
        grown.adapt(new)
        settings = (packed, [new], DAPT_ROWS, seed, DAPT_STEPS, DAPT_LR)
        trained(work, f"demix-{new}-{seed}", grown, *settings, new)
        tuned = trained(work, f"dense-{new}-{seed}", copy.deepcopy(plain), *settings, False)
        found = {
            "like": nearest,
            "new, own expert": -likelihoods(grown, *tests[new], domain=new).mean().item(),
            "new, mixture": measure(grown, packed, new, new)["cached prior"],
            "new, dense": -likelihoods(tuned, *tests[new]).mean().item(),
            "old, dense": {name: -likelihoods(tuned, *tests[name]).mean().item() for name in topics},
            "old, own expert": {name: -likelihoods(grown, *tests[name], domain=name).mean().item() for name in topics},
            "old, uniform prior": {},
        }
        for name in topics:
            every = torch.stack([likelihoods(grown, *tests[name], domain=expert) for expert in grown.domains])
            found["old, uniform prior"][name] = mixed(every, None, "full")
        result["added"][new] = found
    result["seconds"]["all"] = time.process_time() - begun
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OMNIMIX_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path("omnimix-out/demix"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packed = documents(args.data, args.work)
    print("packed", time.process_time(), packed.tokens(), flush=True)
    runs = []
    for seed in range(args.seeds):
        file = args.work / f"seed-{seed}.json"
        if not file.exists():
            file.with_suffix(".tmp").write_text(json.dumps(one(packed, seed, args.work)))
            file.with_suffix(".tmp").replace(file)
        runs.append(json.loads(file.read_text()))
        print("seed", seed, runs[-1]["seconds"], flush=True)

    ways = (
        "own expert", "nearest expert", "uniform prior", "updating prior", "cached prior", "uniform prior, last token",
        "cached prior, last token", "plain average",
    )  # fmt: skip
    tables: dict[str, Any] = {}
    for title, topics, own in (("training topics", TOPICS, True), ("new topics", NEW, False)):
        arms = {"dense": [mean(run["dense"][name] for name in topics) for run in runs]}
        for way in ways:
            if own or way != "own expert":
                arms[f"demix, {way}"] = [mean(run["demix"][name][way] for name in topics) for run in runs]
        tables[f"mean loss of the {title}, nats a token"] = (arms, "dense", False)
    wrong = [mean(run["demix"][REMOVED][f"expert {name}"] for name in TOPICS if name != REMOVED) for run in runs]
    tables[f"loss of {REMOVED} with its expert and without"] = (
        {
            "with its expert": [run["demix"][REMOVED]["own expert"] for run in runs],
            "expert removed, cached prior": [run["removed"]["cached prior"] for run in runs],
            "expert removed, uniform prior": [run["removed"]["uniform prior"] for run in runs],
            "mean of the other experts": wrong,
            "never trained on it, cached prior": [run["never"]["cached prior"] for run in runs],
            "dense": [run["dense"][REMOVED] for run in runs],
        }, "with its expert", False,
    )  # fmt: skip
    for new in NEW:
        tables[f"loss of {new}, which came later"] = (
            {
                "dense before": [run["dense"][new] for run in runs],
                "dense, adapted": [run["added"][new]["new, dense"] for run in runs],
                "demix before, cached prior": [run["demix"][new]["cached prior"] for run in runs],
                "demix, expert added": [run["added"][new]["new, own expert"] for run in runs],
                "demix, expert added, cached prior": [run["added"][new]["new, mixture"] for run in runs],
            }, "dense, adapted", False,
        )  # fmt: skip
        tables[f"mean loss of the training topics when {new} has come"] = (
            {
                "dense before": [mean(run["dense"][name] for name in TOPICS) for run in runs],
                "dense after": [mean(run["added"][new]["old, dense"].values()) for run in runs],
                "demix before, own expert": [mean(run["demix"][name]["own expert"] for name in TOPICS) for run in runs],
                "demix after, own expert": [mean(run["added"][new]["old, own expert"].values()) for run in runs],
                "demix before, uniform prior": [
                    mean(run["demix"][name]["uniform prior"] for name in TOPICS) for run in runs
                ],
                "demix after, uniform prior": [
                    mean(run["added"][new]["old, uniform prior"].values()) for run in runs
                ],
            }, "dense before", False,
        )  # fmt: skip
    weights = sum(p.numel() for p in dense(packed, 0).parameters())
    settings = {
        "topics": TOPICS, "new": NEW, "removed": REMOVED, "vocabulary": VOCABULARY, "context": CONTEXT,
        "rows of a topic": ROWS, "network": NETWORK, "active weights": weights,
        "weights of demix": sum(p.numel() for p in DEMix(dense(packed, 0), list(TOPICS)).parameters()),
        "steps": STEPS, "lr": LR, "adaptation": {"steps": DAPT_STEPS, "lr": DAPT_LR, "rows": DAPT_ROWS},
        "sequences measured": MEASURED, "sequences sampled": SAMPLED, "batch": BATCH, "tokens": packed.tokens(),
        "runs": runs, "seeds": args.seeds,
    }  # fmt: skip
    record_all(args.out, settings, tables)
    with open(args.out.with_name("tables.md"), "a") as file:
        file.write(by_topic(runs, ways))


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def by_topic(runs: list[dict[str, Any]], ways: Sequence[str]) -> str:
    """Perplexities by topic, what the experts make of each topic, and where text of each topic goes."""
    perplexity = [f"| topic | dense | {' | '.join(ways)} |", "|---" * (len(ways) + 2) + "|"]
    matrix = [f"| topic | {' | '.join(TOPICS)} |", "|---" * (len(TOPICS) + 1) + "|"]
    heat = list(matrix)
    for name in (*TOPICS, *NEW):
        losses = [mean(run["dense"][name] for run in runs)]
        losses += [mean(run["demix"][name].get(way, math.nan) for run in runs) for way in ways]
        perplexity.append(
            f"| {name} | " + " | ".join("" if math.isnan(v) else f"{math.exp(v):.1f}" for v in losses) + " |"
        )
        for lines, key, form in (
            (matrix, "expert", lambda v: f"{math.exp(v):.1f}"),
            (heat, "prior", lambda v: f"{v:.2f}"),
        ):
            cells = [form(mean(run["demix"][name][f"{key} {expert}"] for run in runs)) for expert in TOPICS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    proofs = ", ".join(str(run["removal"]["proved"]) for run in runs)
    copied = {new: [run["added"][new]["like"] for run in runs] for new in NEW}
    return "\n".join([
        "", "**Perplexity by topic** (exp of the mean loss over seeds)", "",
        *perplexity, "", "**Perplexity of each topic (rows) under each expert (columns)**", "", *matrix, "",
        "**Cached prior: share of each expert (columns) for text of each topic (rows)**", "", *heat, "",
        f"Removal of {REMOVED} proved: {proofs}. New experts are copies of: {copied}.", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
