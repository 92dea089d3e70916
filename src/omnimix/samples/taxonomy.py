"""Where each method of this room stands in the survey of the field: what is mixed, whence the label, for which use.

A method is made of parts, and many belong to several classes; this names the first. Source: Jin, Zhu, Li et al., "A
Survey on Mixup Augmentations and Beyond", 2024, arXiv 2409.05202, its lists of sample and label policies. "area"
is the survey's area-based: by the mask, also with attention in it. "ratio" and "own" are ours: the survey has no names
for labels by the drawn share, which many methods have, nor for labels that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SAMPLE = (
    "none",
    "static linear",
    "feature-based",
    "cutting-based",
    "K samples",
    "random policies",
    "style-based",
    "saliency-based",
    "attention-based",
    "generating",
)
"""What is mixed, and by what rule."""
LABEL = (
    "own",
    "ratio",
    "area",
    "calibration-driven",
    "loss object",
    "random label",
    "optimised ratio",
    "generated label",
    "attention score",
    "saliency token",
)
"""Whence the weights of the labels."""
MODALITIES = ("image", "any")
PARADIGMS = ("supervised", "regression", "distribution shift", "robustness")


@dataclass(frozen=True)
class Place:
    """A class of samples, one of labels, the inputs and the uses that a method is made for."""

    sample: str
    label: str
    modality: str = "image"
    paradigm: tuple[str, ...] = ("supervised",)


def _any(sample: str, label: str, *paradigm: str) -> Place:
    return Place(sample, label, "any", paradigm or ("supervised",))


PLACES: Mapping[str, Place] = {
    "adautomix": Place("saliency-based", "ratio"),
    "alignmixup": Place("style-based", "ratio"),
    "attentivemix": Place("saliency-based", "area"),
    "augmix": Place("static linear", "own", paradigm=("robustness",)),
    "automix": Place("saliency-based", "ratio"),
    "c-mixup": _any("static linear", "ratio", "regression"),
    "co-mixup": Place("saliency-based", "area"),
    "cutmix": Place("cutting-based", "area"),
    "decoupled-mixup": _any("static linear", "loss object"),
    "early-stopped-mixup": _any("static linear", "random label"),
    "erm": _any("none", "own"),
    "fmix": Place("cutting-based", "area"),
    "gridmix": Place("cutting-based", "area"),
    "gridmix-local": Place("cutting-based", "area"),
    "guidedmixup": Place("saliency-based", "area"),
    "lisa": _any("static linear", "ratio", "distribution shift"),
    "manifold-mixup": _any("feature-based", "ratio"),
    "midpoint-mixup": _any("static linear", "ratio"),
    "mixpro": Place("attention-based", "attention score"),
    "mixstyle": Place("style-based", "own", paradigm=("distribution shift",)),
    "mixup": _any("static linear", "ratio"),
    "mixup-or-cutmix": Place("random policies", "area"),
    "mosaic": Place("K samples", "area"),
    "noisymix": Place("feature-based", "ratio", paradigm=("robustness",)),
    "patchup": Place("feature-based", "area"),
    "puzzle-mix": Place("saliency-based", "area"),
    "recursivemix": Place("saliency-based", "area"),
    "regmix-regression": _any("static linear", "ratio", "regression"),
    "regmixup": _any("static linear", "random label", "supervised", "robustness"),
    "resampling": _any("none", "own", "distribution shift"),
    "resizemix": Place("cutting-based", "area"),
    "saliencymix": Place("saliency-based", "area"),
    "samix": Place("saliency-based", "ratio"),
    "selective-mixup": _any("static linear", "ratio", "distribution shift"),
    "smmix": Place("attention-based", "area"),
    "smoothmix": Place("cutting-based", "area"),
    "snapmix": Place("saliency-based", "saliency token"),
    "stylecutmix": Place("style-based", "area"),
    "stylemix": Place("style-based", "ratio"),
    "sumix": Place("cutting-based", "optimised ratio"),
    "tokenmix": Place("attention-based", "attention score"),
    "transmix": Place("cutting-based", "area"),
}
"""By the name of the method."""


def coverage() -> dict[str, dict[str, list[str]]]:
    """For each class of samples and of labels the methods that stand in it: {"sample": {class: names}, "label": ...}.

    Classes that nothing here belongs to are there, with no names.
    """
    return {
        axis: {one: sorted(name for name, at in PLACES.items() if getattr(at, axis) == one) for one in classes}
        for axis, classes in (("sample", SAMPLE), ("label", LABEL))
    }
