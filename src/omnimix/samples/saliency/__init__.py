"""Where the content of an input lies."""

from .activation import ClassActivation, MeanActivation, class_activation, feature_map
from .attention import Attention, Watched, attention, watch_attention
from .center_surround import CenterSurround, center_surround
from .input_gradient import InputGradient, input_gradient
from .maps import Given, as_saliency, at_size, filtered, normalised
from .spectral_residual import SpectralResidual, spectral_residual

__all__ = [
    "Attention",
    "CenterSurround",
    "ClassActivation",
    "Given",
    "InputGradient",
    "MeanActivation",
    "SpectralResidual",
    "Watched",
    "as_saliency",
    "at_size",
    "attention",
    "center_surround",
    "class_activation",
    "feature_map",
    "filtered",
    "input_gradient",
    "normalised",
    "spectral_residual",
    "watch_attention",
]
