"""Where models wait while they are not needed, and what moves back when room is short."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from blora_nb.errors import TrainingWarning

if TYPE_CHECKING:
    from diffusers import ModelMixin


@contextmanager
def offloaded(*models: "ModelMixin") -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Inside, models are in the computer's memory. Yields a context in which they are back."""
    devices = [model.device for model in models]

    def move_to_cpu() -> None:
        for model in models:
            model.to("cpu")

    @contextmanager
    def back() -> Iterator[None]:
        try:
            for model, device in zip(models, devices, strict=True):
                model.to(device)
            yield
        finally:
            move_to_cpu()

    move_to_cpu()
    try:
        yield back
    finally:
        for model, device in zip(models, devices, strict=True):
            move_if_room(model, device)


def move_if_room(model: "ModelMixin | nn.Module", device: torch.device | str) -> bool:
    """Move a model, and say whether there was room.

    What was learned, or why it ended, is worth more than a model's place.
    """
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def all_back(*models: "ModelMixin") -> Iterator[None]:
    """Afterwards the models are where they were; those for which there is no room are named."""
    devices = [model.device for model in models]
    try:
        yield
    finally:
        places = zip(models, devices, strict=True)
        left = [type(model).__name__ for model, to in places if not move_if_room(model, to)]
        if left:
            warnings.warn(
                f"There is no room left on {devices[0]} for {' and '.join(left)}. Close what else "
                "uses it, and load the pipeline again.",
                TrainingWarning,
                stacklevel=3,
            )
