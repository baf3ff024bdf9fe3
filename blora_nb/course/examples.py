"""The example pictures of the course, and a trained B-LoRA for each: a class need not wait."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import cached_assets_path
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.defaults import is_teaching_model
from blora_nb.files.images import read_image
from blora_nb.files.paths import safe_name, writable_folder
from blora_nb.files.safe_files import complete_file
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from blora_nb.training import train

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def example_names() -> list[str]:
    """The names of the example pictures, such as "cat_wood"."""
    return sorted(path.stem for path in (DATA / "examples").glob("*.png"))


def example_picture(name: str) -> Image.Image:
    """An example picture, a PIL image of 1024 x 1024 pixels.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in example_names():
        raise ValueError(f"There is no example {name!r}; there are {', '.join(example_names())}.")
    return read_image(DATA / "examples" / f"{name}.png")


def write_examples(folder: str | Path) -> list[Path]:
    """Copy the example pictures, PNG files of 1024 x 1024 pixels, into a folder.

    Returns:
        The files that were written. A file that is there already stays as it is, and is not named.
    """
    folder = writable_folder(folder)
    written = []
    for name in example_names():
        target = folder / f"{name}.png"
        if not target.exists():
            picture = (DATA / "examples" / target.name).read_bytes()
            with complete_file(target) as part:
                part.write_bytes(picture)
            written.append(target)
    return written


def example_blora(pipe: "StableDiffusionXLPipeline", name: str, afresh: bool = False) -> BLoRA:
    """The B-LoRA of an example picture, for this pipeline.

    For the teaching model it is in the package. For another base model it is trained at the first
    call and kept in the Hugging Face cache, in a folder named after the model:
    ~/.cache/huggingface/assets/blora_nb/bloras, unless HF_ASSETS_CACHE or HF_HOME say otherwise.
    With other default settings it is trained anew.

    Args:
        afresh: train it now in any case, with a progress bar, and keep nothing.

    Raises:
        ValueError: there is no example of this name.
    """
    picture = example_picture(name)
    if afresh:
        return train(pipe, picture)
    folder = DATA / "bloras"
    if not is_teaching_model(pipe):
        base = str(pipe.config._name_or_path)
        trained_with = f"{base} {TrainingSettings.for_pipeline(pipe)}"
        digest = hashlib.sha256(trained_with.encode()).hexdigest()[:12]
        subfolder = safe_name(f"{Path(base).name} {digest}")
        folder = cached_assets_path("blora_nb", namespace="bloras", subfolder=subfolder)
    file = folder / f"{name}.safetensors"
    if not file.exists():
        train(pipe, picture).save(file, dtype=torch.float16)
    return BLoRA.load(file)
