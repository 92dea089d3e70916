"""Trees of tensors (a tensor, or dicts, lists and tuples of them) that share their first dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from torch import Tensor

Tree: TypeAlias = Any
"""A tensor, or a dict, list or tuple of trees."""


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The same tree with `function` applied to every tensor; other leaves are refused by ValueError."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, value) for value in tree)
    raise ValueError(
        f"a batch must be made of tensors, dicts, lists and tuples, found {type(tree).__name__}; use torch.as_tensor"
    )


def tensors(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, depth first."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return iter(found)


def rows(tree: Tree) -> int:
    """The shared first dimension; ValueError if the tensors disagree or there is none."""
    if isinstance(tree, Tensor) and tree.ndim:
        return tree.shape[0]
    sizes = {t.shape[0] if t.ndim else -1 for t in tensors(tree)}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(f"all tensors of a batch need the same first dimension, got {sorted(sizes)} (-1: a scalar)")
    return sizes.pop()
