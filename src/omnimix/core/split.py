"""A network seen as features and head, with named taps that read or replace activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .checks import one_of

Rewrite = Callable[[Tensor], Tensor]


class _Tap:
    """A hook that rewrites one module's output, or its input, once, and again only when checkpointing recomputes it."""

    def __init__(self, module: nn.Module, name: str, rewrite: Rewrite, before: bool = False) -> None:
        self.module: nn.Module | None = module
        self.name, self.rewrite, self.fired, self.open = name, rewrite, 0, True
        self.handle = module.register_forward_pre_hook(self.enter) if before else module.register_forward_hook(self)

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        value = self(module, inputs, inputs[0])
        return None if value is None else (value, *inputs[1:])

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if module is not self.module:  # a deep copy of the network carries this hook along
            return None
        recomputed = torch._C._current_graph_task_id() != -1
        if not recomputed and (not self.open or not module.training):
            if module.training:  # the next pass has begun, and what it recomputes is not this tap's
                self.handle.remove()
            return None
        if not recomputed:
            self.fired += 1
            if self.fired > 1:
                raise RuntimeError(
                    f"tap {self.name!r} was reached twice in one step; choose a module that runs once per forward"
                )
        if not isinstance(output, Tensor):
            raise TypeError(f"tap {self.name!r} gives {type(output).__name__}; choose a module with one tensor there")
        return self.rewrite(output)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": None, "name": self.name, "rewrite": None, "fired": 0, "open": False, "handle": None}


class Split:
    """`model` with a named head and named taps.

    head: the name of the last module (its input is the feature); None guesses: "fc", "head", "classifier", else the
    last linear layer. taps: names of modules whose output may be mixed; None takes `model.taps` where the network
    declares them, else after its first two stages or activations. Names are those of `model.named_modules()`;
    ValueError for others.
    """

    def __init__(self, model: nn.Module, head: str | None = None, taps: tuple[str, ...] | None = None) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self.head_name = self._check("head", head) if head else _guess_head(self._modules)
        declared = tuple(getattr(model, "taps", ())) if taps is None else taps
        self.taps = tuple(self._check("tap", name) for name in declared) if declared else _guess_taps(model)
        self._last: _Tap | None = None

    def _check(self, what: str, name: str) -> str:
        if name not in self._modules:
            known = ", ".join(repr(n) for n in self._modules if n)
            raise ValueError(f"{what} {name!r} is not a module of {type(self.model).__name__}; there are: {known}")
        return name

    @contextmanager
    def rewrite(self, name: str, function: Rewrite, *, before: bool = False) -> Iterator[None]:
        """Within the block, replace the output of tap `name` by `function(output)`; before: its input, likewise.

        Fires once and only in training mode; not reaching the tap, or reaching it twice, is a RuntimeError. Activation
        checkpointing that recomputes the tap during the backward pass repeats the rewrite, so `function` must repeat
        its result; the backward pass comes before the next forward pass in training mode.
        """
        module = self._modules[self._check("tap", name)]
        self._release()
        tap = self._last = _Tap(module, name, function, before)
        try:
            yield
            if not tap.fired:
                raise RuntimeError(f"tap {name!r} was not reached by the forward pass (is the model in training mode?)")
        except BaseException:
            self._release()
            raise
        finally:
            tap.open = False

    def _release(self) -> None:
        if self._last is not None:
            self._last.handle.remove()
            self._last = None

    def features(self, x: Any) -> Tensor:
        """The input of the head, as the network computes it."""
        return self.features_and_output(x)[0]

    def features_and_output(self, x: Any, network: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """One forward pass: (input of the head, output of the network).

        network: a wrapper to pass through instead; ValueError if the pass does not reach the head.
        """
        kept: list[Tensor] = []
        handle = self._modules[self.head_name].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            output = (self.model if network is None else network)(x)
        finally:
            handle.remove()
        if not kept:
            raise ValueError(
                f"a pass through this {type(network or self.model).__name__} did not reach the head "
                f"{self.head_name!r} of the network given to setup(model, ...): use that network, or a wrapper of it"
            )
        return kept[0], output

    def head(self, z: Tensor) -> Tensor:
        """The head applied to any features."""
        return cast(Tensor, self._modules[self.head_name](z))

    def with_weights(self, weights: Mapping[str, Tensor], x: Any) -> Tensor:
        """A forward pass with the given parameters and buffers in place of the model's own, by name."""
        return cast(Tensor, torch.func.functional_call(self.model, dict(weights), (x,)))


def split(model: nn.Module, head: str | None = None, taps: tuple[str, ...] | None = None) -> Split:
    """See `Split`."""
    return Split(model, head, taps)


def _guess_head(modules: dict[str, nn.Module]) -> str:
    for name in ("fc", "head", "classifier"):
        if name in modules:
            return name
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("no head found: the network has no 'fc', 'head', 'classifier' or linear layer; pass head=...")
    return linear[-1]


def _guess_taps(model: nn.Module) -> tuple[str, ...]:
    """After the 1st and 2nd stage of residual networks; otherwise after the first two activations or children."""
    children = dict(model.named_children())
    for stages in (("layer1", "layer2"), ("stages.0", "stages.1"), ("blocks.0", "blocks.1")):
        if all(name in dict(model.named_modules()) for name in stages):
            return stages
    activations = [n for n, m in model.named_modules() if type(m).__module__ == "torch.nn.modules.activation"]
    return tuple((activations or list(children)[:-1])[:2])


@contextmanager
def observe(model: nn.Module, *names: str) -> Iterator[dict[str, Any]]:
    """Within the block, keep the latest output of the modules `names` of `model`, all of them if none is named.

    The dict that it gives maps names to outputs as the modules made them, in the order of their arrival.
    """
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.pop(name, None)
            seen[name] = output

        return hook

    modules = {name: module for name, module in model.named_modules() if name}
    for name in names:
        one_of("module", name, modules)
    handles = [modules[name].register_forward_hook(keep(name)) for name in names or modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode within the block: a pass moves no running statistics and draws no random numbers.

    Afterwards every module is in the mode in which it was.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


NormPolicy = Literal["train", "separate", "frozen"]


@contextmanager
def norm_policy(model: nn.Module, policy: NormPolicy) -> Iterator[None]:
    """How an extra forward pass treats batch-norm layers.

    "train": as usual. "separate": normalise by the batch, leave the running statistics alone. "frozen": normalise by
    the running statistics and leave them alone.
    """
    one_of("policy", policy, ("train", "separate", "frozen"))
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m, m.training, m.track_running_stats, m.running_mean, m.running_var) for m in layers]
    try:
        for layer in layers:
            if policy == "frozen":
                layer.training = False
            elif policy == "separate" and layer.training:
                layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        yield
    finally:
        for layer, training, track, mean, var in before:
            layer.training, layer.track_running_stats = training, track
            layer.running_mean, layer.running_var = mean, var
