"""A Lightning callback that mixes: the user's LightningModule trains as it is, evaluation never mixes.

During fitting the callback stands before `training_step`, where the batch is on its device and only training passes. It
hands on the batch with mixed inputs and soft targets, or, for methods that make the loss themselves, the batch as it
came, and the module asks for `self.mixing.loss(self, batch)`. Works with `lightning` and with `pytorch_lightning`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ..core.batch import Batch
from ..core.checks import at_least
from ..core.foreign import trainable_elsewhere
from ..core.loader import _Batches, _only, _with_guests
from ..core.method import Method, Mix
from ..core.objective import MixedLoss
from ..core.operation import Context
from ..core.random import permutation
from ..core.recipe import mix_labels
from ..core.registry import create
from ..core.table import Table
from ..core.task import Regression, Task

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ImportError as error:
        raise ImportError("omnimix.integrations.lightning needs Lightning: pip install lightning") from error


class Mixing(Callback):
    """`Trainer(callbacks=[Mixing("mixup", om.Classification(10), alpha=0.2)])`.

    method: a name and its `parameters`, or a Method. task: what y means. The training batches that reach
    `training_step(batch, batch_idx)` are mixed: x in the form that the loader gives, y as soft targets (B, classes), or
    real values, which `F.cross_entropy` and `F.mse_loss` take as they are. A loader yields (x, y), (x, y, domain) or a
    dict with "y", "label", "labels" or "target". Hidden places (manifold mixup) are mixed while `training_step` runs.

    in_step: True leaves batches alone, and `training_step` returns `self.mixing.loss(self, batch)`, which calls the
    module's `forward`; for methods with a loss of their own (RegMixup, decoupled mixup, combinations). Names of taps
    are those of the only child of the module that has parameters, or of the module itself. table: columns of the
    training set for methods that need them; `loader` finds labels and domains by itself. seed: of all draws; every
    process of a distributed run has its own stream. monitor: the name under which `validation_step` logs the loss that
    methods such as SWAD follow.

    A step of the method, also in its schedules, is a training batch, whatever `accumulate_grad_batches` is. When
    training ends the method may change the weights (SWAD), with another pass over the training batches as the loader
    gives them; save the module after `fit`. What predicts beside the network does so by
    `mixing.method.predict(module, x)`. The state of the method is in Lightning's checkpoints. ValueError where method,
    task and module do not fit together, and for methods such as SAM and Fish, whose steps Lightning does not take.
    """

    def __init__(
        self,
        method: str | Method,
        task: Task,
        *,
        in_step: bool = False,
        table: Table | None = None,
        seed: int = 0,
        monitor: str = "val_loss",
        **parameters: Any,
    ) -> None:
        if isinstance(method, Method) and parameters:
            raise ValueError(f"{', '.join(parameters)} belong to a method given by name; set them on the Method itself")
        self.method = create(method, **parameters) if isinstance(method, str) else method
        if not isinstance(self.method, Method):
            raise ValueError(f"method must be a name such as 'mixup' or an omnimix Method, got {method!r}")
        if not in_step and not _by_batch(self.method, task):
            raise ValueError(
                f"{type(self.method).__name__} makes the loss itself, which no mixed batch can say: use Mixing(..., "
                "in_step=True) and `return self.mixing.loss(self, batch)` in training_step"
            )
        self.task, self.in_step, self.table, self.seed = task, in_step, table, at_least("seed", seed, 0)
        self.monitor = monitor
        self._loader: DataLoader[Any] | None = None
        self._ready = self._asked = False
        self._epoch = 0  # Lightning's own counter lags behind when a resumed run makes its first iterator
        self._found: dict[str, Any] | None = None

    def loader(self, dataset: Dataset[Any], batch_size: int, *, drop_last: bool = False, **options: Any) -> Any:
        """A shuffling train loader that brings partners from the whole data set, for methods such as "c-mixup".

        dataset: map-style. batch_size: samples to train on in each process; partners come on top. options: go to
        `DataLoader`. The order follows from the seed and the epoch. Distributed training takes
        `Trainer(use_distributed_sampler=False)`: the loader gives each process its share by itself.
        """
        if self.table is None:
            self.table = _table(dataset, self.method.needs)
        self._dataset, self._batch_size = dataset, batch_size
        sampler = _PartnerRows(self, len(dataset), at_least("batch_size", batch_size, 1), drop_last)  # type: ignore[arg-type]
        if len(self.table) != sampler.size:
            raise ValueError(f"the data set has {sampler.size} rows, but the table has {len(self.table)}")
        self._loader = DataLoader(_Batches(dataset), batch_sampler=sampler, collate_fn=_only, **options)
        return self._loader

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The training loss of one batch, mixed; for `training_step` where in_step=True."""
        self._asked = True
        return self.method.loss(module, batch)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._ready, self._found, self._epoch = False, None, 0
        if self._loader is not None:  # worker processes ask for rows before training starts
            self._begin(trainer, pl_module, len(self._loader))
        elif self.method.needs and self.table is None:
            raise ValueError(
                f"{type(self.method).__name__} needs the {' and '.join(self.method.needs)} of the whole training set: "
                "train on mixing.loader(dataset, batch_size), where mixing is this callback"
            )

    def _begin(self, trainer: Any, pl_module: Any, batches: float) -> None:
        limits = [batches * trainer.max_epochs] if (trainer.max_epochs or -1) > 0 else []
        limits += [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps > 0 else []
        steps = min(limits, default=float("inf"))
        self.trainer = trainer
        self.method.setup(
            _network(pl_module),
            self.task,
            self.table,
            steps=int(steps) if steps < float("inf") else None,
            generator=torch.Generator().manual_seed((self.seed << 16) + trainer.global_rank),
        )
        self._ready = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._ready:
            _ = trainer.estimated_stepping_batches  # makes the loader
            self._begin(trainer, pl_module, trainer.num_training_batches)
            if self._found is not None:
                self.load_state_dict(self._found)
        trainable_elsewhere(self.method, processes=trainer.world_size, validates=trainer.enable_validation)
        if self.in_step:
            if type(pl_module).forward.__module__.partition(".")[0] in ("lightning", "pytorch_lightning"):
                raise ValueError(f"{type(pl_module).__name__} has no forward(x), which mixing.loss(self, batch) calls")
            if getattr(pl_module, "mixing", self) is not self:
                raise ValueError(f"{type(pl_module).__name__}.mixing is the callback's place; rename yours")
            pl_module.mixing = self
        else:
            pl_module.training_step = self._mixed(pl_module.training_step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        for name in ("mixing",) if self.in_step else ("training_step",):
            vars(pl_module).pop(name, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._loader is None:
            self.method.before_epoch()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.optimizers:
            self.method.follow(trainer.optimizers[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.in_step and not self._asked:
            raise ValueError(
                f"{type(pl_module).__name__}.training_step did not call self.mixing.loss(self, batch), so nothing is "
                "mixed; return that loss, or use in_step=False"
            )
        self.method.after_step()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        loss = trainer.callback_metrics.get(self.monitor)
        if loss is not None:
            self.method.after_validation(float(loss))
        elif self.method.follows_validation:
            raise ValueError(
                f"{type(self.method).__name__} follows the validation loss, but {type(pl_module).__name__} logs no "
                f"{self.monitor!r}: log it in validation_step, or name what is logged with Mixing(..., monitor=...); "
                f"there are: {', '.join(trainer.callback_metrics) or 'none'}"
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.method.after_training(_network(pl_module), self._all(trainer, pl_module.device))

    def _all(self, trainer: Any, device: torch.device) -> Iterator[Batch]:
        """The training batches once more, without guests."""
        loader: Any = trainer.train_dataloader
        if self._loader is not None:  # whose own batches would ask the method for guests
            loader = DataLoader(self._dataset, self._batch_size)
        with torch.random.fork_rng(devices=[]):
            for data in loader:
                yield Batch.of(data).alone.to(device)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.method.after_epoch()
        self._epoch += 1

    def state_dict(self) -> dict[str, Any]:
        states = [self.method.state_dict()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = states * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, states[0])
        return {"epoch": self._epoch, "methods": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict
        if self._ready:
            states, rank = state_dict["methods"], self.trainer.global_rank
            if len(states) != self.trainer.world_size:
                raise ValueError(
                    f"the checkpoint holds the mixing of {len(states)} processes, this run has "
                    f"{self.trainer.world_size}; continue with as many"
                )
            self.method.load_state_dict(states[rank])
            self._epoch = state_dict["epoch"]

    def _mixed(self, training_step: Any) -> Any:
        @functools.wraps(training_step)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            mixed, tap = self._mix(batch)
            with tap:
                return training_step(mixed, *args, **kwargs)

        return step

    def _mix(self, data: Any) -> tuple[Any, AbstractContextManager[None]]:
        """The batch to train on, and the rewriting of a hidden tap meanwhile."""
        batch, mixer = Batch.of(data), self.method.mixer
        recipe = self.method.drawn(batch)
        if mixer is None or recipe is None:
            y = self.task.soft_target(batch.alone.y)  # steps that do not mix give targets of the same form
            return self._like(data, batch.alone.x, y), nullcontext()
        context, tap, x = Context(self.method.generator), nullcontext(), batch.x
        if recipe.place == "input":
            x, recipe = mixer.operation(x, recipe, context)
        else:
            drawn = recipe
            assert mixer.split is not None
            tap = mixer.split.rewrite(recipe.place, lambda h: mixer.operation(h, drawn, context)[0])  # type: ignore[assignment]
        if recipe.loss_weight is not None:
            raise ValueError(
                f"{type(self.method).__name__} weighs the samples of a batch, which soft targets cannot say: use "
                "Mixing(..., in_step=True) and `return self.mixing.loss(self, batch)` in training_step"
            )
        return self._like(data, x, mix_labels(self.task.soft_target(batch.y), recipe)), tap

    def _like(self, data: Any, x: Any, y: Tensor) -> Any:
        """x and y in the form of the loader's batch."""
        if isinstance(self.task, Regression) and Batch.of(data).y.ndim == 1:
            y = y.squeeze(1)
        y = self.trainer.precision_plugin.convert_input(y)
        if isinstance(data, Batch):
            return x, y
        if isinstance(data, Mapping):
            name = next(key for key in ("y", "label", "labels", "target") if key in data)
            rest = set(data) - {name, "domain", "index"}
            return {**data, **({"x": x} if rest == {"x"} else x), name: y}
        return type(data)((x, y, *data[2:]))


class _PartnerRows(Sampler[list[int]]):
    """Rows of each batch, guests behind; for each process its share of the epoch."""

    def __init__(self, mixing: Mixing, size: int, batch_size: int, drop_last: bool) -> None:
        self.mixing, self.size, self.batch_size, self.drop_last = mixing, size, batch_size, drop_last

    def _world(self) -> tuple[int, int]:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)

    def __len__(self) -> int:
        share = self.size // self._world()[1]
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        method, (rank, world) = self.mixing.method, self._world()
        if method.given is None:
            raise ValueError("this loader draws partners while Trainer(callbacks=[mixing]) fits; that has not begun")
        method.before_epoch()
        seed = (self.mixing.seed << 32) + (1 << 31) + self.mixing._epoch
        order = permutation(self.size, torch.Generator().manual_seed(seed))[: self.size // world * world][rank::world]
        steps = range(0, len(self) * self.batch_size, self.batch_size)
        yield from _with_guests(method, (order[start : start + self.batch_size] for start in steps))


def _by_batch(method: Method, task: Task) -> bool:
    """Whether mixed inputs and soft targets say all that the method does."""
    mixer = method.mixer
    if mixer is None:
        return method.by_row
    if type(mixer.objective) is not MixedLoss or (
        isinstance(task, Regression) and mixer.objective.target == "two-part"
    ):
        return False
    if method.by_row:
        return True
    hooks = ("loss", "mixed_loss", "forward", "mix", "apply", "plain_loss", "step")
    same = all(getattr(type(method), hook) is getattr(Mix, hook) for hook in hooks)
    plain = mixer.places == ("input",) and mixer.labels is None and not mixer.operation.needs
    return same and plain


def _network(module: nn.Module) -> nn.Module:
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return children[0] if len(children) == 1 else module


def _table(dataset: Any, needs: tuple[str, ...]) -> Table:
    """Labels and domains of data sets that hold them as a whole."""
    found = {"label": getattr(dataset, "targets", None), "domain": getattr(dataset, "domains", None)}
    if hasattr(dataset, "tensors"):
        found.update(zip(("label", "domain"), dataset.tensors[1:], strict=False))
    columns = {name: torch.as_tensor(value) for name, value in found.items() if value is not None}
    missing = [name for name in needs if name not in columns]
    if missing or not columns:
        raise ValueError(
            f"{type(dataset).__name__} does not say the {' and '.join(missing or ['label'])} of all its rows (it is no "
            "TensorDataset and has no .targets): pass Mixing(..., table=omnimix.Table(label=...))"
        )
    return Table(**columns)
