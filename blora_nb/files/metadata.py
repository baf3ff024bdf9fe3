"""What the file of a B-LoRA says about its making: settings, versions, base model, thumbnail."""

import base64
import hashlib
import importlib.metadata
import io
import json
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from blora_nb.files.images import ImageSource, pixels_hash, read_with_remarks
from blora_nb.registry import options_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from blora_nb.settings import TrainingSettings

DECISIVE_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")
LICENCE = "modelspec.license"
MADE_INSTANTLY = "blora_nb.instant_blora"  # in the entry made_by
# with or without a variant, whole or in pieces: diffusion_pytorch_model.fp16.safetensors,
# diffusion_pytorch_model-00001-of-00002.safetensors
UNET_FILE = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.safetensors"
)
THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]{40,400000}={0,2}")


def versions() -> str:
    """The versions of the libraries that decide a result, as JSON."""
    return json.dumps({name: importlib.metadata.version(name) for name in DECISIVE_PACKAGES})


def model_hash(pipe: "StableDiffusionXLPipeline") -> tuple[str, str | None]:
    """The name of a pipeline's base model, and the sha256 of its U-Net's file, if there is one.

    The name is an id on the hub or the name of a folder. Where the U-Net is in several pieces, the
    hash is that of their hashes.
    """
    folder = Path(str(pipe.unet.config.get("_name_or_path") or ""))
    name = str(pipe.config.get("_name_or_path") or folder)
    if Path(name).is_dir():  # where the folder is stays private
        name = Path(name).name
    variant = options_of(pipe).get("variant")
    files = unet_files(folder, variant) or unet_files(folder / "unet", variant)
    hashes = [_weights_hash(file.resolve()) for file in files]
    if len(hashes) > 1:
        return name, hashlib.sha256("".join(hashes).encode()).hexdigest()
    return name, hashes[0] if hashes else None


def unet_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of a U-Net's weights in a folder, the pieces of one variant (None: of no variant).

    Where the variant is not there, diffusers takes the files without one.
    """
    found: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        match = UNET_FILE.fullmatch(file.name)
        if match:
            found.setdefault(match["variant"], []).append(file)
    return found.get(variant) or found.get(None) or next(iter(found.values()), [])


def _weights_hash(file: Path) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", file.name):  # the hub's cache names large files by their hash
        return file.name
    return file_hash(file, file.stat().st_mtime_ns)


@lru_cache
def file_hash(path: Path, modified: int) -> str:
    """The sha256 of a file; computed again when the time of its last change differs."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_metadata(
    pipe: "StableDiffusionXLPipeline",
    settings: "TrainingSettings",
    picture: ImageSource | None = None,
    captions: list[str] | None = None,
) -> dict[str, str]:
    """What `train` writes into the file of a B-LoRA, as far as it can in the ModelSpec standard.

    Args:
        picture: the training picture; without it there is no thumbnail and no hash of its pixels.
        captions: the prompts of the pictures, where they have their own.
    """
    name, sha256 = model_hash(pipe)
    metadata = {
        "training": json.dumps(asdict(settings)),
        "versions": versions(),
        "base_model": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.trigger_phrase": captions[0] if captions else settings.instance_prompt,
        "modelspec.prediction_type": pipe.scheduler.config.get("prediction_type", "epsilon"),
    }
    if captions:
        metadata["captions"] = json.dumps(captions, ensure_ascii=False)
    if sha256:
        metadata["base_model_sha256"] = sha256
    if settings.license:
        metadata[LICENCE] = settings.license
    if picture is not None:
        metadata |= picture_metadata(picture)
    return metadata


def picture_metadata(picture: ImageSource) -> dict[str, str]:
    """A thumbnail (at most 128 pixels) and the sha256 of the pixels that `read_image` gives."""
    image, _ = read_with_remarks(picture)
    sha256 = pixels_hash(image)
    image.thumbnail((128, 128))
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=80)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return {"picture_sha256": sha256, "modelspec.thumbnail": f"data:image/jpeg;base64,{data}"}


def thumbnail(metadata: dict[str, str]) -> Image.Image | None:
    """The small copy of its picture that the file of a B-LoRA may hold; None without one."""
    data = metadata.get("modelspec.thumbnail", "")
    if not THUMBNAIL.fullmatch(data):
        return None
    try:
        file = io.BytesIO(base64.b64decode(data.split(",")[1]))
        with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as opened:
            return read_with_remarks(opened)[0]
    # a damaged one says nothing about the weights
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
