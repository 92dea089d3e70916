"""Low-rank adapters: their changes as dense matrices, their exact concatenation, truncation and extraction.

dW_i = s_i B_i A_i, s = alpha / r (alpha / sqrt(r) if rank-stabilised). The mean of adapters is the mean of these
products, which is not the product of the mean factors: sum_i w_i dW_i = [w_1 s_1 B_1, ...] [A_1; A_2; ...], of rank
sum r_i, then truncated by singular values. Hu et al., "LoRA", ICLR 2022, arXiv:2106.09685; Kalajdzievski, "A rank
stabilization scaling factor for fine-tuning with LoRA", arXiv:2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.checks import at_least
from .base import Merger
from .linear import checked_weights


class LowRank(NamedTuple):
    """A change of a weight (out, in): up (out, r) times down (r, in); the scaling is in `up`."""

    up: Tensor
    down: Tensor

    def dense(self) -> Tensor:
        return self.up @ self.down


Adapter = Mapping[str, LowRank]
"""Weight name in the base model to its change."""


def adapter(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank]:
    """The changes in an adapter as PEFT writes it, by names of the base model, in float32 at least.

    tensors: of adapter_model.safetensors. config: adapter_config.json, with r, lora_alpha, use_rslora, fan_in_fan_out
    (weights are (in, out), as in GPT-2) and, for some layers, rank_pattern and alpha_pattern, whose keys are regular
    expressions for how names of layers end. ValueError for what is not plain LoRA on linear layers: DoRA, embeddings,
    convolutions, whole modules that were trained too; and for starts that took something out of the base (PiSSA).
    """
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"peft_type {kind!r} is no LoRA; merge this adapter into its base first")
    if config.get("use_dora"):
        raise ValueError("an adapter with use_dora also scales the columns; merge it into its base first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda")):
        raise ValueError(
            f"an adapter with init_lora_weights {start!r} belongs to a base from which its start was taken out; save "
            "it with path_initial_model_for_weight_conversion, or merge it into that base first"
        )
    found: dict[str, LowRank] = {}
    for name, value in tensors.items():
        if not name.endswith("lora_A.weight"):
            if name.endswith("lora_B.weight") and f"{name.removesuffix('B.weight')}A.weight" not in tensors:
                raise ValueError(f"tensor {name!r} has no lora_A beside it")
            if not name.endswith("lora_B.weight"):
                raise ValueError(
                    f"tensor {name!r} is no lora_A or lora_B of a linear layer; merge this adapter into its base"
                )
            continue
        layer = name.removesuffix(".lora_A.weight")
        other = tensors.get(f"{layer}.lora_B.weight")
        if other is None or other.dim() != 2 or value.dim() != 2 or other.shape[1] != len(value):
            raise ValueError(f"layer {layer!r} needs a lora_B of shape (out, {len(value)}), got "
                             f"{None if other is None else tuple(other.shape)}")  # fmt: skip
        rank = len(value)
        short = layer.removeprefix("base_model.model.")
        alpha = _own(config.get("alpha_pattern"), short, config.get("lora_alpha", rank))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        wide = torch.promote_types(value.dtype, torch.float32)
        up, down = other.to(wide) * scale, value.to(wide)
        found[f"{short}.weight"] = LowRank(down.T, up.T) if config.get("fan_in_fan_out") else LowRank(up, down)
    return found


def _own(pattern: Mapping[str, float] | None, layer: str, default: float) -> float:
    try:
        return next((v for key, v in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", layer)), default)
    except re.error as error:
        raise ValueError(f"alpha_pattern holds no regular expression: {error}") from None


def concatenate(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> dict[str, LowRank]:
    """sum_i weights_i dW_i exactly, of the ranks' sum. weights: one number an adapter, default the mean."""
    if not adapters:
        raise ValueError("adapters must hold at least one")
    shares = [1 / len(adapters)] * len(adapters) if weights is None else checked_weights(weights, normalize=False)
    if len(shares) != len(adapters):
        raise ValueError(f"weights must be one number an adapter: got {len(shares)} for {len(adapters)} adapters")
    joined = {}
    for name in dict.fromkeys(name for one in adapters for name in one):
        parts = [(one[name], share) for one, share in zip(adapters, shares, strict=True) if name in one]
        joined[name] = LowRank(
            torch.cat([part.up * w for part, w in parts], 1), torch.cat([part.down for part, _ in parts])
        )
    return joined


def truncate(change: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest change of at most this rank, and its squared error: the dropped squared singular values."""
    at_least("rank", rank, 1)
    (q, r), (p, s) = torch.linalg.qr(change.up.double()), torch.linalg.qr(change.down.double().T)
    u, values, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = values[:rank].sqrt()
    kept = LowRank((q @ (u[:, :rank] * root)).to(change.up), ((v[:rank] * root[:, None]) @ p.T).to(change.down))
    return kept, float((values[rank:] ** 2).sum())


def extract(model: Tensor, base: Tensor, rank: int) -> tuple[LowRank, float]:
    """The change of a weight (out, in) from its base at this rank, and the squared error."""
    wide = torch.promote_types(torch.promote_types(model.dtype, base.dtype), torch.float32)
    change = model.to(wide) - base.to(wide)
    return truncate(LowRank(change, torch.eye(change.shape[1], dtype=change.dtype, device=change.device)), rank)


def merge_adapters(base: Mapping[str, Tensor], adapters: Sequence[Adapter], merger: Merger) -> dict[str, Tensor]:
    """The base with several adapters, merged as whole models by an operator that takes a base (TIES, DARE, ...).

    Weights that an adapter does not change count as unchanged; those that none changes stay out of what TIES trims
    over. ValueError for names that the base does not have.
    """
    for i, one in enumerate(adapters):
        if unknown := sorted(set(one) - set(base)):
            raise ValueError(f"adapter {i} changes {unknown[0]!r}, which the base does not have")
    touched = {name: base[name] for name in dict.fromkeys(name for one in adapters for name in one)}
    models = [{name: _changed(value, one.get(name)) for name, value in touched.items()} for one in adapters]
    start = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in touched.items()}
    merged = merger(models, start)
    return {name: merged[name].to(value.dtype) if name in merged else value.clone() for name, value in base.items()}


def _changed(value: Tensor, change: LowRank | None) -> Tensor:
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return wide if change is None else wide + change.dense().to(wide)
