"""How the U-Net is run while a B-LoRA is trained: what is recomputed, in which number format LoRA computes, what is compiled, what waits elsewhere.

Context managers round an unchanged model; afterwards it is what it was. None changes what is learned, but for rounding.
"""

from contextlib import contextmanager

import torch

from .blocks import CONTENT_BLOCK, STYLE_BLOCK


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


class _Rounded(torch.nn.Linear):
    """A float32 layer that multiplies in the number format of what it is given."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


@contextmanager
def lora_computed_like_the_base(unet):
    """Inside, LoRA's products are computed in the base's number format, as autocast does it in the original; its weights and gradients stay float32.

    In 16 bits that spares the float32 copies of every layer's input that LoRA would keep, and its products run where a GPU is fastest.
    """
    from peft.helpers import disable_input_dtype_casting

    layers = [module for module in unet.modules() if hasattr(module, "lora_A")] if unet.dtype != torch.float32 else []
    parts = [part for layer in layers for matrices in (layer.lora_A, layer.lora_B) for part in matrices.values()]
    with disable_input_dtype_casting(unet, active=bool(parts)):
        for part in parts:
            part.__class__ = _Rounded
        try:
            yield
        finally:
            for part in parts:
                part.__class__ = torch.nn.Linear


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
def out_of_the_way(*models):
    """Inside, the models wait in the computer's memory instead of the GPU's. Yields a context in which they are back."""
    devices = [model.device for model in models]

    def move(places):
        for model, place in zip(models, places):
            model.to(place)

    @contextmanager
    def back():
        move(devices)
        try:
            yield
        finally:
            move(["cpu"] * len(models))

    move(["cpu"] * len(models))
    try:
        yield back
    finally:
        move(devices)


@contextmanager
def all_back(*models):
    """Afterwards the models are where they were, even where an error left no room for that inside."""
    devices = [model.device for model in models]
    try:
        yield
    finally:
        for model, device in zip(models, devices):
            model.to(device)
