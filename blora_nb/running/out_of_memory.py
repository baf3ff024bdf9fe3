"""What is done when memory was short: tensors are released, the error says what to change."""

import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from blora_nb.running.checkpoints import last_whole
from blora_nb.running.memory import in_order, memory_advice, quantization_advice
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU, or the computer's, is too small."""
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(phrase in str(error) for phrase in PHRASES)


class MemoryReleased:
    """A context in which running out of memory is a MemoryError that keeps no tensors alive.

    Placed innermost, it frees the memory before models that were moved away come back.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if not isinstance(error, (RuntimeError, MemoryError)) or not is_out_of_memory(error):
            return
        traceback.clear_frames(frames)
        # a frame that was cleared still has what its function closed over
        del frames
        error.__traceback__ = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryError(str(error)) from None


def explain_out_of_memory_training(
    pipe: "StableDiffusionXLPipeline",
    settings: TrainingSettings,
    output_dir: str | Path | None,
    error: BaseException,
) -> str:
    """The message for a training: how much it wanted, what is complete, and what to change."""
    message = f"The memory of {pipe.unet.device} is too small ({_wanted(error)})."
    written = last_whole(output_dir)
    if written:
        message += (
            f' {written} is complete: with gradient_checkpointing="full" and '
            'resume_from_checkpoint="latest" the training goes on from there; the other '
            "changes need a folder of their own."
        )
    return f"{message} {memory_advice(pipe, settings)}"


def explain_out_of_memory_generating(
    pipe: "StableDiffusionXLPipeline", error: BaseException
) -> str:
    """The message for a picture: how much it wanted and what to change, the cheapest first."""
    steps = []
    if not getattr(pipe.vae, "use_tiling", False):
        steps.append("--vae_tiling (in Python: blora_nb.pipeline.tile_vae(pipe))")
    if pipe.unet.dtype == torch.float32:
        steps.append("loading the base with dtype float16")
    steps += [*quantization_advice(pipe), "a smaller height and width"]
    device = pipe.unet.device
    return (
        f"The memory of {device} is too small for one picture ({_wanted(error)}). {in_order(steps)}"
    )


def _wanted(error: BaseException) -> str:
    """What PyTorch says it wanted, without its table of what is allocated."""
    return str(error).split("\n")[0].split(". GPU")[0]
