"""Mixing under the Hugging Face Trainer: for float inputs a callback and a loss; for text and all else `MixTrainer`.

Token ids cannot be averaged, so texts are mixed as embedded words (Guo et al. 2019, arXiv 1905.08941: wordMixup) or at
a hidden layer. From the place of mixing on, a mixed sequence attends to the words of every sample in it: no word of the
longer one is cut off, and the padding of the shorter one counts as zero among the embedded words.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.foreign import trainable_elsewhere
from ..core.method import Method
from ..core.recipe import Mixed
from ..core.registry import create
from ..core.split import Rewrite, Split
from ..core.task import Classification, MultiLabel, Regression, Task

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "omnimix.integrations.transformers needs the Hugging Face Trainer: pip install 'transformers[torch]'"
    ) from error

TEXT = ("input_ids", "attention_mask", "token_type_ids")


class MixCollator:
    """A data collator that mixes what another one collates; see `MixInputs`.

    collator: gives dicts with "labels" and one floating-point input such as "pixel_values". mix: a function such as
    `omnimix.cutmix`; options go to it. num_labels: the number of classes where labels are class ids; the labels become
    (B, num_labels) floats. ValueError for other batches.
    """

    def __init__(
        self, collator: Callable[..., Any], mix: Callable[..., Mixed], num_labels: int | None = None, **options: Any
    ) -> None:
        self.collator, self.mix, self.num_labels, self.options = collator, mix, num_labels, options

    def __call__(self, features: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collator(list(features)))
        if "labels" not in batch:
            raise ValueError(f"mixing needs 'labels', the collator gives {list(batch)}")
        name = _input(batch)
        mixed = self.mix(batch[name], batch["labels"], **self.options)
        return {**batch, name: mixed.x, "labels": mixed.soft_target(self.num_labels)}


class MixInputs(TrainerCallback):
    """`Trainer(..., compute_loss_func=mixed_loss, callbacks=[MixInputs(om.cutmix, num_labels=10, alpha=1.0)])`.

    Puts a `MixCollator` around the collator of the training loader; evaluation is not mixed. For models of images and
    other float inputs, in loader workers. Without `compute_loss_func=mixed_loss` models take soft labels for
    multi-label ones. The draws come from omnimix's private stream: use `MixTrainer` for exact resumption.
    """

    def __init__(self, mix: Callable[..., Mixed], num_labels: int | None = None, **options: Any) -> None:
        self.mix, self.num_labels, self.options = mix, num_labels, options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader = getattr(kwargs["train_dataloader"], "base_dataloader", kwargs["train_dataloader"])  # of accelerate
        loader.collate_fn = MixCollator(loader.collate_fn, self.mix, self.num_labels, **self.options)


def mixed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of `outputs["logits"]` (B, C) against class ids or soft labels; squared error for C = 1.

    A mean over samples, over those of all accumulated batches where the Trainer counts labels. For `compute_loss_func`.
    """
    logits = outputs["logits"]
    if logits.shape[1] == 1:
        losses = F.mse_loss(logits.view(-1), labels.view(-1).to(logits.dtype), reduction="none")
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    if num_items_in_batch is None:
        return losses.mean()
    return losses.sum() * labels[0].numel() / num_items_in_batch  # the Trainer counts every entry of soft labels


class MixTrainer(Trainer):
    """A Trainer whose training steps take the loss of an omnimix method; evaluation and prediction are the model's own.

    mixing: the name of a method, with the parameters `mixing_parameters`, or a Method. task: None follows the
    configuration of the model. The rest: see `transformers.Trainer`. Works for models with "labels" and "logits" whose
    input is text ("input_ids", "attention_mask", "token_type_ids"; encoders) or one floating-point tensor such as
    "pixel_values". For text the place "input" means the embedded words, and a mixed word takes the token type of the
    larger share; the default taps of hidden methods are the first two layers.

    Draws follow from `args.seed`, with a stream for each process; the method's state is in the Trainer's checkpoints. A
    step of the method, also in its schedules, is a training batch, whatever `gradient_accumulation_steps` is. Methods
    such as SWAD follow "eval_loss" and change the weights when training ends, after `load_best_model_at_end`; save the
    model then. ValueError for label smoothing, `compute_loss_func`, decoders, methods that need the whole training set,
    and those such as SAM whose steps the Trainer does not take.
    """

    def __init__(
        self,
        *args: Any,
        mixing: str | Method,
        mixing_parameters: Mapping[str, Any] | None = None,
        task: Task | None = None,
        **kwargs: Any,
    ) -> None:
        self.mixing = create(mixing, **(mixing_parameters or {})) if isinstance(mixing, str) else mixing
        if not isinstance(self.mixing, Method) or (mixing_parameters and not isinstance(mixing, str)):
            raise ValueError(
                "mixing must be the name of a method, with mixing_parameters, or a Method that has them; got "
                f"{mixing!r} with {mixing_parameters!r}"
            )
        if self.mixing.needs:
            raise ValueError(
                f"{type(self.mixing).__name__} draws partners from the whole training set, which the Trainer does not "
                "load; use a method that mixes within the batch"
            )
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ValueError(
                "the loss of MixTrainer is that of its method: leave out label_smoothing_factor and compute_loss_func"
            )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, which the Trainer then scales
        self.mixing_task = task or _task(self.model)
        self.add_callback(_Life(self))

    def set_up_mixing(self) -> None:
        """Called when training begins."""
        model = self.accelerator.unwrap_model(self.model)
        if model.main_input_name == "input_ids" and (
            hasattr(model, "score") or model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False)
        ):
            raise ValueError(
                f"{type(model).__name__} is a decoder, which finds its last word by the token ids that mixing takes "
                "away; use an encoder such as BERT"
            )
        trainable_elsewhere(self.mixing, processes=self.args.world_size, validates=self.args.eval_strategy != "no")
        self.split = _Layers(model)
        self.mixing.setup(
            model,
            self.mixing_task,
            steps=self.state.max_steps * self.args.gradient_accumulation_steps,
            split=self.split,
            generator=torch.Generator().manual_seed((self.args.seed << 16) + self.args.process_index),
        )

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError(f"a training batch needs 'labels'; its keys are {list(inputs)}")
        network = _Network(model, inputs, self.accelerator.unwrap_model(model))
        return self.mixing.loss(network, Batch(network.x, labels))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.mixing.follow(cast(torch.optim.Optimizer, self.optimizer))
        return loss

    def told_validation(self, metrics: Mapping[str, float]) -> None:
        """Called with the metrics of every evaluation during training."""
        if "eval_loss" in metrics:
            self.mixing.after_validation(float(metrics["eval_loss"]))
        elif self.mixing.follows_validation:
            raise ValueError(
                f"{type(self.mixing).__name__} follows the validation loss, but evaluation gives no 'eval_loss', only "
                f"{', '.join(metrics)}: use one eval_dataset, with labels"
            )

    def training_batches(self) -> Iterator[Batch]:
        """The training set once more, in the loader's order."""
        model = cast(nn.Module, self.accelerator.unwrap_model(self.model))
        with torch.random.fork_rng(devices=[]):
            for found in self.get_train_dataloader():
                inputs = dict(self._prepare_inputs(found))
                labels = inputs.pop("labels")
                with torch.no_grad():
                    yield Batch(_Network(model, inputs, model).x, labels)

    def _mixing_file(self, folder: str) -> Path:
        return Path(folder) / f"omnimix-{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        from ..train.checkpoint import save

        super()._save_rng_state(output_dir)
        save(self._mixing_file(output_dir), self.mixing.state_dict())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        from ..train.checkpoint import load

        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        if not (file := self._mixing_file(checkpoint)).exists():
            warnings.warn(f"{checkpoint} holds no {file.name}: the mixing starts afresh", stacklevel=2)
            return
        self.mixing.load_state_dict(load(file))


class _Life(TrainerCallback):
    def __init__(self, trainer: MixTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.set_up_mixing()

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.mixing.before_epoch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.mixing.after_step()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.trainer.mixing.after_step()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.trainer.mixing.after_epoch()

    def on_evaluate(self, *_: Any, **given: Any) -> None:
        if self.trainer.is_in_train:
            self.trainer.told_validation(given["metrics"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        trainer.mixing.after_training(trainer.accelerator.unwrap_model(trainer.model), trainer.training_batches())


class _Network(nn.Module):
    """The model as a function of what can be mixed, `x`, to its logits."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any], inner: Any) -> None:
        super().__init__()
        self.model, self.inputs, self.text = model, inputs, "input_ids" in inputs
        self.x: Any
        if self.text:
            other = [name for name in inputs if name not in TEXT]
            if other:
                raise ValueError(f"mixing texts knows the inputs {', '.join(TEXT)}; the batch also has {other}")
            words = inner.get_input_embeddings()(inputs["input_ids"])
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).to(words.dtype)
            self.x = {"inputs_embeds": words * mask.unsqueeze(2), "attention_mask": mask}
            if "token_type_ids" in inputs:
                self.x["token_type_ids"] = inputs["token_type_ids"].to(words.dtype)
        else:
            self.name = _input(inputs)
            self.x = inputs[self.name]

    def forward(self, x: Any) -> Tensor:
        if not self.text:
            return cast(Tensor, self.model(**{**self.inputs, self.name: x})["logits"])
        x = {**x, "attention_mask": (x["attention_mask"] > 0).long()}  # the words of either
        if "token_type_ids" in x:
            x["token_type_ids"] = x["token_type_ids"].round().long()
        return cast(Tensor, self.model(**x)["logits"])


class _Layers(Split):
    """A transformers model; its taps are its first two layers, above which attention masks are joined, too."""

    def __init__(self, model: Any) -> None:
        found = [(len(m), name) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
        taps = tuple(f"{max(found)[1]}.{i}" for i in range(min(2, max(found)[0]))) if found else None
        super().__init__(model, taps=taps)

    @contextmanager
    def rewrite(self, name: str, function: Rewrite, *, before: bool = False) -> Iterator[None]:
        if before:
            raise ValueError("hidden layers of texts are mixed at their outputs, where attention masks are joined")
        later = self._after(name)
        if any(getattr(module, "gradient_checkpointing", False) for module in later):  # would see the old masks
            raise ValueError("hidden layers of texts cannot be mixed under gradient checkpointing; mix at the input")

        def join(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            mask = bound.arguments.get("attention_mask")
            if not isinstance(mask, Tensor) or len(mask) == 1:  # nothing is padded
                return None
            additive = mask.is_floating_point()
            shown = function((mask == 0 if additive else mask).float()) > 0  # a second call repeats the draws
            if additive:
                joined = torch.zeros_like(mask).masked_fill(~shown, torch.finfo(mask.dtype).min)
            else:
                joined = shown.to(mask.dtype)
            bound.arguments["attention_mask"] = joined
            return bound.args, bound.kwargs

        with ExitStack() as hooks:
            for module in later:
                hooks.callback(module.register_forward_pre_hook(join, with_kwargs=True).remove)
            with super().rewrite(name, function):
                yield

    def _after(self, name: str) -> list[nn.Module]:
        """The modules with an attention mask that come after the tap, at its own level and at those above."""
        found: list[nn.Module] = []
        while name:
            name, _, last = name.rpartition(".")
            children = list(self._modules[name].named_children())
            place = [child for child, _ in children].index(last)
            found += [
                m for _, m in children[place + 1 :] if "attention_mask" in inspect.signature(m.forward).parameters
            ]
        return found


def _input(batch: Mapping[str, Any]) -> str:
    """The one floating-point input of the batch."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    found = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if len(found) != 1:
        raise ValueError(
            f"mixing needs one floating-point input such as 'pixel_values', the batch has {list(inputs)}; texts are "
            "mixed by MixTrainer"
        )
    return found[0]


def _task(model: Any) -> Task:
    config = model.config
    if config.problem_type == "multi_label_classification":
        return MultiLabel(config.num_labels)
    if config.num_labels == 1 or config.problem_type == "regression":
        return Regression(config.num_labels)
    return Classification(config.num_labels)
