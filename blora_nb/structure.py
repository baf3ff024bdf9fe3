"""Keep a picture's layout while its style changes: start from the picture itself (img2img), or follow its outline (ControlNet)."""

import numpy as np
from PIL import Image, ImageFilter

from .images import centre_square


def outline(picture, resolution):
    """The edges of a picture, white on black: an RGB PIL image of `resolution` × `resolution` pixels.

    How fast the colour changes, after a slight blur, against the fastest change in the picture. It is what the teaching model's
    ControlNet was trained with; ControlNets for SDXL want the preparation that their cards name.
    """
    square = centre_square(picture, resolution).filter(ImageFilter.GaussianBlur(resolution / 96))
    colours = np.asarray(square, dtype=np.float32)
    down, right = np.gradient(colours, axis=(0, 1))
    speed = np.sqrt(down**2 + right**2).max(axis=2)
    edges = (255 * (speed / max(speed.max(), 1e-6)) ** 0.5).round().astype(np.uint8)
    return Image.fromarray(edges).convert("RGB")
