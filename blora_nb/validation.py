"""Pictures of one prompt and the same seeds at every checkpoint of a training, to choose one by."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from blora_nb.files.paths import safe_name
from blora_nb.files.saved_images import save_image
from blora_nb.running.checkpoints import checkpoints

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

SHEET = "validation.png"  # the pictures of all checkpoints side by side
PICTURE = re.compile(r"_seed(-?\d+)\.png$")


def validation_pictures(
    pipe: "StableDiffusionXLPipeline", prompt: str, count: int
) -> Callable[["StableDiffusionXLPipeline", Path], None]:
    """A function for `train(on_checkpoint=…)` that draws a prompt into each checkpoint's folder.

    The seeds are always 0, 1, … Side by side the pictures show which checkpoint to take: early ones
    keep the base model's variety, late ones the picture's detail.

    Args:
        count: of seeds.
    """
    from blora_nb.generation import encode, pictures

    embeds = encode(pipe, prompt, None)

    def validate(pipe: "StableDiffusionXLPipeline", folder: Path) -> None:
        files = {seed: folder / f"{safe_name(prompt)}_seed{seed}.png" for seed in range(count)}
        # some may be there from a training that was stopped
        missing = [seed for seed, file in files.items() if not file.exists()]
        try:
            for seed, image in zip(missing, pictures(pipe, embeds, missing, progress=False)):
                save_image(image, files[seed], {"prompt": prompt, "seed": seed})
        # the training is worth more than its pictures
        except (OSError, MemoryError, ValueError) as error:
            warnings.warn(
                f"The pictures at {folder} could not all be made or written ({error}). "
                "The training goes on.",
                stacklevel=2,
            )

    return validate


def validated(folder: str | Path) -> dict[Path, list[Path]]:
    """Checkpoint to the pictures made at it, in the order of their seeds; the oldest first.

    Raises:
        FileNotFoundError: there is none with pictures.
    """
    found = {}
    for checkpoint in checkpoints(folder):
        matches = ((PICTURE.search(file.name), file) for file in checkpoint.iterdir())
        seeds = {file: int(match[1]) for match, file in matches if match}
        if seeds:
            found[checkpoint] = sorted(seeds, key=lambda file: seeds[file])
    if not found:
        raise FileNotFoundError(
            f"{folder} has no checkpoint with pictures. They are made with --validation_prompt, "
            "from Python with train(…, output_dir=…, on_checkpoint=validation_pictures(…))."
        )
    return found
