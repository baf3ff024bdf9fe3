"""Pictures of one prompt and the same seeds at every checkpoint of a training, to choose one by."""

import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from blora_nb.blocks import HALVES
from blora_nb.errors import TrainingWarning
from blora_nb.files.paths import safe_name
from blora_nb.files.saved_images import save_image
from blora_nb.generation import draw_each, encode
from blora_nb.lora import only_half
from blora_nb.running.checkpoints import checkpoints

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

SHEET = "validation.png"  # the pictures of all checkpoints side by side
SHOWN_AS = {"both": "both halves", "content": "content half", "style": "style half"}
# the end of a picture's name: its seed, and the half that drew it if that was alone
ENDING = re.compile(rf"_seed(-?\d+)(?:_({'|'.join(HALVES)}))?\.png$")


def validation_pictures(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    count: int,
    content_prompt: str | None = None,
    style_prompt: str | None = None,
) -> Callable[["StableDiffusionXLPipeline", Path], None]:
    """A function for `train(on_checkpoint=…)` that draws a prompt into each checkpoint's folder.

    The seeds are always 0, 1, … Side by side the pictures show which checkpoint to take: early ones
    keep the base model's variety, late ones the picture's detail.

        validate = validation_pictures(
            pipe, "A [v]", 4, "A [v] in gold style", "A rocket in [v] style"
        )

    Args:
        prompt: drawn with both halves.
        count: of seeds.
        content_prompt: also drawn, with the content half alone; name another style in it.
        style_prompt: also drawn, with the style half alone; name another object in it. With both of
            these, `checkpoint_scores.score_checkpoints` measures each half by itself.
    """
    prompts = {"": prompt, "content": content_prompt, "style": style_prompt}
    encoded = [
        (half, text, encode(pipe, text)) for half, text in prompts.items() if text is not None
    ]

    def validate(pipe: "StableDiffusionXLPipeline", folder: Path) -> None:
        # the training is worth more than its pictures
        try:
            for half, text, embeds in encoded:
                ending = f"_{half}.png" if half else ".png"
                stem = safe_name(text)
                files = {n: folder / f"{stem}_seed{n}{ending}" for n in range(count)}
                # some may be there from a training that was stopped
                missing = [seed for seed, file in files.items() if not file.exists()]
                with only_half(pipe, half) if half else nullcontext():
                    drawn = draw_each(pipe, embeds, missing, progress=False)
                    for seed, image in zip(missing, drawn):
                        settings = {"prompt": text, "seed": seed}
                        save_image(image, files[seed], settings | ({"half": half} if half else {}))
        except (OSError, MemoryError, ValueError) as error:
            warnings.warn(
                f"The pictures at {folder} could not all be made or written ({error}). "
                "The training goes on.",
                TrainingWarning,
                stacklevel=2,
            )

    return validate


def validated(folder: str | Path) -> dict[Path, list[Path]]:
    """Checkpoint to the pictures made at it, in the order of their seeds; the oldest first.

    Raises:
        FileNotFoundError: there is none with pictures.
    """
    found = {checkpoint: pictures_at(checkpoint) for checkpoint in checkpoints(folder)}
    found = {checkpoint: files for checkpoint, files in found.items() if files}
    if not found:
        raise FileNotFoundError(
            f"{folder} has no checkpoint with pictures. They are made with --validation_prompt, "
            "from Python with train(…, output_dir=…, on_checkpoint=validation_pictures(…))."
        )
    return found


def pictures_by_half(folder: str | Path) -> dict[Path, dict[str, list[Path]]]:
    """Checkpoint to its pictures, with "both" halves, and with "content" and "style" alone.

    The halves alone are there where every checkpoint has pictures of both of them.

    Raises:
        FileNotFoundError: there is no checkpoint with pictures.
    """
    found = {checkpoint: {"both": files} for checkpoint, files in validated(folder).items()}
    apart = {
        checkpoint: {half: pictures_at(checkpoint, half) for half in HALVES} for checkpoint in found
    }
    if all(files for halves in apart.values() for files in halves.values()):
        return {checkpoint: found[checkpoint] | apart[checkpoint] for checkpoint in found}
    return found


def seed_of(picture: Path) -> int:
    """The seed of a picture that was made at a checkpoint, from its file's name."""
    return int(ENDING.search(picture.name)[1])  # type: ignore[index]


def pictures_at(checkpoint: Path, half: str | None = None) -> list[Path]:
    """The pictures made at a checkpoint with both halves, or with one alone, by their seeds.

    Where it has pictures of several prompts, those of the one that was drawn last.
    """
    found = []
    for file in checkpoint.iterdir():
        match = ENDING.search(file.name)
        if match and match[2] == half:
            found.append((file.name[: match.start()], int(match[1]), file))
    if not found:
        return []
    last, *_ = max(found, key=lambda each: each[2].stat().st_mtime_ns)
    return [file for prompt, _, file in sorted(found, key=lambda each: each[1]) if prompt == last]
