"""What training loops of other packages, which take the loss of a method and step by themselves, cannot do for it."""

from __future__ import annotations

from .loader import _members
from .method import Method


def trainable_elsewhere(method: Method, *, processes: int, validates: bool) -> None:
    """ValueError if a loop that calls `loss`, `follow` and the hooks, but not `step`, cannot train with the method.

    processes: how many train together. validates: whether the loop tells `after_validation` a loss during training.
    """
    for member in _members(method):
        name = type(member).__name__
        if member.own_step:
            raise ValueError(
                f"{name} makes more of a step than one gradient of a loss, which this trainer takes: train it with "
                "omnimix.train.fit, or in a loop of your own that calls method.step(model, batch, optimizer)"
            )
        if member.streams:
            raise ValueError(
                f"{name} trains on the extra streams {', '.join(member.streams)}, which this trainer lacks"
            )
        if member.one_process and processes > 1:
            raise ValueError(
                f"{name} trains modules of its own beside the network, which {processes} processes would not keep "
                "alike: train in one process"
            )
        if member.follows_validation and not validates:
            raise ValueError(f"{name} follows the validation loss: validate during training")
        if member.follows_validation and member is not method:
            raise ValueError(f"{name} follows the validation loss, which {type(method).__name__} does not pass on")
