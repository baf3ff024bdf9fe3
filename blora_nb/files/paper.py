"""Drawings on paper, photographed: the paper made white, and a margin around the drawing."""

import numpy as np
from PIL import Image, ImageFilter

SMALL = 64  # pixels of the long side, on which the paper is looked at
WIDEST = 9  # of these: a thicker line of grey or black may be taken for a shadow
DARKEST = 0.35  # of the brightest paper: no shadow is darker
COLOURED = 0.08  # how far a colour's shares of red, green and blue may be from the paper's
NEAR, FAR = 3.0, 24.0  # standard deviations, in small pixels, of the smoothing
WHITE = 0.9  # of the paper's brightness: what is at least as bright becomes white


def paper_white(image: Image.Image) -> Image.Image:
    """A photo of a drawing with its paper white: shadows are gone, lines keep their colours.

    The picture is divided by what its paper would look like without the drawing, channel by
    channel, so the colour of the lamp is gone, too. Large areas of grey or black are taken for
    shadows unless they are very dark.

    Args:
        image: RGB, [height, width]; so is what is returned.
    """
    paper = _paper(image).resize(image.size, Image.Resampling.BICUBIC)
    channels = [_divided(*pair) for pair in zip(image.split(), paper.split())]
    return Image.merge("RGB", channels)


def with_margin(image: Image.Image, share: float) -> Image.Image:
    """The whole RGB picture in the middle of a square, with a margin of the colour of its edge.

    Args:
        share: the margin on each side, as a share of the picture's long side; a ValueError if it is
            below 0.
    """
    if share < 0:
        raise ValueError(f"A margin is a share of the long side, 0 or more, not {share}.")
    long = max(image.size)
    side = long + 2 * round(share * long)
    square = Image.new("RGB", (side, side), _edge_colour(image))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _divided(channel: Image.Image, paper: Image.Image) -> Image.Image:
    """One channel of a picture, divided by the paper's."""
    white = WHITE * np.maximum(np.asarray(paper, dtype=np.float32), 1)
    values = np.asarray(channel, dtype=np.float32) / white
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def _paper(image: Image.Image) -> Image.Image:
    """A small RGB picture of the paper alone, long side `SMALL`."""
    width, height = (max(1, round(SMALL * length / max(image.size))) for length in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    # thin lines vanish, edges of shadows stay where they are
    closed = small.filter(ImageFilter.MaxFilter(WIDEST)).filter(ImageFilter.MinFilter(WIDEST))
    colours = np.asarray(closed, dtype=np.float64)
    bare = _is_paper(colours)[..., None].astype(np.float64)
    known = np.concatenate([colours * bare, bare], axis=-1)
    # the neighbourhood decides; where all of it is drawn on, the surroundings do
    known = _smoothed(known, NEAR) + 0.001 * _smoothed(known, FAR)
    smooth = known[..., :3] / known[..., 3:]
    return Image.fromarray(smooth.round().astype(np.uint8))


def _is_paper(colours: np.ndarray) -> np.ndarray:
    """Which pixels [height, width] of colours [height, width, 3] show paper, lit or in shadow."""
    brightness = colours.mean(axis=-1)
    brightest = np.percentile(brightness, 95)
    shares = colours / np.maximum(colours.sum(axis=-1, keepdims=True), 1)
    lit = brightness >= np.median(brightness)
    away = np.abs(shares - np.median(shares[lit], axis=0)).max(axis=-1)
    # the nearest to the paper's colour is paper in any case
    alike = away <= max(COLOURED, away.min())
    found = alike & (brightness >= DARKEST * brightest)
    return found if found.any() else alike


def _smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    """Values [height, width, channels], blurred by a Gaussian; weights reach past the edge."""
    height, width, _ = values.shape
    rows, columns = _gaussian(height, deviation), _gaussian(width, deviation)
    return np.einsum("ij,jkc,lk->ilc", rows, values, columns)


def _gaussian(length: int, deviation: float) -> np.ndarray:
    """A matrix [length, length] that blurs a row of values."""
    places = np.arange(length)
    return np.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))


def _edge_colour(image: Image.Image) -> tuple[int, ...]:
    """The colour, RGB, in the middle of those along the four edges."""
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(edges, axis=0))
