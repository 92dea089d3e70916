"""Train a small language model on packed documents under a rule, and measure its held-out loss by domain.

Lightning Fabric brings devices, processes and precision. Ranks sum gradients of sums of token losses, so that several
give what one gives, also where a rank lacks a domain. Everything random follows from the seed; an interrupted run
continues exactly.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core import checkpoint as files
from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from ...networks.language_model import IGNORED, LanguageModel, token_losses
from ..draw import DomainSampler
from .pack import TRAIN, Packed
from .rule import Rule, Setting, Step

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Training:
    """The network and its budget; ValueError for values out of range.

    batch: sequences of `context` tokens a step, over all devices. warmup: share of the steps in which the learning
    rate rises; then it stays, or falls as a cosine to `floor` times its height. clip: largest norm of the gradient; 0:
    none. one_domain: the whole batch from one domain, drawn by the weights. measure: sequences of each domain on which
    held-out losses are measured, at most; None: all.
    """

    steps: int = 200
    batch: int = 16
    context: int = 128
    width: int = 64
    layers: int = 2
    heads: int = 4
    lr: float = 3e-3
    warmup: float = 0.1
    schedule: str = "cosine"
    floor: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    one_domain: bool = False
    measure: int | None = None
    precision: str = "32-true"
    accelerator: str = "cpu"
    devices: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "context", "width", "layers", "heads", "devices"):
            at_least(name, getattr(self, name), 1)
        if self.measure is not None:
            at_least("measure", self.measure, 1)
        positive("lr", self.lr)
        in_unit("warmup", self.warmup)
        in_unit("floor", self.floor)
        non_negative("weight_decay", self.weight_decay)
        non_negative("clip", self.clip)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        one_of("accelerator", self.accelerator, ("cpu", "gpu", "auto"))
        if self.batch % self.devices:
            raise ValueError(f"batch must be a multiple of devices = {self.devices}, got {self.batch}")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        done = (step - warm) / max(1, self.steps - warm)
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


@dataclass
class Trained:
    """What a run gave.

    losses: part -> domain -> mean held-out loss in nats a token. weights: domain -> what the rule ended with. path:
    (step, domain -> weight) along the run. epochs: how often each domain was gone through. flops: of training and of
    what the rule computes besides. model: the weights of the network.
    """

    losses: dict[str, dict[str, float]]
    weights: dict[str, float]
    path: list[tuple[int, dict[str, float]]]
    epochs: dict[str, float]
    tokens: int
    flops: float
    seconds: float
    model: dict[str, Tensor] = field(repr=False, default_factory=dict)

    @classmethod
    def load(cls, state: dict[str, Any]) -> Trained:
        """From its attributes as a checkpoint holds them."""
        return cls(**{**state, "path": [tuple(point) for point in state["path"]]})


def network(packed: Packed, training: Training, seed: int) -> LanguageModel:
    """The network with the initial weights of a seed; the global random state is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LanguageModel(packed.vocabulary, width=training.width, layers=training.layers, heads=training.heads)


def train(
    packed: Packed,
    rule: Rule,
    training: Training,
    *,
    seed: int,
    parts: tuple[str, ...] = ("valid",),
    checkpoint: Path | None = None,
    every: float = 30.0,
    paths: int = 50,
    progress: Progress | None = None,
) -> Trained:
    """Train under `rule`; give held-out losses on `parts`.

    checkpoint: a file to continue from if it is there, written after every `every` seconds and removed at the end.
    paths: how many points of the weights' path to keep. With several devices the script needs the
    `if __name__ == "__main__"` guard. ValueError for a checkpoint of another run; FloatingPointError, naming the step,
    if the loss is NaN.
    """
    for part in parts:
        if part != TRAIN and not packed.parts[one_of("parts", part, packed.parts)].end[-1]:
            raise ValueError(f"part {part!r} holds no tokens; pack with a larger share of held-out documents")
    from lightning_fabric import Fabric

    accelerator = training.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    spawn = training.devices > 1 and not torch.distributed.is_torchelastic_launched()
    strategy = "auto" if training.devices == 1 else "ddp_spawn" if spawn else "ddp"
    fabric = Fabric(
        accelerator=accelerator,
        strategy=strategy,
        devices=training.devices,
        precision=training.precision,  # type: ignore[arg-type]
    )
    given = (packed, rule, training, seed, parts, checkpoint, every, paths)
    if spawn:
        with tempfile.TemporaryDirectory() as folder:  # tensors do not outlive the process that they come from
            result = Path(folder) / "result.safetensors"
            fabric.launch(partial(_spawned, given=given, result=result))
            state = files.load(result)
        rule.setup(_setting(packed, training, torch.device("cpu"), lambda: torch.empty(0)))
        rule.load_state_dict(state["rule"])
        return Trained.load(state["run"])
    fabric.launch()
    return _Run(fabric, given, progress).train()


Given = tuple[Packed, Rule, Training, int, tuple[str, ...], Path | None, float, int]
"""The arguments of `train` that a process is sent."""


def _spawned(fabric: Any, given: Given, result: Path) -> None:
    run = _Run(fabric, given, None)
    done = run.train()
    if fabric.is_global_zero:
        files.save(result, {"run": vars(done), "rule": run.rule.state_dict()})


def _setting(packed: Packed, training: Training, device: torch.device, held_out: Callable[[], Tensor]) -> Setting:
    return Setting(packed.domains, packed.vocabulary, packed.tokens(), training.steps, training.batch, device, held_out)


class _Run:
    """One training run on this rank."""

    def __init__(self, fabric: Any, given: Given, progress: Progress | None) -> None:
        packed, rule, training, seed, self.parts, self.checkpoint, self.every, paths = given
        self.fabric, self.packed, self.rule, self.training, self.progress = fabric, packed, rule, training, progress
        self.model = network(packed, training, seed).to(fabric.device, _type(training.precision))
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=training.lr, betas=training.betas, weight_decay=training.weight_decay
        )
        self.step, self.seconds, self.tokens, self.flops = 0, 0.0, 0, 0.0
        self.path: list[tuple[int, dict[str, float]]] = []
        self.marks = set(np.linspace(0, training.steps - 1, min(paths, training.steps)).round().astype(int).tolist())
        self.identity = files.flatten(
            {"data": packed.digest, "training": asdict(training), "seed": seed, "rule": rule.settings()}
        )[0]  # fmt: skip
        rule.setup(_setting(packed, training, fabric.device, self.held_out))
        sizes = packed.sequences(TRAIN, training.context).tolist()
        self.draw = DomainSampler(
            dict(zip(packed.domains, sizes, strict=True)),
            rule.mixture(),
            batch_size=training.batch,
            steps=training.steps,
            seed=seed,
            rank=fabric.global_rank,
            ranks=fabric.world_size,
            counts="exact" if rule.draws == "equal" else "random",
            batches="one-domain" if training.one_domain else "mixed",
        )

    def train(self) -> Trained:
        self._load()
        begun = kept = time.monotonic()
        before, world = self.seconds, self.fabric.world_size
        self.model.train()
        while self.step < self.training.steps:
            batch = self._batch()
            self._update(batch)
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - begun
            if self.progress is not None:
                self.progress(self.step / self.training.steps)
            if self.checkpoint is not None and self._agree(now - kept >= self.every):
                kept = now
                self._save()
        losses = {part: self._named(self._measure(part)) for part in self.parts}
        if self.checkpoint is not None and self.fabric.is_global_zero:
            self.checkpoint.unlink(missing_ok=True)
        self.seconds = before + time.monotonic() - begun
        return Trained(
            losses=losses,
            weights=self._named(self.rule.result()),
            path=self.path,
            epochs=self._named(
                torch.tensor(list(self.draw.drawn().values())) / torch.from_numpy(self.draw.sizes).clamp(1)
            ),
            tokens=self.tokens,
            flops=self.flops * world,
            seconds=self.seconds,
            model={name: value.detach().cpu() for name, value in self.model.state_dict().items()},
        )

    def _batch(self) -> Step:
        rule, device = self.rule, self.fabric.device
        if rule.draws == "weights":
            self.draw.set_weights(self._named(rule.weights))
        elif rule.draws == "mixture":
            rule.weights = torch.from_numpy(self.draw.weights_now()).to(device)
        if self.step in self.marks:
            self.path.append((self.step, self._named(rule.weights)))
        rows = self.draw.draw()
        domain = np.searchsorted(self.draw.start, rows, side="right") - 1
        inputs, targets = self.packed.read(TRAIN, domain, rows - self.draw.start[domain], self.training.context)
        return Step(
            self.model, inputs.to(device), targets.to(device), torch.from_numpy(domain).to(device),
            len(self.packed.domains), self.training.rate(self.step), self.step, self._total, self._forward,
            self.fabric.world_size,
        )  # fmt: skip

    def _update(self, batch: Step) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = batch.lr
        self.optimizer.zero_grad(set_to_none=True)
        losses, tokens = self.rule.backward(batch)
        self.rule.note()
        seen, loss = torch.stack((tokens.sum(), losses.sum())).tolist()  # the one wait for the device in a step
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in step {self.step}; lower the learning rate")
        self.tokens += int(seen)
        # of the backward passes; forward ones count themselves
        self.flops += 4.0 * self.model.size * seen / self.fabric.world_size
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()

    def _forward(self, model: LanguageModel, inputs: Tensor) -> Tensor:
        self.flops += 2.0 * model.size * inputs.numel()
        with self.fabric.autocast():
            out: Tensor = model(inputs)
        return out

    def _total(self, value: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return value
        out: Tensor = self.fabric.all_reduce(value.clone(), reduce_op="sum")
        return out

    def _agree(self, wish: bool) -> bool:
        """What the first rank wishes."""
        return bool(self.fabric.broadcast(wish)) if self.fabric.world_size > 1 else wish

    def held_out(self) -> Tensor:
        """(k,) float64 losses on the validation part, for rules that ask while they train."""
        if "valid" not in self.packed.parts:
            raise ValueError(f"this rule measures the part 'valid'; the documents have {', '.join(self.packed.parts)}")
        return self._measure("valid")

    @torch.no_grad()
    def _measure(self, part: str) -> Tensor:
        """(k,) float64 mean token losses by domain; NaN for a domain that the part lacks."""
        training, k = self.training, len(self.packed.domains)
        sizes = self.packed.sequences(part, training.context)
        if training.measure is not None:
            sizes = np.minimum(sizes, training.measure)
        domain = np.repeat(np.arange(k), sizes)
        index = np.concatenate([np.arange(size) for size in sizes])
        found = torch.zeros(2, k, dtype=torch.float64, device=self.fabric.device)
        self.model.eval()
        own = np.arange(self.fabric.global_rank, len(domain), self.fabric.world_size)
        for rows in np.array_split(own, max(1, len(own) // MEASURED)):
            inputs, targets = (
                t.to(found.device) for t in self.packed.read(part, domain[rows], index[rows], training.context)
            )
            losses = token_losses(self._forward(self.model, inputs), targets)
            rates = torch.stack((losses.double().sum(1), (targets != IGNORED).double().sum(1)))
            found.index_add_(1, torch.from_numpy(domain[rows]).to(found.device), rates)
        self.model.train()
        found = self._total(found)
        return found[0] / found[1]

    def _named(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.packed.domains, values.double().cpu().tolist(), strict=True))

    def _save(self) -> None:
        assert self.checkpoint is not None
        if self.fabric.is_global_zero:
            files.save(self.checkpoint, {
                "identity": self.identity, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "rule": self.rule.state_dict(), "draw": self.draw.state_dict(), "step": self.step, "path": self.path,
                "seconds": self.seconds, "tokens": self.tokens, "flops": self.flops,
            })  # fmt: skip

    def _load(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = files.load(self.checkpoint)
        if state["identity"] != self.identity:
            raise ValueError(f"{self.checkpoint} is of another run; remove it, or choose another file")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rule.load_state_dict(state["rule"])
        self.draw.load_state_dict(state["draw"])
        self.step, self.path = state["step"], [tuple(point) for point in state["path"]]
        self.seconds, self.tokens, self.flops = state["seconds"], state["tokens"], state["flops"]


MEASURED = 32
"""Sequences of a forward pass that measures."""


def _type(precision: str) -> torch.dtype:
    return {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
