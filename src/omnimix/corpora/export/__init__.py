"""Mixtures as the files that trainers read, and those files as mixtures."""

from .base import Exported, Exporter, export
from .finetuning import Axolotl, LLaMAFactory
from .loaders import HuggingFace, LitData, Streaming, TorchTitan
from .megatron import Megatron, NeMo
from .recipes import DoReMi, RegMix, WebOrganizer

EXPORTERS = {
    kind.name: kind
    for kind in (
        Megatron, NeMo, HuggingFace, Streaming, LitData, TorchTitan, Axolotl, LLaMAFactory, DoReMi, RegMix, WebOrganizer
    )
}  # fmt: skip
"""By name, as `omnimix weigh export --to` takes them."""

__all__ = ["EXPORTERS", "Exported", "Exporter", "export"]
