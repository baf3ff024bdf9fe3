"""Activations that are computed again on the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@contextmanager
def gradient_checkpointing(unet: "UNet2DConditionModel", mode: str) -> Iterator[None]:
    """Inside, the activations of some layers are recomputed.

    Args:
        mode: "none", "partial" (the two trained blocks) or "full" (all of the way up).
    """
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
