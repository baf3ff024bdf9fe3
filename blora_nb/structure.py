"""Keep the layout of a picture while its style changes: img2img, or ControlNet.

img2img starts from the picture itself (SDEdit, arXiv 2108.01073); ControlNet follows its outline
(arXiv 2302.05543). Both are diffusers' own pipelines, made of the parts of the pipeline that is
there, B-LoRA included.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from blora_nb.assets import DATA
from blora_nb.defaults import native_resolution
from blora_nb.errors import ImageWarning
from blora_nb.files.images import ImageSource, pixels_hash, read_image
from blora_nb.pipeline import dtype_argument, source_errors
from blora_nb.sampling import Sampling

if TYPE_CHECKING:
    from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionXLPipeline

TINY_CONTROLNET = DATA / "tiny_controlnet"
OUTLINE_OF = "outline_of"  # in the `info` of a picture from `outline`: the file it was made from


@dataclass(frozen=True)
class Structure:
    """The pipeline to draw with, and what keeps the layout.

    Attributes:
        pipe: the pipeline itself, or one of its parts for img2img, ControlNet or both.
        arguments: further arguments of its call.
        made_with: entries for the record of the pictures.
    """

    pipe: "DiffusionPipeline"
    arguments: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)


def structure_of(pipe: "StableDiffusionXLPipeline", how: Sampling) -> Structure:
    """The `Structure` that pictures are drawn with.

    Raises:
        ValueError: arguments that do not go together, a strength that leaves no step, or a
            ControlNet of another base model.
        ImageError: a picture that cannot be read.
    """
    missing = None
    if how.controlnet is not None and how.control_image is None:
        missing = "a control_image to follow (on the command line: --outline_of or --control_image)"
    if how.control_image is not None and how.controlnet is None:
        missing = "a controlnet that follows it (the id or folder of one)"
    if missing:
        raise ValueError(f"A ControlNet needs two things; name {missing}, too.")
    if how.image is None and how.controlnet is None:
        return Structure(pipe, {"height": how.height, "width": how.width})
    # takes seconds
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

    size = (how.width or native_resolution(pipe), how.height or native_resolution(pipe))
    arguments: dict[str, Any] = {}
    made_with: dict[str, Any] = {}
    parts = {}
    if how.image is not None:
        if not 0 < how.strength <= 1:
            raise ValueError(
                "The strength must be above 0 (the picture as it is) and at most 1 (nothing of it "
                f"is kept), not {how.strength}."
            )
        steps = how.num_inference_steps or 0
        if int(steps * how.strength) < 1:
            raise ValueError(
                f"A strength of {how.strength} leaves none of the {steps} steps. "
                "Choose a higher strength, or more steps."
            )
        start = fitted(how.image, size)
        arguments |= {"image": start, "strength": how.strength}
        made_with |= {**_record("image", how.image, start), "strength": how.strength}
    if how.controlnet is not None and how.control_image is not None:
        parts["controlnet"] = load_controlnet(pipe, how.controlnet)
        hint = fitted(how.control_image, size)
        scale = {"controlnet_conditioning_scale": how.controlnet_conditioning_scale}
        arguments["image" if how.image is None else "control_image"] = hint
        arguments |= {"width": size[0], "height": size[1], **scale}
        made_with |= {
            **_record("control_image", how.control_image, hint),
            "controlnet": controlnet_name(parts["controlnet"]),
            **scale,
        }
    # of diffusers, of the same parts: from an image, with a ControlNet, or both
    kind = AutoPipelineForImage2Image if how.image is not None else AutoPipelineForText2Image
    guided = kind.from_pipe(pipe, add_watermarker=False, **parts)
    guided.set_progress_bar_config(disable=True)
    return Structure(guided, arguments, made_with)


def load_controlnet(
    pipe: "StableDiffusionXLPipeline", source: "str | Path | ControlNetModel"
) -> "ControlNetModel":
    """A `ControlNetModel` for a pipeline: on its device, in its dtype.

    Args:
        source: the id or folder of one for the base model, or one that is loaded; "tiny" is the
            teaching model's.

    Raises:
        ValueError: it belongs to another base model.
    """
    from diffusers import ControlNetModel

    if isinstance(source, (str, Path)):
        folder = str(TINY_CONTROLNET if str(source) == "tiny" else source)
        options = dtype_argument(pipe.unet.dtype)
        with source_errors(folder, "ControlNet"):
            model = ControlNetModel.from_pretrained(folder, use_safetensors=True, **options)
        model.requires_grad_(False)
    else:
        model = source
    theirs, ours = model.config.cross_attention_dim, pipe.unet.config.cross_attention_dim
    if theirs != ours:
        raise ValueError(
            f"The ControlNet {controlnet_name(model)} belongs to another base model (its text has "
            f"{theirs} numbers a word, that of the base {ours}). For SDXL take one made for SDXL, "
            "for the teaching model one made for it."
        )
    return model.to(pipe.device)


def controlnet_name(model: "ControlNetModel") -> str | None:
    """The folder or id that a ControlNet was loaded from; "tiny" for the teaching model's."""
    name = model.config.get("_name_or_path")
    if name and Path(name) == TINY_CONTROLNET:
        return "tiny"
    return str(name) if name else None


def outline(picture: ImageSource, resolution: int | tuple[int, int]) -> Image.Image:
    """The edges of a picture, white on black: RGB, `resolution` × `resolution` pixels.

    An edge is as bright as the square root of how fast the colour changes there after a slight
    blur, relative to the fastest change in the picture. The teaching model's ControlNet was trained
    with this; ControlNets for SDXL want the preparation that their cards name.

    Args:
        picture: a path or PIL image, of which the middle is used.
        resolution: also (width, height).
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    blurred = fitted(picture, size).filter(ImageFilter.GaussianBlur(min(size) / 96))
    down, right = np.gradient(np.asarray(blurred, dtype=np.float32), axis=(0, 1))
    change = np.sqrt(down**2 + right**2).max(axis=2)  # [height, width], over the colours
    edges = 255 * (change / max(change.max(), 1e-6)) ** 0.5
    drawn = Image.fromarray(edges.round().astype(np.uint8)).convert("RGB")
    if not isinstance(picture, Image.Image):
        drawn.info[OUTLINE_OF] = str(picture)
    return drawn


def fitted(picture: ImageSource, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture (path or PIL image) at this (width, height) in pixels.

    What is cut off is said in a warning.
    """
    image, (width, height) = read_image(picture), size
    wider = (image.width / image.height) / (width / height)
    left_out = 1 - min(wider, 1 / wider)
    if left_out > 0.02:
        warnings.warn(
            f"The picture is {image.width} × {image.height} and {width} × {height} pixels are "
            f"drawn: {left_out:.0%} of it, at two sides, is left out.",
            ImageWarning,
            stacklevel=2,
        )
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def _record(name: str, given: ImageSource, used: Image.Image) -> dict[str, str]:
    """What a record says of an input picture: a hash of the pixels used, and its file if known."""
    found = {f"{name}_sha256": pixels_hash(used)}
    if not isinstance(given, Image.Image):
        found[name] = os.fspath(given)
    elif OUTLINE_OF in given.info:
        found[OUTLINE_OF] = given.info[OUTLINE_OF]
    return found
