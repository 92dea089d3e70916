"""Quick steps on the CPU for small networks: backward pass and fused Adam without the Python around them.

Profiler and compiler hooks, the search for CUDA, argument checks, collecting lists and one addition per step counter
take twice as long as the arithmetic of a network of 20,000 weights. Here they are done once; gradients, states and
weights stay the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

KERNELS = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}


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


class _Group:
    """One parameter group, its tensors listed; the step counters become views of one tensor."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        self.settings, self.params = settings, list(settings["params"])
        states = [optimizer.state[p] for p in self.params]
        self.count = torch.stack([state["step"] for state in states])
        self.counts = list(self.count.unbind())
        for state, count in zip(states, self.counts, strict=True):
            state["step"] = count
        self.first = [state["exp_avg"] for state in states]
        self.second = [state["exp_avg_sq"] for state in states]

    def step(self, kernel: Any, grads: list[Tensor]) -> None:
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


def quicken(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimiser with a quick `step` and `zero_grad` if it is an Adam or AdamW with fused=True on the CPU.

    PyTorch's own step is taken where hooks are registered, a closure is given, a parameter has no gradient, or the
    state is new or was loaded.
    """
    kernel = getattr(torch, KERNELS.get(type(optimizer), ""), None)
    if kernel is None:
        return optimizer
    whole, groups = optimizer.step, list[_Group]()
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    optimizer.register_load_state_dict_post_hook(lambda _: groups.clear())

    def step(closure: Any = None) -> Any:
        grads = [[p.grad for p in settings["params"]] for settings in optimizer.param_groups]
        missing = any(grad is None for some in grads for grad in some)
        if len(groups) == len(grads) and closure is None and not missing and not any(hooks):
            with torch.no_grad():
                for group, some in zip(groups, grads, strict=True):
                    group.step(kernel, some)
            return None
        result = whole(closure)
        groups[:] = [] if missing else [_Group(optimizer, settings) for settings in optimizer.param_groups]
        return result

    def zero_grad(set_to_none: bool = True) -> None:
        for settings in optimizer.param_groups:
            for p in settings["params"]:
                p.grad = None

    optimizer.step, optimizer.zero_grad = step, zero_grad  # type: ignore[method-assign]
    return optimizer
