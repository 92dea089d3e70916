"""Fully sharded training: every process holds a part of the weights, gradients and optimiser states (PyTorch's FSDP2).

Lightning Fabric's own FSDP strategy is for GPUs only and does not start processes from a running one; its strategy for
`fully_shard` does both with the processes that are started here.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharded(ModelParallelStrategy):
    """FSDP2 over `devices` processes: those of torchrun, or ones that are spawned."""

    def __init__(self, devices: int) -> None:
        super().__init__(_shard_blocks, data_parallel_size=devices, tensor_parallel_size=1)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = _MultiProcessingLauncher(self)


def _shard_blocks(model: nn.Module, mesh: Any) -> nn.Module:
    """The members of lists and sequences are gathered one at a time when they compute; what is left, with the model."""
    for module in reversed(list(model.modules())):  # inner ones first
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for block in module:
                if not isinstance(block, nn.ModuleList) and any(p.requires_grad for p in block.parameters()):
                    fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def whole(state: Any) -> Any:
    """The same nest of dicts and lists with whole tensors; all processes must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return type(state)(map(whole, state)) if isinstance(state, (list, tuple)) else state


def scatter(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, sharded as those of the same names in `like`; all processes must call it."""
    return {name: _as(value, like[name]) for name, value in state.items()}


def scatter_states(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """The same, in place, for the state of an optimiser."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, found in state["state"].items():
        found.update({name: _as(value, parameters[place]) for name, value in found.items()})


def _as(value: Any, other: Tensor) -> Any:
    if not isinstance(value, Tensor) or not isinstance(other, DTensor) or value.shape != other.shape:
        return value  # such as step counters, which are the same everywhere
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
