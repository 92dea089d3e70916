"""Drop-in replacements for torchvision's `v2.MixUp` and `v2.CutMix`, and any other mixing of batches by its name.

Same arguments, same structures in and out, same labels. What differs: partners come from a random permutation of the
batch (torchvision: the row before), randomness from a generator, shares may be drawn for each sample, real-valued
labels are mixed too, and images are found also where plain labels come before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import default_collate

from ..core import registry
from ..core.batch import Batch
from ..core.method import Mix as Composed
from ..core.objective import MixedLoss
from ..core.operation import Interpolate
from ..core.random import resolve
from ..core.recipe import Mixed, one_hot

try:
    import PIL.Image
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError("this needs the package 'torchvision': pip install \"omnimix[vision]\"") from error

REFUSED = tuple(
    getattr(tv_tensors, name) for name in ("BoundingBoxes", "Mask", "KeyPoints") if hasattr(tv_tensors, name)
)
PICTURES = (tv_tensors.Image, tv_tensors.Video)


class Mix(v2.Transform):  # type: ignore[misc]
    """Mix the images or videos of a batch, and its labels, by the method `name`.

    `v2.Compose([default_collate, Mix("fmix", num_classes=10)])` as `collate_fn`, or `Mix(...).collate`, or call it with
    (images, labels) or one nested structure; all entries but images and labels are returned as they are.

    name: a registered method that mixes the inputs of a batch and their labels, and nothing else ("mixup", "cutmix",
    "fmix", ...). options: its parameters, such as alpha or per_sample. num_classes: needed where labels are class ids.
    labels_getter: "default" finds the labels as torchvision does, in the second entry: a tensor, or a dict with a key
    "labels" or one that contains "label"; or a function of the whole input. generator: None takes one for each loader
    worker; one of your own is for use in the training process.

    Images are all `tv_tensors.Image` (B, C, H, W) and `Video` (B, T, C, H, W); without any, the first plain tensor but
    the labels. They are mixed alike. Labels: class ids (B,) and one-hot or soft (B, num_classes) become soft
    (B, num_classes); real (B,) are mixed without num_classes. ValueError for other inputs.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        labels_getter: str | Callable[[Any], Any] | None = "default",
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        method = registry.create(name, **options)
        if not isinstance(method, Composed) or not _mixes_batches(method):
            raise ValueError(
                f"{name} is more than a mixing of images and labels within a batch; set it up in the training loop "
                f"(method.loss), or choose another such as 'mixup', 'cutmix' or 'fmix'"
            )
        if not (labels_getter is None or labels_getter == "default" or callable(labels_getter)):
            raise ValueError(f"labels_getter must be 'default', a function or None, got {labels_getter!r}")
        resolve(generator)
        self.name, self.method, self.num_classes = name, method, num_classes
        self.labels_getter, self.generator = labels_getter, generator

    def extra_repr(self) -> str:
        return f"{self.name!r}, num_classes={self.num_classes}"

    def collate(self, samples: Sequence[Any]) -> Any:
        """`DataLoader(..., collate_fn=MixUp(num_classes=10).collate)`."""
        return self(default_collate(list(samples)))

    def forward(self, *inputs: Any) -> Any:
        """The input with its images and labels mixed; nothing is changed in place."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        entries, structure = tree_flatten(sample)
        labels = self._labels(sample, entries)
        where = _pictures(entries, labels)
        parts, target = self._mix([_planes(entries[i], len(labels)) for i in where], labels)
        for i, x in zip(where, parts, strict=True):
            x, before = x.reshape(entries[i].shape), entries[i]
            entries[i] = tv_tensors.wrap(x, like=before) if isinstance(before, PICTURES) else x
        position = next(i for i, entry in enumerate(entries) if entry is labels)
        return tree_unflatten([*entries[:position], target, *entries[position + 1 :]], structure)

    def _labels(self, sample: Any, entries: list[Any]) -> Tensor:
        if any(isinstance(entry, (PIL.Image.Image, *REFUSED)) for entry in entries):
            raise ValueError(f"{self._get_name()} does not mix PIL images, bounding boxes, keypoints and masks")
        getter = self.labels_getter
        labels = getter(sample) if callable(getter) else _default_labels(sample) if getter == "default" else None
        if not isinstance(labels, Tensor):
            raise ValueError(f"the labels must be a tensor, got {type(labels).__name__}; check labels_getter")
        if labels.ndim not in (1, 2):
            raise ValueError(
                "the labels must be class ids (batch,), or one-hot or soft (batch, num_classes), "
                f"got shape {tuple(labels.shape)}"
            )
        if labels.ndim == 2 and self.num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"the labels have {labels.shape[1]} classes, but num_classes = {self.num_classes}; leave it None"
            )
        if labels.ndim == 1 and labels.is_floating_point() != (self.num_classes is None):
            given = "real-valued" if labels.is_floating_point() else "class ids"
            raise ValueError(
                f"the labels (batch,) are {given}, but num_classes = {self.num_classes}: "
                "it is needed for class ids, and must be None for real values"
            )
        if not any(entry is labels for entry in entries):
            raise ValueError("labels_getter must return a tensor of the input itself, not a new one")
        return labels

    def _mix(self, parts: list[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """`parts` (B, planes, H, W), all by one recipe, and soft labels."""
        method = self.method
        method.generator = resolve(self.generator)  # that of this process, which may be a loader's worker
        target = labels.float() if labels.ndim == 2 and not labels.is_floating_point() else labels
        recipe = method.recipe(Batch(parts[0], target))
        if recipe is None:
            return parts, target if self.num_classes is None or target.ndim == 2 else one_hot(target, self.num_classes)
        masks, sizes = not isinstance(method.operation, Interpolate), {tuple(part.shape[2:]) for part in parts}
        if masks and len(sizes) > 1:
            raise ValueError(f"{self.name} cannot mix images of different sizes alike, got {sorted(sizes)}")
        mixed, state = [], method.generator.get_state()
        for part in parts:
            method.generator.set_state(state)
            whole = masks and not part.is_floating_point()  # bytes can be pasted, not interpolated
            x, applied = method.apply(part.float() if whole else part, recipe)
            mixed.append(x.round().to(part.dtype) if whole else x)
        return mixed, Mixed(None, target, applied).soft_target(self.num_classes)


class MixUp(Mix):
    """mixup in place of `torchvision.transforms.v2.MixUp`.

    alpha >= 0 of Beta(alpha, alpha). per_sample: a share for each sample instead of one for the batch. Others: see
    `Mix`.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: str | Callable[[Any], Any] | None = "default",
        per_sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        common: dict[str, Any] = {"num_classes": num_classes, "labels_getter": labels_getter, "generator": generator}
        super().__init__("mixup", alpha=alpha, per_sample=per_sample, **common)


class CutMix(Mix):
    """CutMix in place of `torchvision.transforms.v2.CutMix`; see `MixUp`. per_sample: also a box for each sample."""

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: str | Callable[[Any], Any] | None = "default",
        per_sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        common: dict[str, Any] = {"num_classes": num_classes, "labels_getter": labels_getter, "generator": generator}
        super().__init__("cutmix", alpha=alpha, per_sample=per_sample, **common)


def _mixes_batches(method: Composed) -> bool:
    """Whether the mixed batch and its soft labels are all there is to the method."""
    same = all(
        getattr(type(method), name) is getattr(Composed, name) for name in ("loss", "mixed_loss", "resolve_places")
    )
    plain = method.places == ("input",) and isinstance(method.objective, MixedLoss)
    plain = plain and (method.labels is None or not method.labels.after)
    return same and plain and not method.needs and not method.streams


def _default_labels(sample: Any) -> Any:
    """The labels where torchvision looks for them; ValueError if there is nothing."""
    if isinstance(sample, (tuple, list)):
        sample = sample[1] if len(sample) > 1 else None
    if _is_plain(sample):
        return sample
    if not isinstance(sample, Mapping):
        raise ValueError(
            "the default labels_getter needs (images, labels), or a dict with a key 'labels', alone or second; "
            f"found {type(sample).__name__}; pass a function as labels_getter"
        )
    names = [key for key in sample if isinstance(key, str) and "label" in key.lower()]
    if not names:
        raise ValueError(f"no key of {list(sample)} contains 'label'; pass a function as labels_getter")
    return sample[next((key for key in names if key.lower() == "labels"), names[0])]


def _is_plain(entry: Any) -> bool:
    return isinstance(entry, Tensor) and not isinstance(entry, tv_tensors.TVTensor)


def _pictures(entries: list[Any], labels: Tensor) -> list[int]:
    """The positions of what is mixed beside the labels."""
    found = [i for i, entry in enumerate(entries) if isinstance(entry, PICTURES)]
    plain = [i for i, entry in enumerate(entries) if _is_plain(entry) and entry is not labels]
    if not found and not plain:
        raise ValueError("no image or video was found beside the labels")
    return found or plain[:1]


def _planes(x: Tensor, count: int) -> Tensor:
    """(B, planes, H, W) of a batch of images or videos."""
    axes = 5 if isinstance(x, tv_tensors.Video) else 4
    if x.ndim != axes:
        raise ValueError(
            f"expected a batch of {axes} dimensions, got {tuple(x.shape)}; mix after default_collate, not before"
        )
    if x.shape[0] != count:
        raise ValueError(f"there are {x.shape[0]} images or videos, but {count} labels")
    return x.as_subclass(Tensor).flatten(1, -3)
