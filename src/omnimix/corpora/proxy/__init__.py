"""Small language models trained on documents, to learn what a mixture does."""

from .documents import Columns
from .pack import Packed, pack
from .rule import Follow, Rule, Setting, Step
from .train import Trained, Training, network, train

__all__ = ["Columns", "Follow", "Packed", "Rule", "Setting", "Step", "Trained", "Training", "network", "pack", "train"]
