"""Pictures as people have them: rotated, transparent, of odd modes, broken; and written out."""

import json

import numpy as np
import pytest
from PIL import Image

from blora_nb.errors import ImageError, ImageWarning
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import centre_square, read_image, to_tensor
from blora_nb.files.paths import free_path, safe_name, writable_folder
from blora_nb.files.saved_images import save_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_colours():
    image = Image.new("RGB", (60, 40), RED)
    # blue on the left
    image.paste(BLUE, (0, 0, 30, 40))
    return image


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    # "rotate by 90 degrees to see it upright"
    exif[0x0112] = 6
    two_colours().save(tmp_path / "photo.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "photo.jpg")
    assert upright.size == (40, 60)
    assert upright.getpixel((20, 5))[2] > 200
    assert upright.getpixel((20, 55))[0] > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 8, 24, 24))
    image.convert(mode).save(tmp_path / "drawing.png")
    seen = read_image(tmp_path / "drawing.png")
    assert seen.mode == "RGB"
    assert seen.getpixel((1, 1)) == (255, 255, 255)
    assert max(seen.getpixel((16, 16))) < 10


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16", "F"])
def test_every_mode_is_read(mode):
    white, dtype = (65535, np.uint16) if mode == "I;16" else (255, np.uint8)
    ramp = Image.fromarray(np.linspace(0, white, 64 * 64).reshape(64, 64).astype(dtype))
    seen = read_image(ramp if mode in ("I;16", "L") else ramp.convert(mode))
    assert seen.mode == "RGB"
    assert len(seen.getcolors(maxcolors=10_000)) > 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((0, 0.5, 1), np.float32),
        ((0, 127.5, 255), np.float32),
        ((0, 128, 255), np.int32),
        ((0, 32896, 65535), np.int32),
        ((0, 2**30, 2**31 - 1), np.int32),
    ],
)
def test_wide_grey_values_are_brought_to_eight_bits(tmp_path, values, dtype):
    Image.fromarray(np.array([values] * 3, dtype=dtype)).save(tmp_path / "x.tif")
    seen = read_image(tmp_path / "x.tif")
    assert [seen.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("name", ["cut.png", "empty.png", "text.png", "missing.png"])
def test_broken_files_are_named(tmp_path, name):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:400])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=name):
        read_image(tmp_path / name)


def test_a_folder_gives_its_pictures_only(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    two_colours().save(tmp_path / "b.png")
    two_colours().save(tmp_path / "a.JPG")
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png"]
    with pytest.raises(ImageError, match="No picture"):
        find_images(tmp_path / ".ipynb_checkpoints")


def test_the_crop_is_the_centre():
    square = centre_square(two_colours(), 20)
    assert square.size == (20, 20)
    assert square.getpixel((1, 10)) == BLUE
    assert square.getpixel((18, 10)) == RED
    pixels = to_tensor(square)
    assert pixels.shape == (1, 3, 20, 20)
    assert pixels.min() == -1
    assert pixels.max() == 1


def test_names_are_safe_and_nothing_is_overwritten(tmp_path):
    name = safe_name("A <c>/[s] in «style» " + "x" * 300)
    assert "/" not in name
    assert "<" not in name
    assert len(safe_name("猫" * 300).encode()) <= 120
    assert safe_name("///") == "picture"
    first = save_image(two_colours(), free_path(tmp_path, name, ".png"), {"prompt": "A <c>"})
    second = free_path(tmp_path, name, ".png")
    assert first.exists()
    assert second != first
    assert json.loads(Image.open(first).text["blora_nb"]) == {"prompt": "A <c>"}
    # no part file left
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Nothing was done yet"):
        writable_folder(tmp_path / "file" / "below")


def test_twelve_bits_in_sixteen_are_said_to_be_dark(tmp_path):
    """As scanners and microscopes write them."""
    values = np.linspace(0, 4080, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "scan.png")
    with pytest.warns(ImageWarning, match="at most 4080 of 65535, so it is nearly black"):
        read_image(tmp_path / "scan.png")


@pytest.mark.parametrize("thing", [np.zeros((8, 8, 3), np.uint8), None, b"bytes"])
def test_what_is_no_picture_is_said_to_be_none(thing):
    with pytest.raises(ImageError, match="named by its path or given as a PIL image, not as"):
        read_image(thing)
