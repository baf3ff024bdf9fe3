"""Has a B-LoRA learned its picture? Draw the picture again with both halves, and compare.

Only on the teaching model: it draws a learned picture at the same place in the frame. SDXL's
B-LoRAs keep content and style of a picture, not where everything is: pixels cannot be compared.

The comparison is pixel by pixel, in dB (PSNR). The best picture of one single colour is the measure
of having learned nothing: how many dB it reaches depends on the picture, so only the gain counts.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from blora_nb.defaults import is_teaching_model
from blora_nb.errors import PipelineWarning, PromptWarning
from blora_nb.files.images import centre_square, read_with_remarks
from blora_nb.generation import sample
from blora_nb.lora import BLoRA, apply, remove
from blora_nb.registry import pipeline_lock

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# dB above one flat colour
LEARNED = 3.0
ROUGHLY = 1.0
# dB of a flat colour, from which on a picture is nothing else
ONE_COLOUR = 50.0
REMEDY = (
    "The teaching model learns a single object in a few flat colours best, with a margin around "
    "it. Try a simpler picture, twice as many training steps, or SDXL."
)


@dataclass(frozen=True)
class Rebuilt:
    """A picture drawn again by its own B-LoRA.

    Attributes:
        image: as it was drawn.
        psnr: its likeness to the picture, in dB; 40 is the same to the eye, 20 is close.
        flat_psnr: that of the best single colour, in dB.
    """

    image: Image.Image
    psnr: float
    flat_psnr: float

    @property
    def gain(self) -> float:
        """How much nearer to the picture it is than one flat colour, in dB."""
        return self.psnr - self.flat_psnr

    @property
    def learned(self) -> bool:
        """Whether the gain is 3 dB or more."""
        return self.gain >= LEARNED

    def __str__(self) -> str:
        numbers = f"rebuilt to {self.psnr:.1f} dB (one flat colour reaches {self.flat_psnr:.1f} dB)"
        if self.flat_psnr >= ONE_COLOUR:
            return f"{numbers}: it is hardly more than one colour, there is nothing to learn."
        if self.learned:
            return f"{numbers}: learned."
        if self.gain >= ROUGHLY:
            return f"{numbers}: roughly learned. {REMEDY}"
        return f"{numbers}: not learned. {REMEDY}"


def rebuild(
    pipe: "StableDiffusionXLPipeline",
    blora: BLoRA,
    picture: str | Path | Image.Image,
    prompt: str = "A [v]",
    seed: int = 0,
) -> Rebuilt:
    """Draw a picture again with both halves of its B-LoRA, and compare the two.

    Args:
        pipe: the teaching model, from `load_pipeline`; afterwards it is the plain model.
        picture: that the B-LoRA was trained on; its middle square is compared.
        prompt: that it was trained with.

    Raises:
        ValueError: another pipeline than the teaching model.
        ImageError: the picture cannot be read. BLoRAError: the B-LoRA does not fit the pipeline.
    """
    if not is_teaching_model(pipe):
        raise ValueError(
            "Only pictures of the teaching model can be compared pixel by pixel. For SDXL use "
            "scorer_for(pipe), which compares what they show and how they look."
        )
    with pipeline_lock(pipe):
        apply(pipe, blora, blora)
        try:
            image = sample(pipe, prompt, (seed,), progress=False)[0]
        finally:
            remove(pipe)
    square = centre_square(read_with_remarks(picture)[0], image.width)
    original, drawn = (np.asarray(one, np.float64) / 255 for one in (square, image))
    flat = np.broadcast_to(original.mean((0, 1)), original.shape)
    return Rebuilt(image, psnr(drawn, original), psnr(flat, original))


def rebuilt_in_words(
    pipe: "StableDiffusionXLPipeline", blora: BLoRA, picture: str | Path | Image.Image, prompt: str
) -> str:
    """A sentence on how near a B-LoRA that was just trained comes to its picture; see `rebuild`."""
    try:
        with warnings.catch_warnings():
            # given before the training
            warnings.simplefilter("ignore", PromptWarning)
            warnings.simplefilter("ignore", PipelineWarning)
            return f"It is {rebuild(pipe, blora, picture, prompt)}"
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return f"It could not be drawn again for comparison: {error}"


def psnr(drawn: np.ndarray, original: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of arrays of the same shape, with values from 0 to 1.

    At most 100 dB, where nothing differs.
    """
    return float(-10 * np.log10(max(np.square(drawn - original).mean(), 1e-10)))
