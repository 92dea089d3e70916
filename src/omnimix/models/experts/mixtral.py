"""Mixtures with routers as Mixtral models of the library transformers, to be saved, served and trained by its tools.

The routing is the same: softmax over all experts, the k best renormalised, is softmax over the k best. Dense models of
the kinds Llama and Mistral have the other parts in common with it. Source: Jiang et al., "Mixtral of experts", 2024,
arXiv:2401.04088.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

import torch
from torch import nn

from ..checkpoint.sparse import LAYOUTS, sparse_config
from .router import Routed

KINDS = tuple(kind for kind, layout in LAYOUTS.items() if layout.kind == "mixtral")


@torch.no_grad()
def to_mixtral(mixture: nn.Module) -> Any:
    """A `MixtralForCausalLM` with the weights of a mixture of Llama or Mistral models whose layers have routers.

    mixture: from `mixture(..., router=True)` or `BTX`. The result gives the same logits; `save_pretrained` writes it.
    Memory: that of both. ValueError for other kinds of models and for attention with biases, which Mixtral has not.
    """
    transformers: Any = importlib.import_module("transformers")
    dense = cast(Any, getattr(mixture, "model", mixture))
    config = getattr(dense, "config", None)
    kind = getattr(config, "model_type", None)
    if config is None or kind not in KINDS:
        raise ValueError(f"mixture must be of models of the kinds {', '.join(KINDS)}, got {kind!r}")
    blocks = dense.model.layers
    if not all(isinstance(block.mlp, Routed) for block in blocks):
        raise ValueError("mixture must have a router in every layer: make it with router=True")
    first = blocks[0].mlp
    said = sparse_config(config.to_dict(), len(first.experts), first.k)
    said = {key: value for key, value in said.items() if key not in ("model_type", "architectures")}
    with torch.random.fork_rng(devices=[]):  # its weights are replaced
        made = transformers.MixtralForCausalLM(transformers.MixtralConfig(**said)).to(first.router.weight.device)
    for value in made.parameters():
        value.data = value.data.to(first.router.weight.dtype)
    buffers = dict(dense.named_buffers())
    for name, value in made.named_buffers():  # the frequencies of positions, which keep their precision
        value.data = buffers[name].clone() if name in buffers else value.data
    rest = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    missing = made.load_state_dict(rest, strict=False)
    odd = [*missing.unexpected_keys, *(name for name in missing.missing_keys if ".mlp." not in name)]
    if odd:
        raise ValueError(f"these models do not fit into Mixtral: {', '.join(odd[:5])}")
    for block, layer in zip(blocks, made.model.layers, strict=True):
        experts = block.mlp.experts.values()
        if not hasattr(layer.mlp, "experts") or not hasattr(layer.mlp.experts, "gate_up_proj"):
            raise ValueError("the installed transformers is too old: version 5 or newer is needed")
        layer.mlp.gate.weight.copy_(block.mlp.router.weight)
        for i, expert in enumerate(experts):
            layer.mlp.experts.gate_up_proj[i].copy_(torch.cat([expert.gate_proj.weight, expert.up_proj.weight]))
            layer.mlp.experts.down_proj[i].copy_(expert.down_proj.weight)
    return made.train(dense.training)
