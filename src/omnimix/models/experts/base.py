"""What experts share: find the feed-forward networks of a model, swap modules in place and back, freeze, route rows.

    y_r = sum over the chosen experts j of row r:  g_rj FFN_j(x_r)

`feed_forwards` finds the feed-forward network of every block: one module ("mlp") or, where a block calls its layers one
by one, the first and the last part of it ("up", "down") with an element-wise activation between. `Slot` takes the place
of such a part and holds that part of every expert; slots share a `Route`, which says which rows go to which expert.
Rows are sequences or tokens; those of one expert are computed together. Names of weights:
`<path of the part>.experts.<expert>.<name in the part>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ...networks.language_model import LanguageModel

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "smollm3")
PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*GATED, "phi", "gpt_neox", "stablelm"), ("layers.*.mlp",)),
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "falcon", "bloom"), ("h.*.mlp",)),
    **dict.fromkeys(("bert", "roberta", "electra"), ("layer.*.intermediate", "layer.*.output.dense")),
    "opt": ("layers.*.fc1", "layers.*.fc2"),
    "distilbert": ("layer.*.ffn",),
}
"""Where `transformers` models keep their feed-forward networks, by `config.model_type`."""


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward network of one block: paths of its parts in the model, first to last."""

    parts: tuple[str, ...]

    def modules(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The parts themselves."""
        return tuple(model.get_submodule(part) for part in self.parts)


def feed_forwards(model: nn.Module, pattern: str | Sequence[str] | None = None) -> list[FeedForward]:
    """The feed-forward network of every block, in the order of the model.

    pattern: how the paths of the modules end, by components, with wildcards: "blocks.*.mlp". Several patterns are the
    parts of one network in the order in which they are called, ("blocks.*.up", "blocks.*.down"); what lies between
    them has to work element by element or along the last axis. None: known for `LanguageModel` and, by
    `config.model_type`, for `transformers` models (`PATTERNS`). ValueError if nothing fits or parts are missing.
    """
    patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern) if pattern is not None else known(model)
    if not patterns:
        raise ValueError("pattern must hold at least one pattern of module paths, got none")
    paths = [path for path, _ in model.named_modules() if path]
    found = [dict(key for path in paths if (key := fit(path, one)) is not None) for one in patterns]
    for one, places in zip(patterns, found, strict=True):
        if not places:
            raise ValueError(f"pattern {one!r} fits no module; there are {', '.join(paths[:20])}")
        if places.keys() != found[0].keys():
            odd = places.keys() ^ found[0].keys()
            alone = [path for key, path in (*places.items(), *found[0].items()) if key in odd]
            raise ValueError(f"patterns {patterns[0]!r} and {one!r} fit different blocks; without a partner: {alone}")
    return [FeedForward(tuple(places[key] for places in found)) for key in found[0]]


def known(model: nn.Module) -> tuple[str, ...]:
    """The patterns of a model of a known kind; ValueError for another."""
    if isinstance(model, LanguageModel):
        return ("blocks.*.up", "blocks.*.down")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in PATTERNS:
        raise ValueError(
            f"pattern must be given for {type(model).__name__} (model type {kind!r}): how the paths of its "
            f'feed-forward modules end, such as "layers.*.mlp"; known are {", ".join(PATTERNS)}'
        )
    return PATTERNS[kind]


def fit(path: str, pattern: str) -> tuple[tuple[str, ...], str] | None:
    """(what comes before the pattern and what its wildcards stand for, path), or None if the path ends otherwise."""
    ends, parts = pattern.split("."), path.split(".")
    tail = parts[-len(ends) :]
    if len(parts) < len(ends) or not all(map(fnmatchcase, tail, ends)):
        return None
    stars = [part for part, end in zip(tail, ends, strict=True) if any(sign in end for sign in "*?[")]
    return (*parts[: -len(ends)], *stars), path


def replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put `modules` (path -> module) into the model, in place; returns what stood there, which undoes it."""
    before = {path: model.get_submodule(path) for path in modules}
    for path, module in modules.items():
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, module)
    return before


def train_only(model: nn.Module, parts: Iterable[nn.Module]) -> dict[str, bool]:
    """Freeze all parameters but those of `parts`; returns name -> whether it was trained before, for `thaw`."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return before


def thaw(model: nn.Module, before: Mapping[str, bool]) -> None:
    """Undo `train_only`; parameters that have come since are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before.get(name, True))


@dataclass(frozen=True)
class Routing:
    """Which expert sees which rows.

    lead: shape of the rows, the leading axes of what slots are given: (B,) sequences or (B, T) tokens. only: the one
    expert of all rows. Otherwise `order` (R K,) lists the R rows' K choices by expert, `back` undoes that order,
    `counts` says how many belong to each expert, and `weight` (R, K) what each contributes (None: 1).
    """

    lead: tuple[int, ...] = ()
    only: int | None = None
    counts: tuple[int, ...] = ()
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    back: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    weight: Tensor | None = None
    each: int = 1

    @classmethod
    def of(cls, expert: Tensor, experts: int, weight: Tensor | None = None) -> Routing:
        """expert (*lead, K): the rows' experts in 0..experts-1; weight (*lead, K): of each in the sum. One wait for
        the device. ValueError for experts out of range."""
        flat = expert.flatten()
        below, *counts, above = torch.bincount((flat + 1).clamp(0, experts + 1), minlength=experts + 2).tolist()
        if below or above:
            raise ValueError(f"expert must lie in 0..{experts - 1}, {below + above} of {len(flat)} do not")
        if weight is None and expert.shape[-1] == 1 and max(counts) == len(flat):
            return cls(only=counts.index(len(flat)))
        order = flat.argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        each = expert.shape[-1]
        if weight is not None:
            weight = weight.reshape(-1, each)
        return cls(tuple(expert.shape[:-1]), None, tuple(counts), order, back, weight, each)

    def gather(self, x: Tensor) -> Tensor:
        """x (*lead, ...) to (R K, ...): the rows in the order of their experts."""
        if tuple(x.shape[: len(self.lead)]) != self.lead:
            raise ValueError(
                f"routed rows have shape {self.lead}, a feed-forward network was given {tuple(x.shape)}; "
                "give one expert for the whole batch if this model joins the axes"
            )
        return x.reshape(-1, *x.shape[len(self.lead) :])[self.order // self.each]

    def share(self, value: Any) -> Sequence[Any]:
        """What each expert sees of a further argument: its rows of a tensor that has all rows, else the whole."""
        if isinstance(value, Tensor) and tuple(value.shape[: len(self.lead)]) == self.lead:
            return torch.split(self.gather(value), list(self.counts))
        return [value] * len(self.counts)

    def combine(self, out: Tensor) -> Tensor:
        """The experts' outputs (R K, ...), in their order, to the weighted sums (*lead, ...)."""
        rows = out[self.back].view(len(self.back) // self.each, self.each, *out.shape[1:])
        if self.weight is not None:
            rows = rows * self.weight.to(rows.dtype).view(*self.weight.shape, *[1] * (rows.ndim - 2))
        summed = rows.sum(1) if self.each > 1 else rows.squeeze(1)
        return summed.view(*self.lead, *summed.shape[1:])


class Route:
    """What the slots of one model share: the routing of the current pass, kept until the next for recomputation."""

    def __init__(self) -> None:
        self.routing: Routing | None = None

    def __getstate__(self) -> dict[str, None]:
        return {"routing": None}


class Slot(nn.Module):
    """Stands where a part of a feed-forward network stood and sends each row through that part of its experts.

    experts: name -> the part; their order is that of the ids in the routing. first, last: whether this is the first and
    the last part of its network; a whole network is both. RuntimeError if called before `route` has a routing.
    """

    def __init__(
        self, experts: Mapping[str, nn.Module], route: Route, *, first: bool = True, last: bool = True
    ) -> None:
        super().__init__()
        for name in experts:
            check_name(name)
        self.experts = nn.ModuleDict(dict(experts))
        self.training = any(part.training for part in experts.values())
        self.route, self.first, self.last = route, first, last

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        routing = self.route.routing
        if routing is None:
            raise RuntimeError("the model was called before its experts were chosen; call the wrapper that made it")
        experts = list(self.experts.values())
        if routing.only is not None:
            out: Tensor = experts[routing.only](x, *args, **kwargs)
            return out
        rows = torch.split(routing.gather(x) if self.first else x, list(routing.counts))
        given = [routing.share(value) for value in args]
        named = {key: routing.share(value) for key, value in kwargs.items()}
        busy = [i for i, own in enumerate(rows) if len(own)] or [0]  # an empty batch goes to the first
        out = torch.cat([
            experts[i](rows[i], *(one[i] for one in given), **{key: one[i] for key, one in named.items()}) for i in busy
        ])  # fmt: skip
        return routing.combine(out) if self.last else out


def slots(experts: Mapping[str, Sequence[nn.Module]], network: FeedForward, route: Route) -> dict[str, Slot]:
    """path -> slot for the parts of one feed-forward network. experts: name -> the parts of that expert's."""
    last = len(network.parts) - 1
    return {
        path: Slot({name: parts[i] for name, parts in experts.items()}, route, first=i == 0, last=i == last)
        for i, path in enumerate(network.parts)
    }


def logits_of(output: Any) -> Tensor:
    """The logits that a model gave: its output, or that output's `logits`."""
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def check_name(name: str) -> str:
    """`name` if an expert can be called so, else ValueError."""
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"names of experts must be strings without dots that are no attribute of a module, got {name!r}"
        )
    return name
