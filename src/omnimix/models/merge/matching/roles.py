"""What the tensors of well-known transformers hold, by their names."""

from __future__ import annotations

import re

ROLES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Llama, Mistral, Qwen
    (r"self_attn\.[qkv]_proj\.weight", ("heads", "stream")),
    (r"self_attn\.[qkv]_proj\.bias", ("heads",)),
    (r"self_attn\.o_proj\.weight", ("stream", "heads")),
    (r"mlp\.(gate|up)_proj\.weight", ("mlp", "stream")),
    (r"mlp\.down_proj\.weight", ("stream", "mlp")),
    (r"(input|post_attention)_layernorm\.weight|model\.norm\.weight", ("stream",)),
    (r"self_attn\.[qk]_norm\.weight", (None,)),
    (r"embed_tokens\.weight|lm_head\.weight", (None, "stream")),
    # BERT, RoBERTa
    (r"attention\.self\.(query|key|value)\.weight", ("heads", "stream")),
    (r"attention\.self\.(query|key|value)\.bias", ("heads",)),
    (r"attention\.output\.dense\.weight", ("stream", "heads")),
    (r"intermediate\.dense\.weight", ("mlp", "stream")),
    (r"intermediate\.dense\.bias", ("mlp",)),
    (r"layer\.\d+\.output\.dense\.weight", ("stream", "mlp")),
    (r"output\.dense\.bias|LayerNorm\.(weight|bias)", ("stream",)),
    (r"embeddings\.\w+_embeddings\.weight|pooler\.dense\.weight", (None, "stream")),
    (r"pooler\.dense\.bias", (None,)),
    (r"classifier\.weight", (None, None)),
    (r"classifier\.bias", (None,)),
    # GPT-2, whose matrices are (in, out) and whose queries, keys and values lie in one
    (r"attn\.c_attn\.weight", ("stream", "heads*3")),
    (r"attn\.c_attn\.bias", ("heads*3",)),
    (r"attn\.c_proj\.weight", ("heads", "stream")),
    (r"mlp\.c_fc\.weight", ("stream", "mlp")),
    (r"mlp\.c_fc\.bias", ("mlp",)),
    (r"mlp\.c_proj\.weight", ("mlp", "stream")),
    (r"c_proj\.bias|ln_(1|2|f)\.(weight|bias)", ("stream",)),
    (r"wte\.weight|wpe\.weight", (None, "stream")),
)  # fmt: skip
"""The end of a name, and what each dim of the tensor holds; "*3": three times, one after the other."""


def role_of(name: str, dims: int) -> list[tuple[str | None, str, int]]:
    """For each dim of a tensor its role (None: it stays as it is), its layer, and how many parts it has."""
    layer = re.search(r"^(.*?\.\d+)\.", name)
    for pattern, roles in ROLES:
        if re.search(rf"(^|\.)({pattern})$", name):
            if len(roles) != dims:
                raise ValueError(f"tensor {name!r} has {dims} dims, {len(roles)} were expected")
            split = [(role or "").partition("*") for role in roles]
            return [(role or None, layer[1] if layer else "", int(parts or 1)) for role, _, parts in split]
    raise ValueError(f"tensor {name!r} is not known here; write its axes with PermutationSpec.of")
