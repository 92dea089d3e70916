"""Dense checkpoints as one mixture of experts: where its tensors come from, and what `transformers` calls them.

    FFN of model i, layer l -> expert i of layer l;   router of layer l ~ N(0, 0.02^2);   all else merged

Dense models of a kind have their other parts in common with a sparse kind: Llama and Mistral with Mixtral, Qwen3 with
Qwen3-MoE, both with softmax over the K best experts. Sources: see `experts.btx` and `experts.mergeme`; Jiang et al.,
"Mixtral of experts", 2024, arXiv:2401.04088.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from ...core.checks import one_of
from .reader import Checkpoint
from .safetensors import in_order

PARTS = ("gate_proj", "up_proj", "down_proj")
FEED = re.compile(rf"(.*\blayers\.\d+)\.mlp\.({'|'.join(PARTS)})\.weight")
"""The feed-forward weights of the dense kinds: layer and part."""
GONE = ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path")


@dataclass(frozen=True)
class Layout:
    """A sparse kind of `transformers`: its names, and its configuration."""

    kind: str
    architecture: str
    feed: str
    """Where the experts and the router of a layer are."""
    parts: tuple[str, ...]
    """What `PARTS` are called."""
    defaults: Mapping[str, Any]
    """Of the dense kind, where its config.json may leave them out and the sparse kind's are others."""
    experts: str
    """Entry of the configuration for their number."""
    added: Mapping[str, Any]
    biases: bool = False
    """Whether attention may have them."""

    def expert(self, layer: str, i: int, part: str) -> str:
        return f"{layer}.{self.feed}.experts.{i}.{self.parts[PARTS.index(part)]}.weight"

    def router(self, layer: str) -> str:
        return f"{layer}.{self.feed}.gate.weight"


def _mixtral(**defaults: Any) -> Layout:
    names, common = ("w1", "w3", "w2"), {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6}
    return Layout(
        "mixtral", "MixtralForCausalLM", "block_sparse_moe", names, common | defaults, "num_local_experts", {}
    )


LAYOUTS = {
    "llama": _mixtral(num_key_value_heads=None, max_position_embeddings=2048, sliding_window=None),
    "mistral": _mixtral(num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096),
    "qwen3": Layout(
        "qwen3_moe", "Qwen3MoeForCausalLM", "mlp", PARTS, {"num_key_value_heads": 32, "head_dim": 128}, "num_experts",
        {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}, biases=True,
    ),
}  # fmt: skip
"""Dense kind (`model_type`) to the sparse one."""


def layout(config: Mapping[str, Any]) -> Layout:
    """The sparse kind for models of this configuration; ValueError where there is none."""
    kind = str(config.get("model_type"))
    one_of("the kind of the models (model_type of config.json)", kind, LAYOUTS)
    found = LAYOUTS[kind]
    if config.get("mlp_bias") or (config.get("attention_bias") and not found.biases):
        raise ValueError(f"{found.kind} has no biases, and these models do")
    if config.get("use_sliding_window"):
        raise ValueError("use_sliding_window: models whose layers see windows of different lengths are not mixed here")
    return found


def sparse_config(config: Mapping[str, Any], experts: int, k: int) -> dict[str, Any]:
    """The configuration of the mixture of dense models that have this one. k: experts of a token."""
    found = layout(config)
    said = {key: value for key, value in config.items() if key not in GONE}
    for key, value in found.defaults.items():
        said.setdefault(key, value)
    if "rope_parameters" in config:
        said.pop("rope_theta", None)
    if said["num_key_value_heads"] is None:
        said["num_key_value_heads"] = said.get("num_attention_heads", 32)
    if found.kind == "qwen3_moe":
        said["moe_intermediate_size"] = said.get("intermediate_size")
    return {
        "architectures": [found.architecture], "model_type": found.kind, **said, **found.added,
        found.experts: experts, "num_experts_per_tok": k,
    }  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """What the tensors of a mixture are made of."""

    taken: dict[str, tuple[int, str]]
    """Name to the model that it is copied from, and what it is called there."""
    drawn: dict[str, Tensor]
    """Name to the weights of a router."""
    shared: list[str]
    """What is merged under its own name."""


def sources(lead: Checkpoint, experts: int, seed: int) -> Sources:
    """Where each tensor of the mixture comes from. ValueError for tensors that have no place in it."""
    found = layout(lead.config)
    layers: dict[str, set[str]] = {}
    shared = []
    for name in in_order(lead.names()):
        fitting = FEED.fullmatch(name)
        if fitting:
            layers.setdefault(fitting[1], set()).add(fitting[2])
        elif ".mlp." in name or (name.endswith(".bias") and not found.biases):
            raise ValueError(f"{lead.label}: tensor {name!r} has no place in {found.kind}")
        else:
            shared.append(name)
    if not layers:
        raise ValueError(f"{lead.label}: has no feed-forward weights such as 'model.layers.0.mlp.up_proj.weight'")
    taken: dict[str, tuple[int, str]] = {}
    drawn: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for layer, parts in layers.items():
        if missing := set(PARTS) - parts:
            raise ValueError(f"{lead.label}: layer {layer!r} has no {min(missing)}")
        for part in PARTS:
            own = f"{layer}.mlp.{part}.weight"
            taken |= {found.expert(layer, i, part): (i, own) for i in range(experts)}
        first = f"{layer}.mlp.{PARTS[0]}.weight"
        weight = 0.02 * torch.randn(experts, lead.shape(first)[1], generator=generator)
        drawn[found.router(layer)] = weight.to(lead.dtype(first))
    return Sources(taken, drawn, shared)


def averaged(lead: Checkpoint, names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Which of the shared tensors are averaged: vectors, and those that fit. ValueError for a pattern without any."""
    fitting = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, found in fitting.items():
        if not found:
            raise ValueError(f"average: pattern {pattern!r} fits no weight outside the experts")
    return {name for name in names if len(lead.shape(name)) < 2}.union(*fitting.values())
