"""Where a network responds: class activation maps, and the mean activation of a frozen teacher.

    class activation: s = sum_d (y W)_d relu(h_d) - min;   mean activation: s = mean_d relu(h_d)

h: the last feature map (D, *grid), W: the weights of the linear head that follows its global average.
Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative Localization", CVPR 2016,
arXiv 1512.04150. Cost: a forward pass. The network is left as it was: the pass is in evaluation mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import at_least
from ...core.operation import Context, Saliency
from ...core.split import Split, evaluating, observe
from ...core.task import Task, infer_task


def feature_map(model: nn.Module, x: Tensor, tap: str | None = None) -> tuple[str, Tensor]:
    """(tap, its output (R, D, *grid) on x), by a pass in evaluation mode without gradient.

    tap: the name of a module; None takes the one that runs last among those that give maps of more than one cell, with
    as many channels as the last linear layer takes, where there is one. ValueError if there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    channels = linear[-1].in_features if linear and not tap else None
    with evaluating(model), torch.no_grad(), observe(model, *([tap] if tap else [])) as seen:
        model(x)
    for name, h in reversed(seen.items()):
        if not isinstance(h, Tensor):
            continue
        if h.ndim == 3 < x.ndim:  # tokens: what came before is no map of the head's
            break
        if h.ndim == x.ndim and h[0, 0].numel() > 1 and channels in (None, h.shape[1]):
            return name, h
    raise ValueError(
        f"{type(model).__name__} has no feature map (R, {channels or 'D'}, *grid) "
        + (f"at {tap!r}" if tap else "before its head")
        + f" for inputs {tuple(x.shape)}: activation needs a convolutional network whose linear head takes the mean "
        "over places; name a module with tap=..., or use input gradients"
    )


def class_activation(
    network: nn.Module | Split, x: Tensor, y: Tensor, task: Task | None = None, tap: str | None = None
) -> Tensor:
    """(R, 1, *grid) how much each place speaks for the label y; 0 where least. See `ClassActivation`."""
    split = network if isinstance(network, Split) else Split(network)
    layers = [m for m in split.model.get_submodule(split.head_name).modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ValueError(f"class activation needs a linear head; {split.head_name!r} holds none")
    weight = layers[-1].weight.detach()
    tap, h = feature_map(split.model, x, tap)
    if h.shape[1] != weight.shape[1]:
        raise ValueError(
            f"class activation needs as many channels at {tap!r} as the head {split.head_name!r} takes, "
            f"{weight.shape[1]}, got {h.shape[1]}"
        )
    rows = (task or infer_task(y, len(weight))).soft_target(y).to(weight.dtype) @ weight
    maps = torch.einsum("rd,rd...->r...", rows.float(), F.relu(h).float()).unsqueeze(1)
    return maps - maps.flatten(1).amin(dim=1).view(-1, *[1] * (maps.ndim - 1))


class ClassActivation(Saliency):
    """Class activation maps of the samples' labels (soft and multi-label: of their weighted sum). It needs the network.

    tap: the module that gives the last feature map; None finds it, see `feature_map`.
    """

    needs = ("network",)

    def __init__(self, tap: str | None = None) -> None:
        self.tap = tap

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        network, task, y = context.trained("class activation")
        return class_activation(network, x, y, task, self.tap)


class MeanActivation(Saliency):
    """The mean over channels of the last feature map of `teacher`, or of the network in training (None).

    teacher: a network with its weights, frozen or a moving average that the caller updates; it is used in evaluation
    mode, on the inputs' device. tap: see `ClassActivation`. side: inputs are resized to side x side for it.
    """

    def __init__(self, teacher: nn.Module | None = None, tap: str | None = None, side: int | None = None) -> None:
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise ValueError(f"teacher must be a torch.nn.Module or None, got {teacher!r}")
        self.teacher, self.tap = teacher, tap
        self.side = None if side is None else at_least("side", side, 1)
        self.needs = ("network",) if teacher is None else ()

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        teacher = self.teacher
        model = context.trained("mean activation")[0].model if teacher is None else teacher.to(x.device)
        if self.side is not None:
            x = F.interpolate(x, [self.side] * (x.ndim - 2), mode=("linear", "bilinear", "trilinear")[x.ndim - 3])
        _, h = feature_map(model, x, self.tap)
        return F.relu(h).float().mean(dim=1, keepdim=True)
