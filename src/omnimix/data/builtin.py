"""The data sets that come with omnimix or with scikit-learn."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import torch

from ..core.task import Regression
from .source import Source, labelled
from .synthetic import friedman, two_moons

AIRFOIL = (
    "frequency_hz",
    "angle_of_attack_deg",
    "chord_length_m",
    "free_stream_velocity_m_s",
    "displacement_thickness_m",
)


def _shipped(name: str, **options: Any) -> np.ndarray[Any, Any]:
    text = files("omnimix.data").joinpath("files").joinpath(name).read_text(encoding="utf-8")
    return np.loadtxt(io.StringIO(text), **options)


def _regression(name: str, x: Any, y: Any, features: tuple[str, ...], target: str) -> Source:
    inputs, targets = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in (x, y))
    return Source(
        name, inputs, targets, Regression(1), "table", feature_names=features, target_names=(target,), builtin=True
    )


def airfoil() -> Source:
    """Sound pressure level (dB) of airfoils in a wind tunnel: 1,503 rows, 5 inputs (UCI)."""
    table = _shipped("airfoil_self_noise.dat", delimiter="\t")
    return _regression("airfoil", table[:, :-1], table[:, -1], AIRFOIL, "sound_pressure_level_db")


def no2() -> Source:
    """Logarithm of the NO2 concentration beside a road: 500 rows, 7 inputs (StatLib)."""
    table = _shipped("no2.csv", delimiter=",", skiprows=1)
    features = ("cars_per_hour", "temperature_at_2m", "wind_speed", "temperature_diff_2m_25m", "wind_direction",
                "hour_of_day", "day")  # fmt: skip
    return _regression("no2", table[:, 1:], table[:, 0], features, "log_no2")


def diabetes() -> Source:
    """Progression of diabetes after a year: 442 rows, 10 inputs, raw units (scikit-learn)."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    return _regression("diabetes", data.data, data.target, tuple(data.feature_names), "progression")


def _classes(name: str, x: Any, data: Any, **extra: Any) -> Source:
    names = tuple(str(label) for label in data.target_names)
    y, task = labelled(name, data.target, names)
    inputs = torch.from_numpy(np.asarray(x, dtype=np.float32))
    kind: Literal["table", "image"] = "image" if inputs.ndim == 4 else "table"
    return Source(name, inputs, y, task, kind, class_names=names, builtin=True, **extra)


def wine() -> Source:
    """Three cultivars of wine: 178 rows, 13 inputs (scikit-learn)."""
    from sklearn.datasets import load_wine

    data = load_wine()
    return _classes("wine", data.data, data, feature_names=tuple(data.feature_names), target_names=("cultivar",))


def breast_cancer() -> Source:
    """Malignant or benign: 569 rows, 30 inputs (scikit-learn)."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    features = tuple(str(name) for name in data.feature_names)
    return _classes("breast-cancer", data.data, data, feature_names=features, target_names=("diagnosis",))


def digits() -> Source:
    """Handwritten digits as 1 x 8 x 8 images in [0, 1]: 1,797 of 10 classes (scikit-learn)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return _classes("digits", data.images[:, None] / 16, data, target_names=("digit",))


BUILTIN: dict[str, Callable[[], Source]] = {
    "airfoil": airfoil,
    "no2": no2,
    "digits": digits,
    "diabetes": diabetes,
    "wine": wine,
    "breast-cancer": breast_cancer,
    "friedman": friedman,
    "two-moons": two_moons,
}
