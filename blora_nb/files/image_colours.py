"""Wide grey values and colour profiles, brought to eight bits in sRGB."""

import io

import numpy as np
from PIL import Image, ImageCms

from blora_nb.errors import shown

WHITES = (1, 255, 65535)  # the value of white in the files of common programs
OVERSHOOT = 1.1  # times white: resampling makes edges brighter
GREY_MODES = ("1", "L", "LA", "La")
AS_SRGB = "its colours are taken as they are, as sRGB."


def has_wide_values(image: Image.Image) -> bool:
    """Whether the grey values of a picture have 16 or 32 bits, or are floating point numbers."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_eight_bits(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture of wide grey values, brought to 0..255; and what was assumed."""
    values = np.asarray(image, dtype=np.float64)
    highest = values.max(initial=0, where=np.isfinite(values))
    # the smallest usual one that holds the brightest value
    white = next((white for white in WHITES if highest <= OVERSHOOT * white), highest)
    remarks = []
    if image.mode.startswith("I;16"):
        white = 65535
        if highest < white / 8:
            remarks.append(
                f"has 16-bit grey values of at most {highest:.0f} of 65535, so it is nearly black; "
                "if that is not meant, stretch its brightness in an image editor."
            )
    # NaN becomes black; infinities become black or white
    share = np.nan_to_num(values).clip(0, white) / white
    eight_bits = Image.fromarray((share * 255).round().astype(np.uint8))
    if image.mode == "F":
        assumed = f"0 is taken as black and {white:.6g} as white"
        remarks.append(f"holds floating point numbers, of which {assumed}.")
    return eight_bits, remarks


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
