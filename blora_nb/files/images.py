"""A picture as a person sees it: upright, opaque, in sRGB; as a square; as a tensor."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from blora_nb.errors import ImageError, ImageWarning, not_there, shown
from blora_nb.files.image_colours import has_wide_values, to_eight_bits, to_srgb
from blora_nb.files.image_kinds import IMAGE_FORMATS, why_unreadable

ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image

MOST_PIXELS = 150_000_000  # half a gigabyte as RGB; known before anything is decoded
MOST_ENLARGED = 4  # times; beyond, the blur is learned
FLAT = 4  # of 255: a smaller difference is no drawing
LITTLE = 0.02  # of the long side; less than this cut off each end is not worth a word


def read_image(source: ImageSource) -> Image.Image:
    """An RGB picture as a person sees it: upright, in sRGB, on white, the first of an animation.

    What was left out or assumed is given as `ImageWarning`s.

    Args:
        source: a path, or a PIL image of any mode.

    Raises:
        ImageError: the file is missing, a folder, empty, truncated, too large or not a picture.
    """
    image, remarks = read_with_remarks(source)
    issue_warnings(remarks)
    return image


def issue_warnings(remarks: list[str]) -> None:
    """Give each remark as an `ImageWarning`."""
    for remark in remarks:
        warnings.warn(remark, ImageWarning, stacklevel=3)


def read_with_remarks(source: ImageSource) -> tuple[Image.Image, list[str]]:
    """Like `read_image`, with the remarks on what was left out or assumed, and no warnings."""
    with opened(source) as image:
        seen, remarks = _as_seen(image)
    name = "The picture" if isinstance(source, Image.Image) else shown(source, 300)
    return seen, [f"{name} {remark}" for remark in remarks]


@contextmanager
def opened(source: ImageSource) -> Iterator[Image.Image]:
    """Inside, a picture file is open and not yet decoded, and its errors are `ImageError`s.

    A PIL image is given as it is, and not closed.
    """
    if not isinstance(source, str | PathLike | Image.Image):
        raise ImageError(
            f"A picture is named by its path or given as a PIL image, not as "
            f"{type(source).__name__}. Image.fromarray(array) makes one of a NumPy array of bytes, "
            "[height, width, 3]."
        )
    name = shown(source, 300)
    try:
        image = source if isinstance(source, Image.Image) else _open_file(Path(source))
        try:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(
                    f"The picture {name} has {image.width} × {image.height} pixels, too many to "
                    "open safely. Save a smaller copy of it."
                )
            yield image
        finally:
            if image is not source:
                image.close()
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The picture {name} is too large to open safely ({error}). Save a smaller copy of it."
        ) from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: its permissions forbid it.") from None
    except Exception as error:  # decoders raise anything when a file is damaged
        reason = None if isinstance(source, Image.Image) else why_unreadable(Path(source))
        if reason:
            raise ImageError(f"{name} cannot be read: it {reason}.") from error
        raise ImageError(
            f"{name} cannot be read as a picture ({shown(error, 200)}). Open it in an image editor "
            "and save it again as PNG."
        ) from error


def _open_file(path: Path) -> Image.Image:
    if path.is_dir():
        raise ImageError(f"{shown(path, 300)} is a folder; name one picture in it.")
    if not path.exists():
        raise ImageError(not_there("picture", path))
    if not path.is_file():
        raise ImageError(f"{shown(path, 300)} is no ordinary file.")
    with warnings.catch_warnings():
        # Pillow takes a large photo for an attack; the limit here is MOST_PIXELS
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=IMAGE_FORMATS)


def _as_seen(file: Image.Image) -> tuple[Image.Image, list[str]]:
    """The RGB picture in an opened file, and remarks that lack their subject."""
    file.load()
    image = file
    with suppress(Exception):  # damaged EXIF data: struct.error, KeyError, TypeError, …
        image = ImageOps.exif_transpose(file)
    frames = 1
    with suppress(Exception):  # damaged further on; the first frame is read already
        frames = getattr(file, "n_frames", 1)
    remarks = []
    if frames > 1 and file.format != "MPO":  # a phone's, which holds other views of the same
        remarks.append(f"is an animation or has pages; the first of {frames} is used.")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    profile = image.info.get("icc_profile")
    if has_wide_values(image):
        image, assumed = to_eight_bits(image)
        remarks += assumed
    if profile:
        image, assumed = to_srgb(image, profile)
        remarks += assumed
    image = image.convert("RGB")
    if alpha:
        image.paste("white", mask=ImageChops.invert(alpha))
    image.info.pop("icc_profile", None)  # so that it is not applied once more
    return image, remarks


def remarks_on_square(image: Image.Image, resolution: int, name: str = "The picture") -> list[str]:
    """Sentences, with the subject `name`, on what is wrong with the middle square of a picture."""
    remarks = []
    side = min(image.size)
    if resolution > MOST_ENLARGED * side:
        remarks.append(
            f"{name} is only {image.width} × {image.height} pixels and is enlarged "
            f"{resolution / side:.1f} times; its blur is learned, too. Take a larger one."
        )
    square = np.asarray(centre_square(image, resolution))
    if _is_of_one_colour(square):
        remarks.append(
            f"{name} has nothing in it: its middle square is of one colour, RGB "
            f"{tuple(square.min(axis=(0, 1)).tolist())} (transparent parts are white). Take "
            "another one."
        )
    elif not _is_of_one_colour(_outside_square(image)):
        where = "left and right of" if image.width > image.height else "above and below"
        remarks.append(
            f"{name} is {image.width} × {image.height} pixels, and only its middle square is "
            f"learned: what is {where} it, {1 - side / max(image.size):.0%} of the picture, is cut "
            "off. Crop it to a square yourself, or add a margin, to choose what is seen."
        )
    return remarks


def _outside_square(image: Image.Image) -> np.ndarray:
    """The pixels on both sides of the middle square; none where next to nothing is cut off."""
    short, long = sorted(image.size)
    cut = (long - short) // 2
    if cut < LITTLE * long:
        cut = 0
    pixels, axis = np.asarray(image), int(image.width > image.height)
    start, _, end = np.split(pixels, [cut, long - cut], axis)
    return np.concatenate([start, end], axis)


def _is_of_one_colour(pixels: np.ndarray) -> bool:
    """Whether pixels [height, width, 3] have the same colour everywhere."""
    return not pixels.size or bool((np.ptp(pixels, axis=(0, 1)) <= FLAT).all())


def centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """The middle of a picture, `resolution` × `resolution` pixels: resized, then cropped."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def pixels_hash(image: Image.Image) -> str:
    """The sha256 of the size and the pixels of a picture."""
    return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()


def to_tensor(image: Image.Image) -> Tensor:
    """float32 [1, 3, height, width] in -1..1, as the VAE takes it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
