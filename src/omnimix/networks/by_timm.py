"""Networks of the timm package by name, with weights only from a local safetensors file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from ..core.split import Split


def timm_network(
    name: str, input_shape: tuple[int, ...], outputs: int, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """The timm network `name` for images input_shape = (C, H, W); options go to `timm.create_model`.

    weights: a safetensors file of the same network, for any number of outputs: a tensor of another shape (the
    classifier) keeps its initial values. Nothing is downloaded. ImportError without timm; ValueError for unknown names.
    """
    if len(input_shape) != 3:
        raise ValueError(f"timm networks need images (C, H, W), got input_shape {input_shape}")
    try:
        import timm
    except ImportError as error:
        raise ImportError('networks named timm:NAME need the package timm: pip install "omnimix[vision]"') from error
    if "pretrained" in options:
        raise ValueError("pretrained is not taken, since nothing is downloaded; pass weights=FILE.safetensors")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"timm has no network {name!r}{hint}")
    try:
        model: Any = timm.create_model(name, pretrained=False, num_classes=outputs, in_chans=input_shape[0], **options)
    except TypeError as error:
        raise ValueError(f"timm:{name} does not take these options ({', '.join(options)}): {error}") from error
    if weights is not None:
        _load(model, Path(weights))
    network: nn.Module = model
    model.taps = Split(network).taps
    return network


def _load(model: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"weights must be a local safetensors file, got {str(path)!r}")
    given, own = load_file(path), model.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    if len(fitting) < len(own) / 2:
        raise ValueError(f"{path} fits only {len(fitting)} of {len(own)} tensors; is it of another network?")
    model.load_state_dict(fitting, strict=False)
