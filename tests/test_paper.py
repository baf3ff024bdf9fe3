"""Photos of drawings on paper, and margins around them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blora_nb.files.paper import paper_white, with_margin

WIDTH, HEIGHT = 600, 400
RED, BLUE, BLACK, YELLOW = (220, 40, 40), (40, 80, 220), (20, 20, 20), (250, 210, 40)


def drawing():
    """Lines and two filled shapes on white paper."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    pen.line([(60, 60), (540, 80)], BLACK, 6)
    pen.line([(330, 120), (540, 350)], BLUE, 8)
    pen.ellipse([90, 120, 250, 280], RED, BLACK, 4)
    pen.rectangle([60, 310, 200, 370], YELLOW)
    return image


def photographed(image, seed=0):
    """As a camera sees it: light from the right, a soft shadow, a yellowish lamp, noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = (0.5 + 0.4 * x / WIDTH) * (1 - 0.2 * y / HEIGHT)
    light *= 1 - 0.35 / (1 + np.exp(-(x - 450) / 25))
    seen = np.asarray(image) * light[..., None] * (1, 0.96, 0.86)
    seen += np.random.default_rng(seed).normal(0, 4, seen.shape)
    return Image.fromarray(seen.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pixels():
    """Three arrays [height, width, 3]: the drawing, its photo, and the photo with white paper."""
    photo = photographed(drawing())
    return tuple(np.asarray(i, dtype=float) for i in (drawing(), photo, paper_white(photo)))


def test_shadows_are_gone(pixels):
    clean, photo, whitened = pixels
    paper = (clean == 255).all(axis=-1)
    assert photo[paper].mean() < 170
    assert photo[paper].std() > 20
    assert whitened[paper].mean() > 253
    assert (whitened[paper].min(axis=-1) > 240).mean() > 0.99


@pytest.mark.parametrize("colour", [RED, BLUE, BLACK, YELLOW])
def test_lines_and_shapes_keep_their_colours(pixels, colour):
    clean, photo, whitened = pixels
    drawn = (clean == colour).all(axis=-1)
    away = np.abs(whitened[drawn] - colour).mean()
    assert away < 20
    assert away < np.abs(photo[drawn] - colour).mean()


def test_a_clean_drawing_stays_as_it_is():
    before, after = np.asarray(drawing(), float), np.asarray(paper_white(drawing()), float)
    assert (after[before.min(axis=-1) == 255] == 255).all()
    assert np.abs(after - before).mean() < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (64, 64)])
@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_odd_pictures_are_no_error(size, colour):
    assert paper_white(Image.new("RGB", size, colour)).size == size


def test_a_margin_makes_a_square_in_the_colour_of_the_edge():
    wide = Image.new("RGB", (200, 100), (250, 240, 230))
    wide.paste("navy", (50, 25, 150, 75))
    square = with_margin(wide, 0.1)
    assert square.size == (240, 240)
    assert square.getpixel((0, 0)) == square.getpixel((239, 120)) == (250, 240, 230)
    assert square.crop((20, 70, 220, 170)).tobytes() == wide.tobytes()


def test_no_margin_still_makes_a_square():
    assert with_margin(Image.new("RGB", (30, 50)), 0).size == (50, 50)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        with_margin(Image.new("RGB", (8, 8)), -0.1)
