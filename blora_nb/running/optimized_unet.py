"""How the U-Net is run while a B-LoRA is trained: recomputed, compiled, cached, offloaded.

Each part is a context; afterwards the model is what it was. None changes what is learned, but for
rounding.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from blora_nb.batches import Batches
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.memory import choose_checkpointing, free_memory
from blora_nb.running.placement import offloaded
from blora_nb.running.text_cache import cached_text
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel


@contextmanager
def optimized_unet(
    pipe: "StableDiffusionXLPipeline", batches: Batches, settings: TrainingSettings
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Inside, the U-Net with LoRA on it is ready for the training loop.

    Yields:
        A context in which the pipeline draws as outside: any prompt, its models in place.
    """
    unet = pipe.unet
    with ExitStack() as stack:
        enter = stack.enter_context
        models_back = enter(offloaded(pipe.vae, pipe.text_encoder, pipe.text_encoder_2))
        embeds = batches.prompt_embeds[:1].expand(batches.size, -1, -1)
        text_back = enter(cached_text(unet, embeds, batches.one_prompt))
        mode = choose_checkpointing(pipe, settings, free_memory(unet.device))
        enter(gradient_checkpointing(unet, mode))
        enter(lean_attention(unet))
        peft_back = enter(lean_lora(unet))
        enter(compiled(unet, settings.compile))
        enter(warnings.catch_warnings())
        # in float16 the first steps may be left out while the scale adapts
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler")

        @contextmanager
        def suspended() -> Iterator[None]:
            with models_back(), text_back(), peft_back():
                yield

        yield suspended


@contextmanager
def gradient_checkpointing(unet: "UNet2DConditionModel", mode: str) -> Iterator[None]:
    """Inside, activations are computed again on the backward pass instead of being kept.

    Args:
        mode: "none", "partial" (of the two trained blocks) or "full" (of all of the way up).
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


@contextmanager
def compiled(unet: "UNet2DConditionModel", wanted: bool) -> Iterator[None]:
    """Inside, each transformer block is compiled; those of one shape share what was compiled."""
    if not wanted:
        yield
        return
    try:
        unet.compile_repeated_blocks()
        yield
    finally:
        for module in unet.modules():
            module._compiled_call_impl = None
