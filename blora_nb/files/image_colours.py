"""Wide grey values and colour profiles, brought to eight bits in sRGB."""

import io

import numpy as np
from PIL import Image, ImageCms

from blora_nb.errors import shown

WHITES = (1, 255, 65535, 2**31 - 1)  # the value of white in the files of common programs
MOST_EXPOSED = 16  # times white: four stops
GREY_MODES = ("1", "L", "LA", "La")
AS_SRGB = "its colours are taken as they are, as sRGB."


def has_wide_values(image: Image.Image) -> bool:
    """Whether the grey values of a picture have 16 or 32 bits, or are floating point numbers."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_eight_bits(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture of wide grey values, brought to 0..255; and what was assumed."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        return _grey(values / 65535), []
    white = white_of(values, WHITES if image.mode == "F" else WHITES[1:])
    # NaN becomes black; infinities become black or white
    eight_bits = _grey(np.nan_to_num(values, nan=0.0).clip(0, white) / white)
    counts = {
        "below 0, taken as black": (values < 0).sum(),
        "above, taken as white": (values > white).sum(),
        "no numbers, taken as black": np.isnan(values).sum(),
    }
    odd = [f"{count} {what}" for what, count in counts.items() if count]
    if image.mode == "I" and not odd:
        return eight_bits, []
    kind = "floating point numbers" if image.mode == "F" else "whole numbers of 32 bits"
    outside = f"; of its {values.size} pixels are {', '.join(odd)}" if odd else ""
    remark = f"holds {kind}, of which 0 is taken as black and {white:.6g} as white{outside}."
    return eight_bits, [remark]


def _grey(values: np.ndarray) -> Image.Image:
    """A grey picture of values [height, width] in 0..1."""
    return Image.fromarray((values * 255).round().astype(np.uint8))


def white_of(values: np.ndarray, whites: tuple[int, ...] = WHITES) -> float:
    """The value that is white: the end of the smallest usual range that holds the picture.

    Highlights and ringing often go beyond the range, so the brightest twentieth of the pixels is
    left out, and so is what is not above 0 or no number. Scene-referred pictures (HDR) have large
    highlights or are bright as a whole. They are known by a median within 0..1, or by values that
    would be almost black in 0..255; pictures of whole numbers are never scene-referred.

    Args:
        whites: the ends of the usual ranges, ascending.
    """
    seen = np.sort(values[np.isfinite(values) & (values > 0)])
    if not seen.size:
        return whites[0]
    left_out = min(max(1, seen.size // 20), seen.size - 1)
    high = seen[seen.size - 1 - left_out]
    whole_numbers = (seen == seen.round()).mean() > 0.99
    scene_referred = not whole_numbers and (np.median(seen) <= 1.1 or high <= MOST_EXPOSED)
    if 1 in whites and (scene_referred or high <= 1):
        return 1
    for white in whites:
        if white > 1 and high <= 1.1 * white:
            return white
    return float(high)


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, list[str]]:
    """A picture brought from its colour profile to sRGB; unchanged, with the reason, if that fails.

    Grey pictures may have a profile of grey or of RGB; the colours of a palette are RGB.
    """
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = embedded.profile.xcolor_space.strip()
        fits = {
            "GRAY": image.mode in GREY_MODES,
            "CMYK": image.mode == "CMYK",
            "RGB": image.mode not in ("CMYK", "LAB"),
        }
        if not fits.get(space, False):
            return image, [f"has a colour profile for {space}, being {image.mode}; {AS_SRGB}"]
        mode = "L" if space == "GRAY" else space
        transform = ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB" and _changes_nothing(transform):
            return image, []
        return transform.apply(image.convert(mode)), []
    except Exception as error:  # PyCMSError, OSError, and ImportError if Pillow has no LittleCMS
        reason = shown(str(error) or type(error).__name__, 100)
        return image, [f"has a colour profile that cannot be applied ({reason}); {AS_SRGB}"]


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform changes RGB colours by no more than rounding."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    after = np.asarray(transform.apply(Image.fromarray(cube)), dtype=int)
    return bool(np.abs(after - cube).max() <= 1)
