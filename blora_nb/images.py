"""A picture in (rotation, transparency, crop, clear errors) and a picture out (safe names, nothing overwritten)."""

import json
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, PngImagePlugin

from .files import complete_file
from .formats import BLoRAError, parse_json, shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others: some of Pillow's decoders start programs
MOST_PIXELS = 150_000_000  # half a gigabyte as RGB; known before anything is decoded
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # no file names on Windows


class ImageError(ValueError):
    """A picture that cannot be used; the message says which one, why, and what to do."""


def read_image(source):
    """An RGB picture as a person sees it: EXIF rotation applied, transparent parts on white, the first of an animation.

    Args:
        source: a path, or a PIL image of any mode.

    Raises:
        ImageError: the file is missing, a folder, empty, truncated, too large or not a picture.
    """
    opened = image = source if isinstance(source, Image.Image) else _opened(source)
    try:
        _check_pixels(image, source)
        image.load()
        image = _upright(image)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _eight_bits(image)
        image = image.convert("RGB")
        if alpha:
            image.paste("white", mask=ImageChops.invert(alpha))
        return image
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything when a file is damaged
        raise _unreadable(source, error) from error
    finally:
        if opened is not source:
            opened.close()


def _check_pixels(image, source):
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"The picture {shown(source, 300)} has {image.width} × {image.height} pixels, too many to open safely. Save a smaller copy of it.")


def _opened(path):
    """The picture file, opened and not yet decoded."""
    try:
        path = Path(path)
        if path.is_dir():
            raise ImageError(f"{shown(path, 300)} is a folder; name one picture in it.")
        if not path.exists():
            raise ImageError(f"There is no picture {shown(path, 300)}. Check the path (it is read from {Path.cwd()}).")
        if not path.is_file():
            raise ImageError(f"{shown(path, 300)} is no ordinary file.")
        return Image.open(path, formats=FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"The picture {shown(path, 300)} is too large to open safely ({error}). Save a smaller copy of it.") from None
    except PermissionError:
        raise ImageError(f"{shown(path, 300)} may not be read: its permissions forbid it.") from None
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _unreadable(source, error):
    return ImageError(f"{shown(source, 300)} cannot be read as a picture ({shown(error, 200)}). Open it in an image editor and save it again as PNG.")


def _upright(image):
    """The picture turned as its EXIF data says; damaged EXIF data is no reason to refuse a picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # struct.error, KeyError, TypeError, …, as the damage has it
        return image


def _eight_bits(image):
    """Grey values of 16 or 32 bits, or floating point, brought to 0..255 from the smallest usual range that holds them."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    ranges = (65535,) if image.mode.startswith("I;16") else (255, 65535, 2**31 - 1) if image.mode == "I" else (1, 255, 65535, 2**31 - 1)
    white = next((limit for limit in ranges if values.max() <= limit), values.max())
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))


def find_images(folder_or_file):
    """The picture files in a folder, sorted; hidden files and everything that is no picture are left out.

    Raises:
        ImageError: nothing there, or it may not be looked at.
    """
    path = Path(folder_or_file)
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise ImageError(f"There is no file or folder {shown(path, 300)}. Check the path (it is read from {Path.cwd()}).")
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    except OSError as error:
        raise ImageError(f"The folder {shown(path, 300)} cannot be looked into ({error.strerror or error}).") from None
    if not found:
        raise ImageError(f"No picture in {path}. Supported: {', '.join(sorted(SUFFIXES))}.")
    return found


def centre_square(image, resolution):
    """The middle of the picture as a `resolution` × `resolution` square: the short side is resized, the long one cropped."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS, centering=(0.5, 0.5))


def to_tensor(image):
    """float32 [1, 3, height, width] in -1..1, as the VAE wants it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def safe_name(text, longest=120):
    """A file name of at most `longest` bytes that every system takes, made from a prompt: "A <c>/cat" becomes "A_c_cat"."""
    plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", text)).strip("._-")
    plain = plain.encode()[:longest].decode(errors="ignore").rstrip("._") or "picture"
    return f"picture_{plain}" if RESERVED.fullmatch(plain) else plain


def writable_folder(folder):
    """The folder, made if needed; checked by writing to it before any work is done.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to the folder {folder} ({error.strerror or error}). Nothing was done yet; choose another folder.") from None
    return folder


def free_path(folder, stem, suffix):
    """`folder/stem.suffix`, or with -2, -3, … appended when that exists."""
    folder = Path(folder)
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def save_image(image, path, settings=None):
    """Write a PNG with its settings inside (text field "blora_nb", JSON); complete or not at all.

    Args:
        settings: by default what `generate` has noted on the picture.

    Raises:
        FileExistsError: there is such a file already.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    if settings := settings or image.info.get("blora_nb"):
        info.add_text("blora_nb", json.dumps(settings))
    with complete_file(path) as part:
        image.save(part, format="PNG", pnginfo=info)
    return path


def save_picture(image, folder):
    """Write a picture of `generate` into a folder (made if needed), with its settings inside, as PROMPT_seedN.png; returns the path.

    Nothing is overwritten: a second one of the name gets -2. `python -m blora_nb generate --like` makes it again.

    Raises:
        ImageError: the picture does not know what it was made with. OSError: the folder cannot be written to.
    """
    settings = image.info.get("blora_nb", {})
    if "prompt" not in settings:
        raise ImageError("This picture does not know what it was made with; only pictures of generate do. Save it with its own method: picture.save(…).")
    return save_image(image, free_path(writable_folder(folder), f"{safe_name(settings['prompt'])}_seed{settings['seed']}", ".png"))


def read_settings(path):
    """The settings that `save_image` put into a picture.

    Raises:
        ImageError: no picture, or none with settings in it.
    """
    image = _opened(path)
    try:
        _check_pixels(image, path)
        text = image.text.get("blora_nb") if image.format == "PNG" else None
    except ImageError:
        raise
    except Exception as error:  # damaged text fields
        raise _unreadable(path, error) from error
    finally:
        image.close()
    if text is None:
        raise ImageError(f"{shown(path, 300)} has no settings inside; only pictures written by `python -m blora_nb generate` or `save_picture` have them.")
    try:
        return parse_json(text, f"The text field of {path}")
    except BLoRAError as error:
        raise ImageError(str(error)) from None
