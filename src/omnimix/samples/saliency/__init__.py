"""Where the content of an input lies."""

from .activation import ClassActivation, MeanActivation, class_activation, feature_map
from .center_surround import CenterSurround, center_surround
from .input_gradient import InputGradient, input_gradient
from .maps import Given, as_saliency, at_size, normalised
from .spectral_residual import SpectralResidual, spectral_residual

__all__ = [
    "CenterSurround",
    "ClassActivation",
    "Given",
    "InputGradient",
    "MeanActivation",
    "SpectralResidual",
    "as_saliency",
    "at_size",
    "center_surround",
    "class_activation",
    "feature_map",
    "input_gradient",
    "normalised",
    "spectral_residual",
]
