"""What a training learns from: the squares of its pictures, and what tells it from another one."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from blora_nb.files.image_folders import find_images
from blora_nb.files.images import (
    centre_square,
    issue_warnings,
    read_with_remarks,
    remarks_on_square,
)
from blora_nb.files.metadata import model_hash
from blora_nb.guards.changed_pipelines import changes
from blora_nb.lora import BLoRA
from blora_nb.registry import options_of
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def class_pictures(settings: TrainingSettings) -> list[Path]:
    """The class pictures of a training with prior preservation; none of one without."""
    folder = settings.class_data_dir
    return find_images(folder) if folder and settings.with_prior_preservation else []


def squares_of(
    pictures: Iterable[str | Path | Image.Image], resolution: int, silent: bool = False
) -> list[Image.Image]:
    """The middle squares of pictures, `resolution` pixels wide: what is learned.

    What a person should know of them is given as an `ImageWarning`, unless `silent`.
    """
    squares = []
    for picture in pictures:
        image, remarks = read_with_remarks(picture)
        name = "The picture" if isinstance(picture, Image.Image) else str(picture)
        if not silent:
            issue_warnings(remarks + remarks_on_square(image, resolution, name))
        squares.append(centre_square(image, resolution))
    return squares


def what_is_learned(
    pipe: "StableDiffusionXLPipeline",
    squares: Sequence[Image.Image],
    prompts: Sequence[str | None] | None = None,
    class_squares: Sequence[Image.Image] = (),
    content: BLoRA | None = None,
) -> dict[str, str | None]:
    """What a B-LoRA was trained on: hashes of pixels, prompts and base model, and the dtype."""
    name, sha256 = model_hash(pipe)
    base = [str(sha256 or name).encode()]
    changed = changes(pipe)
    if changed:
        base.append(json.dumps(changed).encode())
    # their biases and norms are enough to tell two apart
    for model in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        small = [p.detach().cpu().float() for p in model.parameters() if p.ndim == 1]
        base += [p.numpy().tobytes() for p in small]
    dtype = str(pipe.unet.dtype).removeprefix("torch.")
    return {
        "dtype": f"{dtype} {options_of(pipe).get('quantization', 'none')}",
        "picture": _digest(square.tobytes() for square in squares),
        "caption": _digest([json.dumps(prompts).encode()]),
        "set of class pictures": _digest(square.tobytes() for square in class_squares),
        "content half": content.fingerprint if content else None,
        "base model": _digest(base),
    }


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
