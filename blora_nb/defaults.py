"""What suits a base model: its resolution, how it is trained on, how it draws."""

from dataclasses import dataclass
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


# the original's training recipe
SDXL_DEFAULTS = Defaults(
    rank=64,
    learning_rate=5e-5,
    max_train_steps=1000,
    train_batch_size=1,
    num_inference_steps=30,
    guidance_scale=7.5,
)
# chosen by trying on the pairs of benchmarks/separation.py
TINY_DEFAULTS = Defaults(
    rank=16,
    learning_rate=5e-3,
    max_train_steps=150,
    train_batch_size=8,
    num_inference_steps=20,
    guidance_scale=3.0,
)


# said before a training on it
TEACHING_MODEL_LEARNS = (
    "The teaching model knows 16 things in 12 styles, those of the course's examples, and learns "
    "pictures that are near to them. Of another drawing it learns the colours, and hardly the "
    "shape; of a photograph, text or fine detail next to nothing: use SDXL for those."
)


def defaults_for(pipe: "StableDiffusionXLPipeline") -> Defaults:
    """The `Defaults` for a pipeline, by the width of its U-Net."""
    return TINY_DEFAULTS if pipe.unet.config.cross_attention_dim < 1024 else SDXL_DEFAULTS


def is_teaching_model(pipe: "StableDiffusionXLPipeline") -> bool:
    """Whether a pipeline is the small model of the course, and not SDXL."""
    return defaults_for(pipe) is TINY_DEFAULTS


def native_resolution(pipe: "StableDiffusionXLPipeline") -> int:
    """The side in pixels of the square pictures the model was trained on.

    96 for the teaching model, 1024 for SDXL.
    """
    return pipe.unet.config.sample_size * pipe.vae_scale_factor
