"""How the U-Net is run while a B-LoRA is trained: what is recomputed, what is compiled, what waits elsewhere.

Context managers round an unchanged model; afterwards it is what it was. None changes what is learned, but for rounding.
"""

import warnings
from contextlib import contextmanager

import torch

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK


@contextmanager
def gradient_checkpointing(unet, mode):
    """Inside, activations are recomputed on the backward pass: "none", "partial" (the two trained blocks) or "full" (all of the way up)."""
    if mode == "none":
        yield
        return
    unet.enable_gradient_checkpointing()
    wanted = (CONTENT_BLOCK, STYLE_BLOCK) if mode == "partial" else ("up_blocks",)
    for name, module in unet.named_modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = name.startswith(wanted)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


@contextmanager
def compiled(unet, wanted):
    """Inside, each transformer block is compiled; all of one shape share what was compiled, so that the wait is short."""
    if not wanted:
        yield
        return
    unet.compile_repeated_blocks()
    try:
        yield
    finally:
        for module in unet.modules():
            module._compiled_call_impl = None


@contextmanager
def offloaded(*models):
    """Inside, the models are in the CPU's memory instead of the GPU's. Yields a context in which they are back."""
    devices = [model.device for model in models]

    def move(places):
        for model, place in zip(models, places):
            model.to(place)

    @contextmanager
    def back():
        try:
            move(devices)
            yield
        finally:
            move(["cpu"] * len(models))

    move(["cpu"] * len(models))
    try:
        yield back
    finally:
        for model, device in zip(models, devices):
            move_if_room(model, device)


def move_if_room(model, device):
    """Whether there was room to move it; what was learned, or why it ended, is worth more than a model's place."""
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def all_back(*models):
    """Afterwards the models are where they were, also those for which there was no room yet inside; a warning names what finds none even now."""
    devices = [model.device for model in models]
    try:
        yield
    finally:
        if left := [
            type(model).__name__
            for model, device in zip(models, devices)
            if not move_if_room(model, device)
        ]:
            warnings.warn(
                f"There is no room left on {devices[0]} for {' and '.join(left)}. Close what else uses it, and load the pipeline again.",
                stacklevel=3,
            )
