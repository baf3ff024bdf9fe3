"""What a B-LoRA's file says of its making: settings, versions, base model, thumbnail."""

import base64
import hashlib
import importlib.metadata
import io
import json
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from blora_nb.files.images import read_with_remarks

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def versions():
    """The versions of the libraries that decide a result, as JSON."""
    return json.dumps({name: importlib.metadata.version(name) for name in PACKAGES})


def model_hash(pipe):
    """(name, sha256) of a pipeline's base model: its id or folder, and the hash of its U-Net's file; None where there is no file.

    The hub's cache names large files by their hash, so nothing has to be read there.
    """
    folder = Path(str(pipe.unet.config.get("_name_or_path") or ""))
    name = str(pipe.config.get("_name_or_path") or folder)
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(
        (folder / "unet").glob("diffusion_pytorch_model*.safetensors")
    )
    name = (
        Path(name).name if Path(name).is_dir() else name
    )  # where a folder lies is nobody else's business
    if not files:
        return name, None
    stored = files[0].resolve()
    return name, stored.name if re.fullmatch(r"[0-9a-f]{64}", stored.name) else file_hash(
        stored, stored.stat().st_mtime_ns
    )


@lru_cache
def file_hash(path, changed):
    """The sha256 of a file; computed again when the time of its last change is another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_metadata(pipe, settings, picture=None):
    """What `train` puts into a B-LoRA's file: text to text.

    The names that begin with `modelspec.` are those of the ModelSpec standard, which A1111, ComfyUI and their kin show.

    Args:
        settings: a `TrainingSettings`. picture: a path or PIL image; None leaves thumbnail and hash out.
    """
    name, sha256 = model_hash(pipe)
    found = {
        "training": json.dumps(asdict(settings)),
        "versions": versions(),
        "base_model": name,
        "modelspec.sai_model_spec": "1.0.0",
    }
    found |= {
        "modelspec.trigger_phrase": settings.instance_prompt,
        "modelspec.prediction_type": pipe.scheduler.config.get("prediction_type", "epsilon"),
    }
    found |= {"base_model_sha256": sha256} if sha256 else {}
    found |= {"modelspec.license": settings.license} if settings.license else {}
    return found | (picture_metadata(picture) if picture is not None else {})


def picture_metadata(picture):
    """A thumbnail (at most 128 pixels) of a picture and the sha256 of its pixels as `read_image` gives them."""
    picture, _ = read_with_remarks(picture)
    sha256 = hashlib.sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()
    picture.thumbnail((128, 128))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=80)
    return {
        "picture_sha256": sha256,
        "modelspec.thumbnail": "data:image/jpeg;base64,"
        + base64.b64encode(data.getvalue()).decode(),
    }
