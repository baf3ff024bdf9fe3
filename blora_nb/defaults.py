"""What suits a base model: its resolution, how it is trained on, how it draws."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

QUANTIZATIONS = ("int8", "nf4")
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}


@dataclass(frozen=True)
class Defaults:
    """What works for one size of model; every function takes its defaults from here.

    Attributes:
        train_batch_size: noisy versions of the one picture in each step.
    """

    rank: int
    learning_rate: float
    max_train_steps: int
    train_batch_size: int
    num_inference_steps: int
    guidance_scale: float
    init_lora_weights: str = "gaussian"


# the original's training recipe
SDXL_DEFAULTS = Defaults(
    rank=64,
    learning_rate=5e-5,
    max_train_steps=1000,
    train_batch_size=1,
    num_inference_steps=30,
    guidance_scale=7.5,
)
# chosen by trying on other pictures than those of benchmarks/separation.py
TINY_DEFAULTS = Defaults(
    rank=32,
    learning_rate=1e-3,
    max_train_steps=100,
    train_batch_size=4,
    num_inference_steps=12,
    guidance_scale=1.5,
    init_lora_weights="instant",
)
# from the unchanged model, as the original does it
TINY_FROM_ZERO = replace(
    TINY_DEFAULTS, learning_rate=3e-3, max_train_steps=150, init_lora_weights="gaussian"
)
TINY_CROSS_ATTENTION_DIM = 192  # the first 96 from the first text encoder

# said before a training on it
TEACHING_MODEL_LEARNS = (
    "The teaching model learns simple drawings, such as icons, logos or sketches of one thing, "
    "and coarse patterns, such as dots or broad stripes. Of textures, fine detail, text and "
    "photographs it learns next to nothing: use SDXL for those."
)


def defaults_for(
    pipe: "StableDiffusionXLPipeline", init_lora_weights: str | None = None
) -> Defaults:
    """The `Defaults` for a pipeline, by the width of its U-Net.

    Args:
        init_lora_weights: with "gaussian" those of a training that starts from the unchanged model.
    """
    if not is_teaching_model(pipe):
        return SDXL_DEFAULTS
    if init_lora_weights == "gaussian" or not can_start_instantly(pipe):
        return TINY_FROM_ZERO
    return TINY_DEFAULTS


def can_start_instantly(pipe: "StableDiffusionXLPipeline") -> bool:
    """Whether an instant B-LoRA can be computed: only for the teaching model, not quantized."""
    quantized = getattr(pipe.unet, "is_quantized", False)
    return pipe.unet.config.cross_attention_dim == TINY_CROSS_ATTENTION_DIM and not quantized


def is_teaching_model(pipe: "StableDiffusionXLPipeline") -> bool:
    """Whether a pipeline is the small model of the course, and not SDXL."""
    return pipe.unet.config.cross_attention_dim < 1024


def native_resolution(pipe: "StableDiffusionXLPipeline") -> int:
    """The side in pixels of the square pictures the model was trained on.

    96 for the teaching model, 1024 for SDXL.
    """
    return pipe.unet.config.sample_size * pipe.vae_scale_factor
