"""Mixout: in every training pass, replace a random share of the weights by the values they started from.

    W~ = u + m (w - u) / (1 - p),   m ~ Bernoulli(1 - p),   so E[W~] = w;   evaluation uses w

w: the weight, u: its anchor (pretrained value). The mean over masks pulls w to u: for a loss with Hessian H it adds
p / (2 (1 - p)) sum_j H_jj (w_j - u_j)^2 (exact for a quadratic loss and independent masks). u = 0 is dropout of the
layer's inputs, with one mask for the batch. Source: Lee, Cho, Kang, "Mixout: Effective Regularization to Finetune
Large-scale Pretrained Language Models", ICLR 2020, arXiv:1909.11299. Cost: 1, and a pass over the
weights; memory of the anchors. Gradients are those of W~; the authors' code leaves the factor 1 / (1 - p) out of them,
which changes what clipping and SGD do: `reference=True`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...core.checks import in_unit, one_of
from ...core.random import integers, resolve, uniform

Per: TypeAlias = Literal["input", "element"]
KINDS = ("input", "element")


def mixout(weight: Tensor, anchor: Tensor, mask: Tensor, p: float, *, reference: bool = False) -> Tensor:
    """W~ of the module's docstring, in the type of `weight`; computed at least in 32 bits.

    mask: 1 where the weight is kept, 0 where the anchor is taken; broadcasts to the weight's shape (`mixout_mask`).
    p: probability of 0 in the mask, in [0, 1]; at p = 1 the result is the anchor and the gradient 0. reference: the
    gradient is multiplied by the mask alone. ValueError for another p or for shapes that differ.
    """
    in_unit("p", p)
    if weight.shape != anchor.shape:
        raise ValueError(f"anchor must have the weight's shape {tuple(weight.shape)}, got {tuple(anchor.shape)}")
    if p == 0:
        return weight
    work = torch.promote_types(weight.dtype, torch.float32)
    u, w, m = anchor.to(work), weight.to(work), mask.to(work)
    kept = m / (1 - p) if p < 1 else torch.zeros_like(m)
    mixed = u + kept * (w - u)
    if reference:
        mixed = mixed.detach() + m * (w - w.detach())
    return mixed.to(weight.dtype)


def mixout_mask(
    shape: Sequence[int], p: float, *, per: Per = "input", axis: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """A mask of 0s and 1s, 1 with probability 1 - p, on the generator's device.

    per: "input" draws one number for each input unit, which is an index of `axis` of the weight: 1 in linear and
    convolution layers (the paper's mixout); "element" one for each weight (its mixconnect).
    """
    in_unit("p", p)
    one_of("per", per, KINDS)
    size = list(shape) if per == "element" else [n if i == axis else 1 for i, n in enumerate(shape)]
    return (uniform(*size, generator=resolve(generator)) >= p).float()


def mixout_penalty(weight: Tensor, anchor: Tensor, p: float, curvature: Tensor | float = 1.0) -> Tensor:
    """p / (2 (1 - p)) sum_j H_jj (w_j - u_j)^2: what mixout adds to a quadratic loss on average.

    curvature: H_jj, a number or in the weight's shape; a lower bound m of it gives the paper's bound for m-strongly
    convex losses. p in [0, 1).
    """
    if in_unit("p", p) == 1:
        raise ValueError("p must be a number in [0, 1), got 1: the penalty is infinite")
    return p / (2 * (1 - p)) * (curvature * (weight - anchor).square()).sum()


class Mixout(nn.Module):
    """`module`, some of whose weights are mixed in training. Its parameters stay the same objects, so that an
    optimiser made before or after goes on with them; their names gain the suffix `.original`.

    p: share taken from the anchor, in [0, 1]; the paper tries 0.7 to 0.9, where large learning rates break training.
    weights: names or patterns ("encoder.*.weight") of parameters with at least two axes; default: the weight of every
    `nn.Linear`, tied ones under all their names. Biases have one axis and are never mixed. anchor: "start", the values
    that the weights have now; "zero", which makes it dropout; or a mapping with a tensor for every name, such as a
    base checkpoint. per: see `mixout_mask`. keep_dropout: leave the module's dropout on; by default its rates are 0
    while wrapped, as in the paper, which puts mixout in its place: those of dropout layers, and numbers that modules
    keep by a name with "dropout", as attention does. save_anchor: the anchors are part of the state dict. generator: of
    the masks; its state is part of the state dict.

    One mask is drawn for each weight and call, tied weights share it, and passes recomputed by activation checkpointing
    reuse that of the last call: then go backward before the next call. Parts of the module that are called by
    themselves use the last mask. `parameters()` has another order while wrapped: an optimiser's state fits one that was
    made alike. ValueError for patterns that fit nothing and anchors that do not fit.
    """

    def __init__(
        self,
        module: nn.Module,
        p: float = 0.9,
        *,
        weights: str | Sequence[str] | None = None,
        anchor: Literal["start", "zero"] | Mapping[str, Tensor] = "start",
        per: Per = "input",
        keep_dropout: bool = False,
        save_anchor: bool = True,
        reference: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.p, self.keep_dropout = in_unit("p", p), keep_dropout
        one_of("per", per, KINDS)
        self.per: Per = per
        self.generator = generator or torch.Generator().manual_seed(int(integers(2**62, 1, generator=resolve(None))))
        names = chosen(module, weights)
        self.order = {
            path: list(module.get_submodule(path)._parameters) for path in {n.rpartition(".")[0] for n in names}
        }
        tied: dict[int, list[str]] = {}
        for name in names:
            tied.setdefault(id(module.get_parameter(name)), []).append(name)
        shared: dict[int, Anchored] = {}
        for key, same in tied.items():
            name = next((n for n in same if isinstance(anchor, str) or n in anchor), same[0])
            start = anchor_for(name, module.get_parameter(name), anchor)
            axis = max(input_axis(owner_of(module, n)[0]) for n in same)  # a table that is a layer too: as the layer
            shared[key] = Anchored(start, p, axis, save_anchor, reference)
        for name in names:
            owner, leaf = owner_of(module, name)
            parametrize.register_parametrization(owner, leaf, shared[id(getattr(owner, leaf))])
        self.module, self.names, self.training = module, names, module.training
        found = {} if keep_dropout else {path: dropouts(part) for path, part in module.named_modules()}
        self.rates = {path: rates for path, rates in found.items() if rates}
        for path, rates in self.rates.items():
            vars(module.get_submodule(path)).update(dict.fromkeys(rates, 0.0))

    def redraw(self) -> None:
        """Draw the masks of the next pass; calling the module does it."""
        for part in self.module.modules():
            if isinstance(part, Anchored):
                size = part.anchor.shape
                part.mask = mixout_mask(size, self.p, per=self.per, axis=part.axis, generator=self.generator)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        recomputed = torch._C._current_graph_task_id() != -1
        if self.training and not recomputed:
            self.redraw()
        return self.module(*args, **kwargs)

    def remove(self) -> nn.Module:
        """The module itself, with its trained weights under their old names and dropout as before; undoes wrapping."""
        for name in self.names:
            owner, leaf = owner_of(self.module, name)
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)
        for path, order in self.order.items():
            held = self.module.get_submodule(path)._parameters
            for name in order:
                held[name] = held.pop(name)
        for path, rates in self.rates.items():
            vars(self.module.get_submodule(path)).update(rates)
        self.rates = {}
        return self.module

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class Anchored(nn.Module):
    """The parametrisation of one weight: the weight itself in evaluation and before the first mask."""

    anchor: Tensor

    def __init__(self, anchor: Tensor, p: float, axis: int, save: bool, reference: bool) -> None:
        super().__init__()
        self.p, self.axis, self.reference = p, axis, reference
        self.register_buffer("anchor", anchor, persistent=save)
        self.mask: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training or self.mask is None:
            return weight
        if self.mask.device != weight.device:
            self.mask = self.mask.to(weight.device)
        return mixout(weight, self.anchor, self.mask, self.p, reference=self.reference)


def dropouts(part: nn.Module) -> dict[str, float]:
    """Attributes of a module that are rates of dropout, with their values."""
    layer = isinstance(part, nn.modules.dropout._DropoutNd)
    return {k: v for k, v in vars(part).items() if isinstance(v, float) and ((layer and k == "p") or "dropout" in k)}


def chosen(module: nn.Module, patterns: str | Sequence[str] | None) -> list[str]:
    """Names of the parameters that fit, tied ones under all of their names."""
    known = dict(module.named_parameters(remove_duplicate=False))
    hits: dict[str, None] = {}
    if patterns is None:
        linear = {name for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        ends = {name: name.rpartition(".") for name in known}
        hits = {name: None for name, (path, _, leaf) in ends.items() if path in linear and leaf == "weight"}
        if not hits:
            raise ValueError("weights must be given for a module without nn.Linear: names or patterns of parameters")
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"weights: no parameter is called {pattern!r}; there are {', '.join(list(known)[:20])}")
        for name in fitting:
            if known[name].ndim < 2:
                raise ValueError(
                    f"weights: {pattern!r} fits {name!r} of shape {tuple(known[name].shape)}; two axes needed"
                )
            hits[name] = None
    tied = {id(known[name]) for name in hits}
    return [name for name, value in known.items() if id(value) in tied]


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def input_axis(owner: nn.Module) -> int:
    """The axis of the input units in the owner's weight; transposed layers, those of GPT-2 and tables of embeddings
    (whose inputs are the rows) have it first."""
    first = (nn.modules.conv._ConvTransposeNd, nn.Embedding, nn.EmbeddingBag)
    transposed = isinstance(owner, first) or type(owner).__name__ == "Conv1D"
    return 0 if transposed else 1


def anchor_for(name: str, weight: Tensor, anchor: str | Mapping[str, Tensor]) -> Tensor:
    if isinstance(anchor, str):
        one_of("anchor", anchor, ("start", "zero"))
        return weight.detach().clone() if anchor == "start" else torch.zeros_like(weight)
    if name not in anchor:
        raise ValueError(f"anchor has no tensor for {name!r}; leave that weight out of `weights` or add it")
    given = anchor[name].detach()
    if given.shape != weight.shape:
        raise ValueError(f"anchor[{name!r}] has shape {tuple(given.shape)}, the weight has {tuple(weight.shape)}")
    return given.clone().to(weight)
