"""The training loop: one model, one method, one budget; exact resume; never a silent NaN.

Lightning Fabric brings several devices and other precisions; one device in 32 bits does without it.

Everything random follows from `seed`. The order of the data, augmentation and dropout restart from their own seeds at
every epoch, so that all methods see the same order; the method has a generator of its own. The caller's global
random state is left as it was. On the CPU two runs are the same bit for bit, whether interrupted or not.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException

from ..core.batch import Batch
from ..core.method import AHEAD, Method, Mix
from ..core.random import permutation
from ..core.sampler import by_group
from . import checkpoint as files
from .budget import Budget
from .evaluate import outputs, predictions
from .metrics import METRICS, OVER_DOMAINS, headline, higher_is_better, scores
from .parts import Data, Part, table
from .quick import quick_backward, quicken, without_compiler

FETCH = 2**20
"""Bytes of inputs up to which several batches are fetched at once."""
Progress = Callable[[int, int, dict[str, float]], None]
Rows = tuple[Tensor, Tensor | None]
"""Training rows of a batch: anchors (B,) and guests (B, K - 1) or None."""


class TrainingError(RuntimeError):
    """Training broke down: a loss or a weight became NaN or infinite."""


@dataclass
class Fit:
    """What training gave. The model holds the weights of `best_epoch` (1, 2, ...; the last one for select="last").

    history: a row an epoch: "epoch", "train_loss", "valid_loss", "valid_" + metrics, "lr". seconds: spent training and
    validating, over all pieces of an interrupted run. step_seconds: one step, median over epochs. peak_memory: bytes;
    of this run on a GPU, of the whole process on the CPU.
    """

    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    step_seconds: float
    peak_memory: int


def fit(
    method: Method,
    model: nn.Module,
    data: Data,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_every: float = 30.0,
    progress: Progress | None = None,
) -> Fit:
    """Train `model` in place with `method`; it ends with the selected weights.

    checkpoint: a file to continue from if it is there, and to write after an epoch once `checkpoint_every` seconds have
    passed since it was last written (0: every epoch), and at the end if it was written before. A file of another
    configuration is a ValueError; a torn one is reported by a warning, and training starts afresh. progress: called
    with (epochs done, all epochs, row of the history). TrainingError, naming epoch, step and method, if a
    loss is NaN or infinite; ValueError if method, data and budget do not fit together.

    With several devices each process takes its part of every batch and draws its own mixing; called from one process,
    the others are started, so the script needs the `if __name__ == "__main__"` guard.
    """
    _check(method, data, budget)
    given = (method, model, data, budget, seed, checkpoint, checkpoint_every, progress)
    if budget.devices == 1 and budget.precision == "32-true":
        kind = _kind(budget, data.train)
        return _Run(Alone(torch.device("cuda", 0) if kind == "cuda" else torch.device(kind)), *given).train()
    fabric = _fabric(budget, data.train)
    if fabric.world_size > 1 and not fabric.strategy.cluster_environment.creates_processes_externally:
        return _elsewhere(fabric, given)
    fabric.launch()
    return _Run(fabric, *given).train()


def _check(method: Method, data: Data, budget: Budget) -> None:
    if method.streams:
        raise ValueError(
            f"{type(method).__name__} trains on the extra streams {', '.join(method.streams)}, which fit() does not "
            "bring; train it in a loop of your own: method.loss(model, batch, stream=...)"
        )
    if budget.devices > 1 and method.one_process:
        raise ValueError(
            f"{type(method).__name__} trains modules of its own beside the network, which several devices would not "
            "keep alike: use devices=1"
        )
    if len(data.train) < (budget.batch_size if budget.drop_last else budget.devices):
        raise ValueError(
            f"the training part has {len(data.train)} rows, less than one batch of {budget.batch_size}; "
            "use a smaller batch_size, or drop_last=False"
        )
    if budget.order == "domains" and data.train.domain is None:
        raise ValueError("order='domains' needs the domain of every training row; give Part(domain=...)")
    if method.follows_validation and data.valid is None:
        raise ValueError(f"{type(method).__name__} follows the validation loss; give data.valid")
    if budget.select == "best" and data.valid is None:
        raise ValueError("select='best' needs a validation part; give data.valid, or use select='last'")
    known = ["loss", *METRICS[data.task.name], *OVER_DOMAINS]
    if budget.metric not in known:
        raise ValueError(f"metric must be one of {', '.join(known)} for {data.task.name}, got {budget.metric!r}")
    if budget.augment and (not isinstance(data.train.x, Tensor) or data.train.x.ndim != 4) and data.train.in_memory:
        raise ValueError("augment crops and flips images (N, C, H, W); the training inputs are none")


@dataclass(frozen=True)
class Alone:
    """What a single process that computes in 32 bits needs of Fabric, whose import takes seconds."""

    device: torch.device
    global_rank: int = 0
    world_size: int = 1


def _kind(budget: Budget, part: Part) -> str:
    """The type of device to train on: "cpu" or "cuda"."""
    if budget.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator='gpu': PyTorch finds no GPU here; use 'cpu', or 'auto'")
    numbers = isinstance(part.x, Tensor) and part.x.ndim == 2
    wants = budget.accelerator == "gpu" or (budget.accelerator == "auto" and not numbers)
    return "cuda" if wants and torch.cuda.is_available() else "cpu"


def _fabric(budget: Budget, part: Part) -> Any:
    from lightning_fabric import Fabric

    strategy: Any = "auto"
    if budget.devices > 1 and budget.strategy == "fsdp":
        from .shard import Sharded

        strategy = Sharded(budget.devices)
    elif budget.devices > 1:
        strategy = "ddp" if torch.distributed.is_torchelastic_launched() else "ddp_spawn"
    return Fabric(
        accelerator=_kind(budget, part),
        devices=budget.devices,
        strategy=strategy,
        precision=budget.precision,  # type: ignore[arg-type]
    )


def _elsewhere(fabric: Any, given: tuple[Any, ...]) -> Fit:
    """Train in processes of their own; what they give comes back through a file."""
    method, model, data, budget, seed = given[:5]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.safetensors"
        try:
            fabric.launch(partial(_in_process, result=result, given=given))
        except ProcessException as error:
            if not result.exists():  # else all is done: PyTorch's threads may still end a process by a signal
                last = str(error).strip().splitlines()[-1]
                raise TrainingError(f"process {error.error_index} of {budget.devices} failed: {last}") from error
        state = files.load(result)
    if "error" in state:
        raise TrainingError(state["error"])
    model.load_state_dict(state["model"])
    with torch.random.fork_rng(devices=[]):
        _setup(method, model, data, budget, seed, rank=0)
    method.load_state_dict(state["method"])
    return Fit(**state["fit"])


def _in_process(fabric: Any, result: Path, given: tuple[Any, ...]) -> None:
    method, model, *rest = given
    run = _Run(fabric, method, copy.deepcopy(model), *rest)  # what was sent lies in memory that all processes share
    state: dict[str, Any]
    try:
        done = asdict(run.train())
        state = {"fit": done, "model": run.weights(), "method": run._whole(run.method.state_dict())}
    except TrainingError as error:  # all processes see the same losses and stop together
        state = {"error": str(error)}
    if fabric.is_global_zero:
        files.save(result, state)
    # A process that ends while the other still talks to it may take it along on the way out.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _derive(seed: int, *name: str | int) -> int:
    """A seed of its own for each purpose, the same on every machine."""
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")


def _generator(seed: int, *name: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(_derive(seed, *name))


def _steps(rows: int, budget: Budget) -> int:
    """Optimiser steps of an epoch; with several devices a last batch too small to share is left out."""
    full, rest = divmod(rows, budget.batch_size)
    return full if budget.drop_last or rest < budget.devices else full + 1


def _setup(method: Method, model: nn.Module, data: Data, budget: Budget, seed: int, rank: int) -> None:
    method.setup(
        model,
        data.task,
        table(data.train, method.needs),
        validation=None if data.valid is None else table(data.valid, method.needs),
        steps=(budget.planned or budget.epochs) * _steps(len(data.train), budget),
        generator=_generator(seed, "method", rank),
    )


def _optimizer(budget: Budget, weights: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    parameters = [p for p in weights if p.requires_grad]
    common: dict[str, Any] = {"lr": budget.lr, "weight_decay": budget.weight_decay}
    fused = device.type == "cpu" and budget.strategy != "fsdp"  # PyTorch's kernels do not take sharded weights
    if fused:
        common["fused"] = True  # half the time of the default there; elsewhere that is foreach
    if budget.optimizer == "sgd":
        common["momentum"] = budget.momentum
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[budget.optimizer]
    with without_compiler():
        optimizer: torch.optim.Optimizer = kind(parameters, **common)
    return quicken(optimizer) if fused else optimizer


@contextmanager
def _cheap_cuda_check() -> Iterator[None]:
    """PyTorch's default check for CUDA, which optimisers make at every step.

    Fabric sets the fork-safe one when it is imported. That one opens the driver's library each time, which takes longer
    than all else in the step of a small network.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


class _Run:
    """One training in one process."""

    def __init__(
        self,
        fabric: Any,
        method: Method,
        model: nn.Module,
        data: Data,
        budget: Budget,
        seed: int,
        path: Path | None,
        every: float,
        progress: Progress | None,
    ) -> None:
        self.fabric, self.method, self.model, self.data, self.budget = fabric, method, model, data, budget
        self.seed, self.path, self.every, self.progress = seed, path, every, progress
        self.device: torch.device = fabric.device
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.seconds, self.saved = 0.0, False
        self.step_seconds: list[float] = []

    def train(self) -> Fit:
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), _cheap_cuda_check():
            if cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            self._prepare()
            self._last_saved = time.perf_counter()
            while len(self.history) < self.budget.epochs:
                start = time.perf_counter()
                row = self._epoch(len(self.history))
                self.history.append(row)
                self.seconds += time.perf_counter() - start
                self._save()
                if self.progress is not None and self.rank == 0:
                    self.progress(len(self.history), self.budget.epochs, dict(row))
            return self._finish()

    def _prepare(self) -> None:
        self._seed(0)
        self.model.to(self.device)
        if not self.model.training:  # else layers that the user froze in evaluation mode stay there
            self.model.train()
        self.alone = self.world == 1 and self.budget.precision == "32-true"
        # Fabric's wrappers would only forward, at a tenth of the time of a small network's step.
        self.module: Any = self.model if self.alone else self.fabric.setup_module(self.model)
        self.optimizer = _optimizer(self.budget, self.model.parameters(), self.device)
        _setup(self.method, self.model, self.data, self.budget, self.seed, self.rank)
        if self.path is not None:
            self.configuration = self._configuration()
            self._resume(self.path)
        self.parts = [self._place(part) for part in (self.data.train, self.data.valid)]
        if self.alone:
            self.stepper: Any = self.optimizer
            self.backward: Callable[[Tensor], Any] = quick_backward() if self.device.type == "cpu" else Tensor.backward
            self.clip_now: Callable[[], Any] = self._clip
        else:
            self.stepper = self.fabric.setup_optimizers(self.optimizer)
            self.backward, self.clip_now = self.fabric.backward, self._clip_by_fabric

    def _place(self, part: Part | None) -> Part | None:
        """On the device as a whole where it fits, so that batches need no copies."""
        if part is None or not part.in_memory or self.device.type != "cuda":
            return part
        return part.to(self.device) if 2 * part.nbytes < torch.cuda.mem_get_info(self.device)[0] else part

    def _clip(self) -> None:
        assert self.budget.clip is not None
        nn.utils.clip_grad_norm_(self.model.parameters(), self.budget.clip)

    def _clip_by_fabric(self) -> None:
        self.fabric.clip_gradients(
            self.module, self.stepper, max_norm=self.budget.clip, error_if_nonfinite=False
        )  # a NaN is reported with its step by _finite

    def _seed(self, epoch: int) -> None:
        """Dropout and the like, which draw from PyTorch's global generators; `train` restores them at the end."""
        value = _derive(self.seed, "torch", epoch, self.rank)
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(value)

    def _batches(self, epoch: int) -> list[Tensor]:
        """The rows of this process's share of each batch of the epoch."""
        budget, part = self.budget, self.data.train
        steps, generator = _steps(len(part), budget), _generator(self.seed, "order", epoch)
        batches: Sequence[Tensor] | None = self.method.batches(budget.batch_size, steps, generator)
        if batches is None and budget.order == "domains":
            assert part.domain is not None
            batches = by_group(part.domain, budget.batch_size, steps, generator)
        elif batches is None:
            batches = torch.split(permutation(len(part), generator), budget.batch_size)[:steps]
        if self.world == 1:
            return list(batches)
        return [b[: len(b) // self.world * self.world][self.rank :: self.world] for b in batches]

    def _epoch(self, epoch: int) -> dict[str, float]:
        budget, method, part = self.budget, self.method, self.parts[0]
        assert part is not None
        module, stepper, backward = self.module, self.stepper, self.backward
        clip = None if budget.clip is None else self.clip_now
        on_cpu, augment = self.device.type == "cpu", self._augment(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = budget.rate(epoch)
        self._seed(epoch + 1)
        losses: list[Tensor] = []
        start = time.perf_counter()
        for batch in self._fetch(part, epoch):
            if augment is not None:
                batch = replace(batch, x=augment(batch.x))
            if not on_cpu:
                batch = batch.to(self.device)
            losses.append(method.step(module, batch, stepper, backward, clip))
            method.after_step()
        method.after_epoch()
        train_loss = self._finite(torch.stack(losses), epoch)
        self.step_seconds.append((time.perf_counter() - start) / len(losses))
        return {"epoch": epoch + 1, "train_loss": train_loss, **self._validate(epoch), "lr": budget.rate(epoch)}

    def _fetch(self, part: Part, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch with their guests; small ones are fetched several at once."""
        for group in self._groups(part, epoch):
            yield from self._together(part, group)

    def _groups(self, part: Part, epoch: int) -> Iterator[list[Rows]]:
        """The rows of the batches of an epoch, in groups of equal size to fetch at once."""
        batches, ahead = self._batches(epoch), 1
        self.method.before_epoch()
        plan = iter(self.method.plan(batches))
        # Rows that other methods choose may follow from what training has learned: they are asked for step by step.
        if isinstance(part.x, Tensor) and type(self.method).rows in (Method.rows, Mix.rows):
            ahead = max(1, min(AHEAD, FETCH // (len(batches[0]) * part.x[0].nbytes)))
        while group := list(islice(plan, ahead)):
            for _, equal in groupby(group, key=lambda rows: len(rows[0])):
                yield list(equal)

    def _together(self, part: Part, group: list[Rows]) -> Iterator[Batch]:
        """Batches of equal size, fetched at once."""
        rows = torch.stack([anchors for anchors, _ in group]).to(part.y.device)
        count, guests = rows.shape[1], [guests for _, guests in group if guests is not None]
        if guests:  # column by column behind the anchors
            rows = torch.cat((rows.unsqueeze(1), torch.stack(guests).to(rows.device).transpose(1, 2)), dim=1).flatten(1)
        size = rows.shape[1]
        x, y, domain = part.take(rows.flatten())
        xs, ys = [x] if len(group) == 1 else torch.split(x, size), torch.split(y, size)
        domains = repeat(None) if domain is None else torch.split(domain, size)
        for inputs, targets, groups, index in zip(xs, ys, domains, rows.unbind(), strict=False):
            yield Batch(inputs, targets, groups, index, count)

    def _augment(self, epoch: int) -> Callable[[Tensor], Tensor] | None:
        if not self.budget.augment:
            return None
        from ..data.augment import crop_and_flip

        generator = _generator(self.seed, "augment", epoch, self.rank)
        return lambda x: crop_and_flip(x, generator)

    def _finite(self, losses: Tensor, epoch: int) -> float:
        """The mean loss (steps,) of the epoch over all processes; one copy to the host."""
        values = losses.double()
        if self.world > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")
        values = values.cpu()
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            step = int((~finite).nonzero()[0])
            raise TrainingError(
                f"the loss became {values[step].item()} at step {step + 1} of epoch {epoch + 1} under "
                f"{type(self.method).__name__}; lower the learning rate ({self.budget.lr}), set clip, or look for "
                "extreme values in the data"
            )
        return values.mean().item()

    def _validate(self, epoch: int) -> dict[str, float]:
        """Validation loss and metrics; keeps the weights if they are the best so far."""
        part = self.parts[1]
        return {} if part is None else self._validated(epoch, outputs(self.module, self.method, part, by_domain=True))

    def _validated(self, epoch: int, output: Tensor) -> dict[str, float]:
        """The same from the outputs for the validation part."""
        part, task, budget = self.parts[1], self.data.task, self.budget
        assert part is not None
        loss = task.losses(output.double(), part.y.to(output.device)).mean().item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is {loss} after epoch {epoch + 1} under {type(self.method).__name__}; lower the "
                f"learning rate ({budget.lr}) or set clip"
            )
        prediction, y = predictions(output, part.y, task, self.data.target_scale, part.raw)
        domain = None if part.domain is None else part.domain.cpu()
        names = dict.fromkeys(name for name in (headline(task), budget.metric) if name != "loss")
        found = {"loss": loss, **scores(task, prediction, y, domain, names)}
        if self.world > 1:  # batch-norm statistics differ between processes; those of rank 0 are kept
            found = self.fabric.broadcast(found)
        self.method.after_validation(found["loss"])
        value = found[budget.metric] * (1 if higher_is_better(task, budget.metric) else -1)
        if math.isnan(value):
            raise ValueError(f"the metric {budget.metric!r} is undefined on the validation part; choose another")
        if budget.select == "best" and (self.best is None or value > self.best["value"]):
            self.best = {"epoch": epoch + 1, "value": value, "weights": self.weights()}
            if type(self.method).predict is not Method.predict:  # what predicts beside the network belongs to it
                self.best["method"] = copy.deepcopy(self._whole(self.method.state_dict()))
        return {f"valid_{name}": value for name, value in found.items()}

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's present state."""
        state = self._whole(self.model.state_dict())
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _whole(self, state: Any) -> Any:
        """A state whose tensors are all there; with sharded weights all processes must call it."""
        if self.budget.strategy != "fsdp":
            return state
        from .shard import whole

        return whole(state)

    def _load(self, weights: dict[str, Tensor]) -> None:
        if self.budget.strategy == "fsdp":
            from .shard import scatter

            weights = scatter(weights, self.model.state_dict())
        self.model.load_state_dict(weights)

    def _finish(self) -> Fit:
        epoch = len(self.history)
        if self.best is not None:
            self._load(self.best["weights"])
            epoch = self.best["epoch"]
            if "method" in self.best:
                self.method.load_state_dict(self.best["method"])
        if not all(bool(torch.isfinite(p).all()) for p in self._whole(list(self.model.parameters()))):
            raise TrainingError(
                f"a weight is NaN or infinite after epoch {epoch} under {type(self.method).__name__}; lower the "
                f"learning rate ({self.budget.lr}) or set clip"
            )
        self.method.after_training(self.model, self._in_order())
        return Fit(self.history, epoch, self.seconds, median(self.step_seconds), _peak_memory(self.device))

    def _in_order(self) -> Iterator[Batch]:
        """All training rows, unaugmented."""
        part = self.parts[0]
        assert part is not None
        for rows in torch.split(torch.arange(len(part), device=part.y.device), self.budget.batch_size):
            yield Batch(*part.take(rows), rows).to(self.device)

    def _configuration(self) -> dict[str, str]:
        settings = {"budget": asdict(self.budget), "seed": self.seed, "devices": self.world}
        parts = [part for part in (self.data.train, self.data.valid) if part is not None]
        tensors = [t for part in parts for t in (part.x, part.y, part.domain) if isinstance(t, Tensor)]
        return files.configuration(self.method, self.model, settings, *tensors)

    def _save(self) -> None:
        if self.path is None:
            return
        done = len(self.history) == self.budget.epochs
        due = time.perf_counter() - self._last_saved >= self.every or (done and self.saved)
        if self.world > 1:
            due = self.fabric.broadcast(due)
        if not due:
            return
        methods = self._gather(self._whole(self.method.state_dict()))
        model, optimizer = self.weights(), self._whole(self.optimizer.state_dict())
        if self.rank == 0:
            precision = {} if self.alone else self.fabric.strategy.precision.state_dict()
            self._write(self.path, model=model, optimizer=optimizer, precision=precision, methods=methods)
        self._last_saved, self.saved = time.perf_counter(), True

    def _write(self, path: Path, **computed: Any) -> None:
        """The checkpoint of this run, from what trains it and what it knows of itself."""
        state = {
            "configuration": self.configuration,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "inputs": [part.x.state_dict() if part and hasattr(part.x, "state_dict") else None for part in self.parts],
            **computed,
        }
        try:
            files.save(path, state)
        except OSError as error:  # a full disk: the result is worth more than the way back
            warnings.warn(f"cannot write the checkpoint {path} ({error}); training goes on", stacklevel=2)

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The states of all processes, in the order of their ranks."""
        if self.world == 1:
            return [state]
        content = torch.frombuffer(bytearray(files.to_bytes(state)), dtype=torch.uint8).to(self.device)
        sizes = self.fabric.all_gather(torch.tensor([len(content)], device=self.device)).flatten()
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=self.device)
        padded[: len(content)] = content
        all_of = self.fabric.all_gather(padded)
        return [files.from_bytes(c[:n].cpu().numpy().tobytes()) for c, n in zip(all_of, sizes.tolist(), strict=True)]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The checkpoint of this run, what the run knows of itself taken from it; None if there is no whole one."""
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = files.load(path)
        except files.CheckpointError as error:
            warnings.warn(f"{error}; training starts from the beginning", stacklevel=2)
            return None
        other = [name for name, value in self.configuration.items() if state["configuration"].get(name) != value]
        if other:
            raise ValueError(
                f"the checkpoint {path} belongs to a run with another {', '.join(other)}; remove it to start "
                "afresh, or give this run a file of its own"
            )
        self.method.load_state_dict(state["methods"][self.rank])
        for part, drawn in zip((self.data.train, self.data.valid), state["inputs"], strict=True):
            if part is not None and drawn is not None:
                part.x.load_state_dict(drawn)
        self.history, self.best = state["history"], state["best"]
        self.seconds, self.step_seconds, self.saved = state["seconds"], state["step_seconds"], True
        return state

    def _resume(self, path: Path) -> None:
        state = self._read(path)
        if state is None:
            return
        self._load(state["model"])
        if self.budget.strategy == "fsdp":
            from .shard import scatter_states

            scatter_states(state["optimizer"], self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        if not self.alone:
            self.fabric.strategy.precision.load_state_dict(state["precision"])


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
