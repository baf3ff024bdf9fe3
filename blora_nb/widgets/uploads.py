"""Pictures and B-LoRAs out of bytes: what a browser uploads, and what a file of weights holds."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets
from PIL import Image

from blora_nb.errors import BLoRAError, BLoRAWarning, ImageError
from blora_nb.files.images import read_with_remarks
from blora_nb.files.paths import safe_name
from blora_nb.files.safe_files import PICKLES
from blora_nb.files.state_dict_checks import base_of
from blora_nb.guards.changed_pipelines import inner
from blora_nb.lora import BLoRA, check_fits

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

WEIGHTS = ".safetensors"


def take_uploaded(upload: widgets.FileUpload) -> list[tuple[str, bytes]]:
    """(name, content) of what was uploaded, in ipywidgets 7 (a dictionary) as in 8 (a tuple).

    Afterwards the widget is empty, so that the same file, uploaded once more, is a change again.
    """
    value = upload.value
    upload.set_trait("value", type(value)())
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def picture_from_bytes(name: str, content: bytes) -> tuple[Image.Image, list[str]]:
    """The picture in the bytes of a file, and the remarks of `read_with_remarks` on it.

    Errors and remarks call it by its name.

    Raises:
        ImageError: it is no picture, or a damaged one.
    """
    if Path(name).suffix.lower() in PICKLES:
        raise ImageError(
            f"{name} is not opened: such files can run code. Use a picture, or the B-LoRA as a "
            f"{WEIGHTS} file."
        )
    with _as_file(name, safe_name(name), content) as path:
        picture, remarks = read_with_remarks(path)
    return picture, [remark.replace(str(path), name) for remark in remarks]


def blora_from_bytes(name: str, content: bytes, pipe: "StableDiffusionXLPipeline") -> BLoRA:
    """The B-LoRA in the bytes of a safetensors file; errors call it by its name.

    Raises:
        BLoRAError: it is none, a damaged one, or one for another base model.
    """
    with _as_file(name, f"{safe_name(Path(name).stem)}{WEIGHTS}", content) as path:
        blora = load_fitting(path, pipe)
    blora.source = ""
    return blora


def load_fitting(file: Path, pipe: "StableDiffusionXLPipeline") -> BLoRA:
    """A B-LoRA for a pipeline, in memory. What `BLoRA.load` warns of stands only in its notes.

    Raises:
        BLoRAError: the file is none, a damaged one, or one for another base model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        blora = BLoRA.load(file)
    try:
        check_fits(inner(pipe.unet), blora)
    except BLoRAError:
        raise BLoRAError(
            f"{file} was trained on {base_of(blora.state_dict)}, not on the model here. "
            "Use it with a pipeline of its own model, or train its picture here."
        ) from None
    return blora


@contextmanager
def _as_file(name: str, file_name: str, content: bytes) -> Iterator[Path]:
    """A file with this content; errors inside call it by its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name
        path.write_bytes(content)
        try:
            yield path
        except (ImageError, BLoRAError) as error:
            raise type(error)(str(error).replace(str(path), name)) from error
