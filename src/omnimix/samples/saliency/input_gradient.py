"""Input-gradient saliency: how much the loss of a sample moves with each of its cells.

    s_i = sqrt(mean over channels of (d loss(f(x_i), y_i) / d x_i)^2)

Source: Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2013, arXiv 1312.6034; as used by Kim, Choo,
Song, "Puzzle Mix", ICML 2020, arXiv 2009.06962. Cost: a forward and a backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import non_negative
from ...core.operation import Context, Saliency
from ...core.split import evaluating
from ...core.task import Task, infer_task


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, task: Task | None = None) -> Tensor:
    """(R, 1, *spatial) root mean square over channels of the loss gradient at x (R, C, *spatial), in evaluation mode.

    y: the targets of the rows. task: what y means; None infers it from y.
    """
    task = task or infer_task(y)
    with evaluating(model), torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(task.losses(model(x), y).sum(), x)
    return _size(grad)


def _size(grad: Tensor) -> Tensor:
    return grad.float().square().mean(dim=1, keepdim=True).sqrt()


class _Kept(torch.autograd.Function):
    """A loss whose gradients are known: `value` forward, `grads` of `parameters` backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, None, *(grad * scale.to(grad.dtype) for grad in ctx.grads)


class InputGradient(Saliency):
    """See `input_gradient`. It needs the network in training.

    keep > 0: the pass is one of training (dropout; batch normalisation by the batch, whose running statistics move with
    the clean batch too, as in the released Puzzle Mix and Co-Mixup) on `keep` times the mean loss of the unmixed batch.
    That loss joins the loss of the step, and its parameter gradient is that of the same backward pass.
    """

    needs = ("network",)

    def __init__(self, keep: float = 0.0) -> None:
        self.keep = non_negative("keep", keep)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        network, task, y = context.trained("input-gradient saliency")
        if not self.keep:
            return input_gradient(network.model, x, y, task)
        used = [p for p in network.model.parameters() if p.requires_grad]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = self.keep * task.mean_loss(network.model(x), y)
            grad, *grads = torch.autograd.grad(loss, [x, *used], allow_unused=True)
        found = [(p, g) for p, g in zip(used, grads, strict=True) if g is not None]
        parameters, kept = [p for p, _ in found], [g for _, g in found]
        context.extra.append(_Kept.apply(loss.detach(), kept, *parameters))  # type: ignore[no-untyped-call]
        return _size(grad)
