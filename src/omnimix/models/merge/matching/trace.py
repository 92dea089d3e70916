"""The permutation specification of a network, from its graph: every operation says which axes it links.

The network is traced by torch.fx and run once on an example. Units of layers that touch the input or the output of the
network, or an operation that is not understood, stay where they are; those operations are in `spec.fixed`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..patches import evaluating
from .permutation import Axis, Group, PermutationSpec

Segment = tuple[int, Tensor]
"""A variable (units that one layer makes) and the entries (n, m) of an axis that each unit has."""
Dims = list[tuple[Segment, ...]]
"""For each dim of a tensor what lies along it; () where nothing moves."""

SAME = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.Mish,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
         nn.AdaptiveMaxPool2d, nn.Upsample)  # fmt: skip
SAME_CALLS = {
    F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.elu, F.softplus, F.hardswish, F.dropout, F.softmax, F.log_softmax,
    torch.relu, torch.tanh, torch.sigmoid, torch.exp, operator.neg,
    "relu", "tanh", "sigmoid", "contiguous", "clone", "detach", "float", "softmax", "exp",
}  # fmt: skip
POOL_CALLS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate}
PAIR_CALLS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    torch.add, torch.sub, torch.mul, torch.div, "add", "sub", "mul", "div", "add_", "mul_", torch.where,
}  # fmt: skip


def permutation_spec(model: nn.Module, *example: Tensor) -> PermutationSpec:
    """The groups of a network that torch.fx can trace. example: what `model(*example)` takes.

    The modes of the network and its buffers stay as they are. ValueError if it cannot be traced.
    """
    with evaluating(model), torch.no_grad():
        try:
            graph = fx.symbolic_trace(model)
        except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be traced by torch.fx ({error}); write its axes with PermutationSpec.of"
            ) from None
        links = _Links(graph, model)
        links.run(*example)
    return links.spec()


class _Links(fx.Interpreter):
    """Runs the graph on the example and notes what is along each axis."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(graph)
        self.model = model
        self.parent: list[int] = []
        self.size: list[int] = []
        self.still: set[int] = set()
        self.rigid: set[int] = set()
        self.along: dict[int, Any] = {}
        """id of an activation -> its Dims, which are kept alive with it in `alive`."""
        self.alive: list[Any] = []
        self.first: dict[int, str] = {}
        """id of a parameter or buffer -> its first name: tied weights are one."""
        self.names: dict[int, list[str]] = {}
        for name, value in [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]:
            self.first.setdefault(id(value), name)
            self.names.setdefault(id(value), []).append(name)
        self.tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.axes: dict[tuple[str, int], tuple[tuple[Segment, ...], bool]] = {}
        self.taps: list[tuple[str, int, tuple[Segment, ...]]] = []
        self.unknown: list[str] = []

    # variables

    def new(self, size: int) -> tuple[Segment, ...]:
        self.parent.append(len(self.parent))
        self.size.append(size)
        return ((len(self.parent) - 1, torch.arange(size)[:, None]),)

    def root(self, one: int) -> int:
        while self.parent[one] != one:
            one = self.parent[one]
        return one

    def fix(self, *dims: tuple[Segment, ...]) -> tuple[Segment, ...]:
        self.still.update(self.root(one) for along in dims for one, _ in along)
        return ()

    def unify(self, a: tuple[Segment, ...], b: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """Both lie along one axis: their units move together, or not at all."""
        if len(a) != len(b) or not all(torch.equal(i, j) for (_, i), (_, j) in zip(a, b, strict=True)):
            return self.fix(a, b)
        for (one, _), (other, _) in zip(a, b, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self.parent[high] = low
            if high in self.still:
                self.still.add(low)
            if high in self.rigid:
                self.rigid.add(low)
        return a

    def hold(self, value: Tensor | None, dim: int, along: tuple[Segment, ...], incoming: bool = False) -> None:
        """A parameter has these units along dim."""
        if value is None:
            return
        key = self.first[id(value)], dim
        if key in self.axes:
            before, was = self.axes[key]
            self.axes[key] = self.unify(before, along), was and incoming
        else:
            self.axes[key] = along, incoming

    def made(self, value: Tensor, dim: int) -> tuple[Segment, ...]:
        """The units that a parameter makes along dim: new, unless the same layer was called before."""
        key = self.first[id(value)], dim
        if key not in self.axes:
            self.axes[key] = self.new(value.shape[dim]), False
        return self.axes[key][0]

    def dims(self, value: Any) -> Dims:
        if isinstance(value, Tensor) and id(value) not in self.along:
            self.note(value, [()] * value.dim())
        found: Dims = self.along.get(id(value), [])
        return found

    def note(self, value: Any, dims: Any) -> None:
        if isinstance(value, tuple):
            for part, own in zip(value, dims, strict=True):
                self.note(part, own)
        elif isinstance(value, Tensor):
            assert len(dims) == value.dim(), (dims, value.shape)
            self.along[id(value)] = dims
            self.alive.append(value)

    # nodes

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = getattr(self, n.op)(n.target, args, kwargs)
        if n.op == "output":
            for value in _tensors(result):
                self.fix(*self.dims(value))
            return result
        if n.op == "get_attr":
            if isinstance(result, Tensor) and id(result) in self.first:
                self.note(result, [self.made(result, dim) if size > 1 else () for dim, size in enumerate(result.shape)])
            return result
        if n.op == "placeholder" or not any(True for _ in _tensors(result)):
            return result
        result = _fresh(result, args)
        target = self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target
        rule = self.module_rule(target) if n.op == "call_module" else self.call_rule(target)
        dims = None if rule is None else rule(target, args, kwargs, result)
        if dims is None:
            for value in _tensors((args, kwargs)):
                self.fix(*self.dims(value))
            self.unknown.append(str(getattr(n.target, "__name__", n.target)))
            return result
        self.note(result, dims)
        if n.op == "call_module" and isinstance(result, Tensor):
            self.taps += [(str(n.target), dim, along) for dim, along in enumerate(self.dims(result)) if along]
        return result

    # layers

    def module_rule(self, layer: Any) -> Callable[..., Any] | None:
        for kinds, rule in (
            ((nn.Linear,), self.linear),
            ((nn.Conv1d, nn.Conv2d, nn.Conv3d), self.convolution),
            ((nn.ConvTranspose1d, nn.ConvTranspose2d), self.transposed),
            ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d), self.by_channel),
            ((nn.GroupNorm,), self.group_norm),
            ((nn.LayerNorm, nn.RMSNorm), self.last_dims),
            ((nn.Embedding,), self.embedding),
            ((nn.PReLU,), self.by_channel),
            ((nn.MultiheadAttention,), self.attention),
            ((nn.TransformerEncoderLayer,), self.encoder_layer),
            (SAME, self.same),
            (POOLS, self.pooled),
            ((nn.Flatten,), self.flattened),
        ):
            if isinstance(layer, kinds):
                return rule
        return None

    def linear(self, layer: nn.Linear, args: Any, kwargs: Any, out: Any) -> Dims:
        *front, last = self.dims(args[0])
        self.hold(layer.weight, 1, last, True)
        made = self.made(layer.weight, 0)
        self.hold(layer.bias, 0, made)
        return [*front, made]

    def convolution(self, layer: nn.Conv2d, args: Any, kwargs: Any, out: Tensor) -> Dims | None:
        batch, channels, *_ = self.dims(args[0])
        still: Dims = [()] * (out.dim() - 2)
        if layer.groups == 1:
            self.hold(layer.weight, 1, channels, True)
            made = self.made(layer.weight, 0)
        elif layer.groups == layer.in_channels:
            each = layer.out_channels // layer.groups
            made = tuple((one, (places[..., None] * each + torch.arange(each)).flatten(1)) for one, places in channels)
            self.hold(layer.weight, 0, made)
        else:
            return None
        self.hold(layer.bias, 0, made)
        return [batch, made, *still]

    def transposed(self, layer: nn.ConvTranspose2d, args: Any, kwargs: Any, out: Tensor) -> Dims | None:
        if layer.groups != 1:
            return None
        batch, channels, *_ = self.dims(args[0])
        self.hold(layer.weight, 0, channels, True)
        made = self.made(layer.weight, 1)
        self.hold(layer.bias, 0, made)
        return [batch, made, *[()] * (out.dim() - 2)]

    def by_channel(self, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> Dims:
        dims = self.dims(args[0])
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(layer, name, None)
            if value is not None and value.numel() > 1:
                self.hold(value, 0, dims[1])
        return dims

    def group_norm(self, layer: nn.GroupNorm, args: Any, kwargs: Any, out: Any) -> Dims | None:
        return self.by_channel(layer, args, kwargs, out) if layer.num_groups in (1, layer.num_channels) else None

    def last_dims(self, layer: Any, args: Any, kwargs: Any, out: Any) -> Dims:
        dims = self.dims(args[0])
        for i, along in enumerate(dims[-len(layer.normalized_shape) :]):
            self.hold(layer.weight, i, along)
            self.hold(getattr(layer, "bias", None), i, along)
        return dims

    def embedding(self, layer: nn.Embedding, args: Any, kwargs: Any, out: Any) -> Dims:
        return [*self.dims(args[0]), self.made(layer.weight, 1)]

    def attention(self, layer: nn.MultiheadAttention, args: Any, kwargs: Any, out: Any) -> Any:
        three = [*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)][:3]
        if layer.in_proj_weight is None or layer.bias_k is not None:
            return None
        stream = self.dims(three[0])[-1]
        for value in three[1:]:
            stream = self.unify(stream, self.dims(value)[-1])
        made = self._attend(layer, stream)
        front = self.dims(three[0])[:-1]
        weights = [()] * out[1].dim() if out[1] is not None else None
        return [*front, made], weights

    def _attend(self, layer: nn.MultiheadAttention, stream: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """Whole heads move; the stream is read by the input projection and made by the output projection."""
        ((one, _),) = self.new(layer.num_heads)
        inner = torch.arange(layer.embed_dim).reshape(layer.num_heads, -1)
        three = torch.cat([inner, inner + layer.embed_dim, inner + 2 * layer.embed_dim], 1)
        self.hold(layer.in_proj_weight, 0, ((one, three),))
        self.hold(layer.in_proj_bias, 0, ((one, three),))
        self.hold(layer.in_proj_weight, 1, stream, True)
        self.hold(layer.out_proj.weight, 1, ((one, inner),), True)
        made = self.made(layer.out_proj.weight, 0)
        self.hold(layer.out_proj.bias, 0, made)
        self.rigid.update(self.root(var) for var, _ in [(one, inner), *stream, *made])
        return made

    def encoder_layer(self, layer: nn.TransformerEncoderLayer, args: Any, kwargs: Any, out: Any) -> Dims:
        *front, stream = self.dims(args[0])
        stream = self.unify(stream, self._attend(layer.self_attn, stream))
        self.hold(layer.linear1.weight, 1, stream, True)
        inner = self.made(layer.linear1.weight, 0)
        self.hold(layer.linear1.bias, 0, inner)
        self.hold(layer.linear2.weight, 1, inner, True)
        stream = self.unify(stream, self.made(layer.linear2.weight, 0))
        for value in (layer.linear2.bias, *layer.norm1.parameters(), *layer.norm2.parameters()):
            self.hold(value, 0, stream)
        return [*front, stream]

    # functions and methods

    def call_rule(self, target: Any) -> Callable[..., Any] | None:
        for calls, rule in (
            (SAME_CALLS, self.same),
            (POOL_CALLS, self.pooled),
            (PAIR_CALLS, self.paired),
            ({torch.flatten, "flatten", "view", "reshape", torch.reshape}, self.flattened),
            ({torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}, self.reduced),
            ({torch.cat, torch.concat}, self.joined),
            ({"permute", torch.permute, "transpose", torch.transpose}, self.turned),
            ({"unsqueeze", torch.unsqueeze, "squeeze", torch.squeeze, "expand"}, self.stretched),
            ({operator.getitem}, self.picked),
        ):
            if target in calls:
                return rule
        return None

    def same(self, target: Any, args: Any, kwargs: Any, out: Any) -> Dims:
        return self.dims(args[0])

    def pooled(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims:
        return [*self.dims(args[0])[:2], *[()] * (out.dim() - 2)]

    def paired(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims:
        """Element by element, with broadcasting."""
        found: Dims | None = None
        for value in args:
            if not isinstance(value, Tensor):
                continue
            dims = [()] * (out.dim() - value.dim()) + self.dims(value)
            short = [1] * (out.dim() - value.dim()) + [*value.shape]
            if found is None:
                found, have = dims, short
                continue
            pairs = zip(found, have, dims, short, strict=True)
            found = [b if s == 1 and t > 1 else a if t == 1 and s > 1 else self.unify(a, b) for a, s, b, t in pairs]
            have = [max(s, t) for s, t in zip(have, short, strict=True)]
        assert found is not None
        return found

    def flattened(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims | None:
        """Neighbouring dims become one; other changes of shape are not understood."""
        shape, dims = [*args[0].shape], self.dims(args[0])
        found: Dims = []
        at = 0
        for size in out.shape:
            end = at
            while end < len(shape) and math.prod(shape[at:end]) < size:
                end += 1
            end = max(end, at + 1)
            if math.prod(shape[at:end]) != size:
                return None
            found.append(self._flat(shape[at:end], dims[at:end]))
            at = end
        return found if all(size == 1 for size in shape[at:]) else None

    def _flat(self, shape: list[int], dims: Dims) -> tuple[Segment, ...]:
        moving = [i for i, along in enumerate(dims) if along]
        if len(moving) > 1:
            return self.fix(*dims)
        if not moving:
            return ()
        i = moving[0]
        before, after = math.prod(shape[:i]), math.prod(shape[i + 1 :])
        outer, inner = torch.arange(before), torch.arange(after)
        return tuple(
            (one, ((outer[:, None] * shape[i] + places[:, None])[..., None] * after + inner).flatten(1))
            for one, places in dims[i]
        )

    def reduced(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims | None:
        dims = self.dims(args[0])
        over = args[1] if len(args) > 1 else kwargs.get("dim")
        if over is None:
            return None if out.dim() else []
        gone = {dim % len(dims) for dim in ([over] if isinstance(over, int) else over)}
        if out.dim() == len(dims):
            return [() if dim in gone else along for dim, along in enumerate(dims)]
        return [along for dim, along in enumerate(dims) if dim not in gone]

    def joined(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
        parts = [(value, self.dims(value)) for value in args[0]]
        found = list(parts[0][1])
        for _, dims in parts[1:]:
            found = [self.unify(a, b) if i != dim else a for i, (a, b) in enumerate(zip(found, dims, strict=True))]
        segments, start = [], 0
        for value, dims in parts:
            segments += [(one, places + start) for one, places in dims[dim]]
            start += value.shape[dim]
        found[dim] = tuple(segments)
        return found

    def turned(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims:
        dims = self.dims(args[0])
        given = args[1:] if len(args) > 1 else tuple(kwargs.values())
        if "transpose" in str(getattr(target, "__name__", target)):
            order = list(range(len(dims)))
            a, b = (dim % len(dims) for dim in given)
            order[a], order[b] = b, a
        else:
            order = [dim % len(dims) for dim in (given[0] if isinstance(given[0], (tuple, list)) else given)]
        return [dims[dim] for dim in order]

    def stretched(self, target: Any, args: Any, kwargs: Any, out: Tensor) -> Dims | None:
        """Dims of size 1 come, go or grow: the others keep their order."""
        have = [(size, along) for size, along in zip(args[0].shape, self.dims(args[0]), strict=True) if size > 1]
        found: Dims = []
        for size in out.shape:
            if have and have[0][0] == size:
                found.append(have.pop(0)[1])
            else:
                found.append(())
        return None if have else found

    def picked(self, target: Any, args: Any, kwargs: Any, out: Any) -> Any:
        value, index = args
        if not isinstance(value, Tensor):
            return self.dims(value[index])
        found: Dims = []
        dims, wanted = list(self.dims(value)), index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis or part is None or isinstance(part, (Tensor, list)) for part in wanted):
            return None
        for dim, along in enumerate(dims):
            part = wanted[dim] if dim < len(wanted) else slice(None)
            if isinstance(part, int):
                self.fix(along)
            else:
                found.append(along if part == slice(None) else self.fix(along))
        return found

    # the result

    def spec(self) -> PermutationSpec:
        groups: dict[int, list[Axis]] = {}
        for (name, dim), (along, incoming) in self.axes.items():
            for alias in self.names[id(self.tensors[name])]:
                for one, places in along:
                    groups.setdefault(self.root(one), []).append(Axis(alias, dim, places, incoming))
        taps: dict[int, list[Axis]] = {}
        for name, dim, along in self.taps:
            for one, places in along:
                taps.setdefault(self.root(one), []).append(Axis(name, dim, places))
        spec = PermutationSpec()
        for one, axes in sorted(groups.items()):
            if one not in self.still:
                name = axes[0].name if axes[0].name not in spec else f"{axes[0].name} {axes[0].dim}"
                spec[name] = Group(self.size[one], tuple(axes), tuple(taps.get(one, ())), one in self.rigid)
        spec.fixed = tuple(dict.fromkeys(self.unknown))
        return spec


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def _fresh(result: Any, args: Sequence[Any]) -> Any:
    """The result as a tensor of its own where the operation gave back what it took, as in-place ones and dropout do."""
    taken = {id(value) for value in _tensors(args)}
    return result.view_as(result) if isinstance(result, Tensor) and id(result) in taken else result
