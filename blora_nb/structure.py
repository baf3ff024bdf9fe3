"""Keep a picture's layout while its style changes: start from the picture itself (img2img), or follow its outline (ControlNet).

Both are diffusers' own pipelines, made of the parts of the one that is there, B-LoRA and all. Sources: SDEdit, arXiv 2108.01073;
ControlNet, arXiv 2302.05543.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from blora_nb.assets import DATA
from blora_nb.defaults import native_resolution
from blora_nb.files.images import centre_square, read_image
from blora_nb.pipeline import dtype_argument, named_source

TINY_CONTROLNET = DATA / "tiny_controlnet"
# diffusers warns whenever a VAE changes its dtype, of an empty list of parts that should not
logging.getLogger("diffusers.models.modeling_utils").addFilter(
    lambda record: "should be kept in float32: []" not in record.getMessage()
)


@dataclass(frozen=True)
class Structure:
    """The pipeline to draw with, and what keeps the layout.

    Attributes:
        pipe: the pipeline itself, or one of its parts for img2img, ControlNet or both.
        arguments: that its call gets in addition. strength: share of the steps that are made. made_with: for the picture's record.
    """

    pipe: object
    arguments: dict
    strength: float = 1.0
    made_with: dict = field(default_factory=dict)

    def steps(self, num_inference_steps):
        """How many of the steps are made: img2img leaves out the first.

        Raises:
            ValueError: none is left.
        """
        made = min(int(num_inference_steps * self.strength), num_inference_steps)
        if made < 1:
            raise ValueError(
                f"A strength of {self.strength} leaves none of the {num_inference_steps} steps. Choose a higher strength, or more steps."
            )
        return made


def structure_of(
    pipe,
    image=None,
    strength=0.6,
    controlnet=None,
    control_image=None,
    controlnet_conditioning_scale=1.0,
    height=None,
    width=None,
):
    """The `Structure` for what `generate` was asked; see `generation.pictures` for the arguments."""
    from diffusers import (
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetPipeline,
        StableDiffusionXLImg2ImgPipeline,
    )

    if (controlnet is None) != (control_image is None):
        missing = (
            "a control_image to follow (on the command line: --outline_of or --control_image)"
            if control_image is None
            else 'a controlnet that follows it ("tiny" for the teaching model)'
        )
        raise ValueError(f"A ControlNet needs two things; name {missing}, too.")
    if image is None and controlnet is None:
        return Structure(pipe, {"height": height, "width": width})
    size = (width or native_resolution(pipe), height or native_resolution(pipe))
    arguments, noted = {}, {}
    if image is not None:
        if not 0 < strength <= 1:
            raise ValueError(
                f"The strength must be above 0 (the picture as it is) and at most 1 (nothing of it is kept), not {strength}."
            )
        arguments |= {"image": fitted(image, size), "strength": strength}
        noted |= note("image", image, arguments["image"]) | {"strength": strength}
    if controlnet is not None:
        controlnet = load_controlnet(pipe, controlnet)
        hint = fitted(control_image, size)
        arguments |= {
            ("control_image" if image is not None else "image"): hint,
            "height": size[1],
            "width": size[0],
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
        }
        noted |= note("control_image", control_image, hint) | {
            "controlnet": controlnet.blora_nb_source,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
        }
    kind = (
        StableDiffusionXLImg2ImgPipeline
        if controlnet is None
        else StableDiffusionXLControlNetPipeline
        if image is None
        else StableDiffusionXLControlNetImg2ImgPipeline
    )
    guided = kind(
        **pipe.components,
        **({"controlnet": controlnet} if controlnet else {}),
        force_zeros_for_empty_prompt=pipe.config.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    guided.set_progress_bar_config(disable=True)
    return Structure(guided, arguments, strength if image is not None else 1.0, noted)


def load_controlnet(pipe, source):
    """A `ControlNetModel` beside a pipeline: on its device, in its dtype.

    Args:
        source: "tiny" (the teaching model's, which follows what `outline` draws), the id or folder of one for SDXL, or one that is loaded.

    Raises:
        ValueError: it belongs to another base model.
    """
    from diffusers import ControlNetModel

    model = source
    if isinstance(source, (str, Path)):
        where = TINY_CONTROLNET if str(source) == "tiny" else source
        with named_source(where, "ControlNet"):
            model = ControlNetModel.from_pretrained(
                where, use_safetensors=True, **dtype_argument(pipe.unet.dtype)
            )
        model.requires_grad_(False)
        model.blora_nb_source = str(source)
    if not hasattr(model, "blora_nb_source"):
        model.blora_nb_source = str(model.config.get("_name_or_path") or "") or None
    theirs, ours = model.config.cross_attention_dim, pipe.unet.config.cross_attention_dim
    if theirs != ours:
        raise ValueError(
            f"The ControlNet {model.blora_nb_source} belongs to another base model (its text has {theirs} numbers a word, that of the base {ours}). For SDXL take one made for SDXL, for the teaching model: tiny"
        )
    return model.to(pipe.device)


def outline(picture, resolution):
    """The edges of a picture, white on black: an RGB PIL image of `resolution` × `resolution` pixels.

    How fast the colour changes, after a slight blur, against the fastest change in the picture. It is what the teaching model's
    ControlNet was trained with; ControlNets for SDXL want the preparation that their cards name.

    Args:
        picture: a path or PIL image, of which the middle square is used.
    """
    square = centre_square(read_image(picture), resolution).filter(
        ImageFilter.GaussianBlur(resolution / 96)
    )
    colours = np.asarray(square, dtype=np.float32)
    down, right = np.gradient(colours, axis=(0, 1))
    speed = np.sqrt(down**2 + right**2).max(axis=2)
    edges = (255 * (speed / max(speed.max(), 1e-6)) ** 0.5).round().astype(np.uint8)
    drawn = Image.fromarray(edges).convert("RGB")
    if isinstance(picture, (str, Path)):
        drawn.info["outline_of"] = str(picture)
    return drawn


def fitted(picture, size):
    """The middle of a picture (path or PIL image) at this (width, height) in pixels."""
    return ImageOps.fit(read_image(picture), size, Image.Resampling.LANCZOS)


def note(name, given, used):
    """What a record says of a picture that went in: its file where it has one, and a hash of the pixels used."""
    found = {f"{name}_sha256": hashlib.sha256(used.tobytes()).hexdigest()}
    if isinstance(given, (str, Path)):
        return found | {name: str(given)}
    return found | ({"outline_of": given.info["outline_of"]} if "outline_of" in given.info else {})
