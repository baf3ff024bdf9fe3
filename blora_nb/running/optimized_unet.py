"""How the U-Net is run while a B-LoRA is trained: recomputed, compiled, cached, offloaded.

`optimized_unet` is the one context round the training loop. Each part of it is a context round an
unchanged model; afterwards the model is what it was. None changes what is learned, but for
rounding.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blora_nb.batches import Batches
from blora_nb.running.gradient_checkpointing import gradient_checkpointing
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.memory import choose_checkpointing, free_memory
from blora_nb.running.placement import offloaded
from blora_nb.running.text_cache import cached_text
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel


@dataclass(frozen=True)
class Patches:
    """What has been changed on a pipeline for its training, and can be suspended."""

    undo: tuple[Callable[[], AbstractContextManager[None]], ...]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, the pipeline draws as outside a training: any prompt, its models in place."""
        with ExitStack() as stack:
            for context in self.undo:
                stack.enter_context(context())
            yield


@contextmanager
def optimized_unet(
    pipe: "StableDiffusionXLPipeline", batches: Batches, settings: TrainingSettings
) -> Iterator[Patches]:
    """Inside, the U-Net with LoRA on it is ready for the training loop. Yields `Patches`."""
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
        yield Patches((models_back, text_back, peft_back))


@contextmanager
def compiled(unet: "UNet2DConditionModel", wanted: bool) -> Iterator[None]:
    """Inside, each transformer block is compiled.

    All of one shape share what was compiled, so that the wait is short.
    """
    if not wanted:
        yield
        return
    try:
        unet.compile_repeated_blocks()
        yield
    finally:
        for module in unet.modules():
            module._compiled_call_impl = None
