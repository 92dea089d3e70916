"""Quick steps on the CPU for small networks: backward pass and fused optimisers without the Python around them.

Profiler and compiler hooks, the search for CUDA, argument checks, collecting lists and one addition per step counter
take twice as long as the arithmetic of a network of 20,000 weights, and the import of PyTorch's compiler, which its
optimisers ask for, as long as thousands of steps. Here they are done once or not at all; gradients, states and weights
stay the same bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

KERNELS = {Adam: "_fused_adam_", AdamW: "_fused_adamw_", SGD: "_fused_sgd_"}
MARK = "__dynamo_disable"
"""Where PyTorch keeps the marked form of a function."""


def quick_backward() -> Callable[..., Any]:
    """`Tensor.backward(loss, gradient=None)` for a loss of 32 bits on the CPU, a scalar if no gradient is given.

    The engine is called directly where it answers.
    """
    one = torch.ones(())

    def backward(loss: Tensor, gradient: Tensor = one) -> None:
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    try:
        probe = torch.ones((), requires_grad=True)
        backward(2 * probe)
        return backward if probe.grad is not None and probe.grad.item() == 2 else Tensor.backward
    except (AttributeError, TypeError, RuntimeError):  # it is no public interface
        return Tensor.backward


@contextmanager
def without_compiler() -> Iterator[None]:
    """In here optimisers can be made without the import of PyTorch's compiler, which takes seconds.

    It would only mark `add_param_group` as nothing to compile; what is marked stays as it is.
    """
    function = getattr(Optimizer.add_param_group, "__wrapped__", None)
    if function is None or "torch._dynamo" in sys.modules or hasattr(function, MARK):
        yield
        return
    setattr(function, MARK, function)
    try:
        yield
    finally:
        delattr(function, MARK)


class _AdamGroup:
    """One parameter group, its tensors listed; the step counters become views of one tensor."""

    def __init__(self, optimizer: Optimizer, settings: dict[str, Any]) -> None:
        self.settings, self.params = settings, list(settings["params"])
        states = [optimizer.state[p] for p in self.params]
        for p, state in zip(self.params, states, strict=True):
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        self.count = torch.stack([state["step"] for state in states])
        self.counts = list(self.count.unbind())
        for state, count in zip(states, self.counts, strict=True):
            state["step"] = count
        self.first = [state["exp_avg"] for state in states]
        self.second = [state["exp_avg_sq"] for state in states]

    def step(self, kernel: Any, grads: Sequence[Tensor]) -> None:
        self.count.add_(1)
        now, (beta1, beta2) = self.settings, self.settings["betas"]
        rates = {
            "lr": now["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": now["weight_decay"],
            "eps": now["eps"],
        }
        kernel(self.params, grads, self.first, self.second, [], self.counts, **rates, amsgrad=False, maximize=False)


class _SGDGroup:
    """One parameter group. Momentum starts at 0, which gives what PyTorch's first step does, for every parameter."""

    def __init__(self, optimizer: Optimizer, settings: dict[str, Any]) -> None:
        self.settings, self.params = settings, list(settings["params"])
        _begin_momentum(optimizer, settings)
        self.momentum = [optimizer.state[p]["momentum_buffer"] for p in self.params] if settings["momentum"] else []

    def step(self, kernel: Any, grads: Sequence[Tensor]) -> None:
        now = {name: self.settings[name] for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov")}
        kernel(self.params, grads, self.momentum, **now, maximize=False, is_first_step=False)


def _begin_momentum(optimizer: Optimizer, settings: dict[str, Any]) -> None:
    """Momentum for parameters of an SGD that have a gradient and none yet; PyTorch's fused step takes all or none."""
    for p in settings["params"] if settings.get("momentum") else ():
        if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def quicken(optimizer: Optimizer) -> Optimizer:
    """The same optimiser with quick methods if it is an SGD, Adam or AdamW with fused=True on the CPU.

    PyTorch's own step is taken where hooks are registered, a closure is given or a parameter has no gradient.
    Optimisers with amsgrad, maximize or dampening are left as they are. Momentum must not be switched on between steps.
    """
    kernel = getattr(torch, KERNELS.get(type(optimizer), ""), None)
    other = any(
        settings.get(name) for settings in optimizer.param_groups for name in ("amsgrad", "maximize", "dampening")
    )
    if kernel is None or other:
        return optimizer
    kind = _SGDGroup if isinstance(optimizer, SGD) else _AdamGroup
    whole, groups = optimizer.step, list[Any]()
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    optimizer.register_load_state_dict_post_hook(lambda _: groups.clear())

    def step(self: Optimizer, closure: Any = None) -> Any:
        grads = [[p.grad for p in settings["params"]] for settings in optimizer.param_groups]
        if closure is not None or any(hooks) or any(grad is None for some in grads for grad in some):
            groups.clear()
            for settings in optimizer.param_groups:
                _begin_momentum(optimizer, settings)
            return whole(closure)
        with torch.no_grad():
            if len(groups) != len(grads):
                groups[:] = [kind(optimizer, settings) for settings in optimizer.param_groups]
            for group, some in zip(groups, grads, strict=True):
                group.step(kernel, some)

    def zero_grad(set_to_none: bool = True) -> None:
        for settings in optimizer.param_groups:
            for p in settings["params"]:
                p.grad = None

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]  # schedulers look for a method
    optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
    for name in ("state_dict", "load_state_dict"):
        function = getattr(type(optimizer), name)
        setattr(optimizer, name, partial(getattr(function, "__wrapped__", function), optimizer))
    return optimizer
