"""Pictures as a person sees them, and what is said of those that are not what they seem."""

import io
import json
import re
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from blora_nb.cli.jobs import plan, read_captions
from blora_nb.errors import ImageError, ImageWarning
from blora_nb.files import image_kinds, images
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import read_image, read_with_remarks, remarks_on_square
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from conftest import ROOT

PICTURE = ROOT / "blora_nb" / "data" / "examples" / "flower_neon.png"
SRGB = ImageCms.createProfile("sRGB")
# the colours of the primaries in the profile connection space (D50), column by column
DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
ADOBE_RGB = (
    (0.60974, 0.31111, 0.01947),
    (0.20528, 0.62567, 0.06087),
    (0.14919, 0.06322, 0.74457),
)


def icc(kind: bytes, tags: dict[bytes, bytes], device=b"mntr", connection=b"XYZ ") -> bytes:
    """A colour profile of version 2, made of its tags."""
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    d50 = struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    header = struct.pack(">I4sI4s", start + len(data), bytes(4), 0x02400000, device)
    header += kind + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50 + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


def xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(primaries, exponent: float) -> bytes:
    colours = {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(exponent))
    return icc(b"RGB ", {b"wtpt": xyz((0.9642, 1, 0.8249)), **colours, **curves})


GREY = icc(b"GRAY", {b"wtpt": xyz((0.9642, 1, 0.8249)), b"kTRC": gamma(1.0)})  # linear light


def cmyk_profile() -> bytes:
    """Of a press whose cyan prints as a grey of lightness 50, and all else as it likes."""
    ramp = bytes(range(256))
    nodes = bytearray()
    for node in range(16):  # black changes fastest
        ink = [node >> 3 & 1, node >> 2 & 1, node >> 1 & 1, node & 1]
        lightness = {(0, 0, 0, 0): 255, (1, 0, 0, 0): 128}.get(tuple(ink), 0)
        nodes += bytes([lightness, 128, 128])
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(nodes) + ramp * 3
    tags = {b"wtpt": xyz((0.9642, 1, 0.8249)), b"A2B0": table}
    return icc(b"CMYK", tags, b"prtr", b"Lab ")


@pytest.mark.parametrize(
    ("ink", "grey"), [((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 0, 0, 255), 0)]
)
def test_the_profile_of_a_press_is_applied(tmp_path, ink, grey):
    image = Image.new("CMYK", (8, 8), ink)
    image.save(tmp_path / "x.tif", icc_profile=cmyk_profile())
    assert all(abs(value - grey) <= 2 for value in read_image(tmp_path / "x.tif").getpixel((4, 4)))


def distance(one, two) -> float:
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).mean())


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB])
@pytest.mark.parametrize("exponent", [2.2, 1.8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(tmp_path, primaries, exponent, mode):
    profile = rgb_profile(primaries, exponent)
    want = Image.open(PICTURE).convert("RGB").resize((64, 64))
    there = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    stored = ImageCms.profileToProfile(want, SRGB, there, renderingIntent=1)
    if mode == "P":  # few colours, so that a palette holds them
        stored = stored.quantize(16).convert("RGB")
        want = ImageCms.profileToProfile(stored, there, SRGB, renderingIntent=1)
    elif mode == "RGBA":
        stored.putalpha(Image.new("L", (64, 64), 255))
        stored.putpixel((0, 0), (0, 0, 0, 0))
    (stored.quantize(16) if mode == "P" else stored).save(tmp_path / "x.png", icc_profile=profile)
    seen = read_image(tmp_path / "x.png")
    assert distance(seen, want) < 1.5 < 3 < distance(stored.convert("RGB"), want)
    assert read_image(seen).tobytes() == seen.tobytes(), "applied once, not at each reading"
    if mode == "RGBA":
        assert seen.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles_are_applied(tmp_path, mode):
    """128 of 255 in linear light is 188 in sRGB."""
    grey = Image.new("L", (8, 8), 128)
    if mode == "LA":
        grey.putalpha(255)
    if mode == "I;16":
        grey = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
    grey.save(tmp_path / "x.png", icc_profile=GREY)
    assert abs(read_image(tmp_path / "x.png").getpixel((4, 4))[0] - 188) <= 1


def test_the_usual_profile_changes_no_bit(tmp_path):
    image = Image.open(PICTURE).convert("RGB").resize((64, 64))
    image.save(tmp_path / "x.png", icc_profile=ImageCms.ImageCmsProfile(SRGB).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)
        assert read_image(tmp_path / "x.png").tobytes() == image.tobytes()


ADOBE = rgb_profile(ADOBE_RGB, 2.2)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"no profile"), ("RGB", GREY), ("CMYK", ADOBE), ("RGB", ADOBE[:200])],
)
def test_a_profile_that_cannot_be_applied_is_said(tmp_path, mode, profile):
    image = Image.open(PICTURE).convert(mode).resize((16, 16))
    image.save(tmp_path / "x.tif", icc_profile=profile)
    with pytest.warns(ImageWarning, match="x.tif has a colour profile .*as sRGB"):
        seen = read_image(tmp_path / "x.tif")
    assert seen.tobytes() == image.convert("RGB").tobytes()


RAMP = np.tile(np.linspace(0, 1, 96), (64, 1)).astype(np.float32)


def with_pixel(values, pixel):
    values = values.copy()
    values[0, 0] = pixel
    return values


@pytest.mark.parametrize(
    ("values", "white"),
    [
        *((with_pixel(RAMP, odd), 1) for odd in (-3, np.nan, np.inf, -np.inf)),
        (RAMP * 1.1 - 0.05, 1),
        (RAMP * 255, 255),
        (RAMP * 256, 255),
        (np.round(RAMP * 255) - 1, 255),
        (RAMP * 65535, 65535),
        (RAMP * 200_000, 200_000),
    ],
)
def test_white_is_the_smallest_usual_value_that_holds_the_brightest(tmp_path, values, white):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.warns(ImageWarning, match=f"floating point .* 0 is .*black and {white} as white"):
        seen = read_image(tmp_path / "x.tif")
    want = np.nan_to_num(values / white, nan=0.0, posinf=1, neginf=0).clip(0, 1) * 255
    assert distance(seen.getchannel(0), want.round()) < 0.6
    assert np.asarray(seen).mean() > 20


def test_what_a_folder_leaves_out_is_named(tmp_path):
    drawing = Image.open(PICTURE).resize((32, 32)).convert("RGB")
    for name in ("a.png", "b.jfif", "c.jpe", "d.apng", "e.mpo"):
        drawing.save(tmp_path / name, format="PNG" if "png" in name else "JPEG")
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
    (tmp_path / "IMG_1.HEIC").write_bytes(heic)
    (tmp_path / "phone.jpeg2").write_bytes(heic)
    (tmp_path / "new.jxl").write_bytes(b"\xff\x0a1234")
    drawing.save(tmp_path / "scan", format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "10_fish").mkdir()
    drawing.save(tmp_path / "10_fish" / "f.png")
    with pytest.warns(ImageWarning) as told:
        found = find_images(tmp_path)
    assert [p.name for p in found] == ["a.png", "b.jfif", "c.jpe", "d.apng", "e.mpo"]
    said = " ".join(str(w.message) for w in told)
    named = ["IMG_1.HEIC, phone.jpeg2; each is a HEIC picture", "pillow-heif", "10_fish"]
    for words in (*named, "new.jxl; it is a JPEG XL", "scan; it is a picture by its content"):
        assert words in said, said
    assert "notes.txt" not in said
    for name, words in (("IMG_1.HEIC", "HEIC picture.*Save it as JPEG"), ("new.jxl", "JPEG XL")):
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / name)
    (tmp_path / "kohya" / "3_cat").mkdir(parents=True)
    drawing.save(tmp_path / "kohya" / "3_cat" / "f.png")
    with pytest.raises(ImageError, match="No picture in .*3_cat.*name one of these folders"):
        find_images(tmp_path / "kohya")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read(tmp_path):
    drawing = Image.open(PICTURE).resize((64, 64)).convert("RGB")
    drawing.save(tmp_path / "x.avif", quality=95)
    assert find_images(tmp_path) == [tmp_path / "x.avif"]
    assert distance(read_image(tmp_path / "x.avif"), drawing) < 6


def test_a_pillow_without_avif_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(image_kinds, "HAS_AVIF", False)
    monkeypatch.setattr(images, "IMAGE_FORMATS", ("PNG", "JPEG"))
    (tmp_path / "x.avif").write_bytes(b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1")
    with pytest.raises(ImageError, match="AVIF picture, which this Pillow does not read"):
        read_image(tmp_path / "x.avif")


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_animations_are_said_to_be_one_picture(tmp_path, name):
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    red.save(tmp_path / name, save_all=True, append_images=[blue, red], lossless=True)
    with pytest.warns(ImageWarning, match=f"{name} is an animation .* the first of 3"):
        assert read_image(tmp_path / name).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("RGB", (1, 1)), ["nothing in it", "enlarged 96.0 times"]),
        (Image.new("RGBA", (96, 96), (255, 0, 0, 0)), ["nothing in it.*255, 255, 255"]),
        (Image.new("L", (200, 96), 7), ["nothing in it"]),
        (Image.open(PICTURE).resize((23, 400)), ["only 23 × 400 .* 4.2 times"]),
        (Image.open(PICTURE).resize((24, 24)), []),
    ],
)
def test_pictures_with_little_in_them_are_said_before_training(pipe, image, words):
    """For a training of one step, the remarks come as warnings."""
    settings = TrainingSettings.for_pipeline(pipe, rank=4, max_train_steps=1, train_batch_size=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(pipe, image, settings, progress=False)
    said = " ".join(str(w.message) for w in told if w.category is ImageWarning)
    for text in words:
        assert re.search(text, said)
    assert bool(said) == bool(words)


def test_nothing_is_said_of_an_ordinary_picture():
    assert remarks_on_square(read_with_remarks(PICTURE)[0], 96) == []


def test_captions_beside_the_pictures_and_doubled_ones_are_said(tmp_path):
    for name in ("a.png", "b.png"):
        Image.open(PICTURE).resize((32, 32)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("A [v] flower")
    with pytest.warns(ImageWarning, match=r"\(a.txt, b.txt\) are not used.*--captions_file"):
        plan(tmp_path, tmp_path / "out", together=True)
    captions = tmp_path / "c.jsonl"
    rows = [{"file_name": name, "text": f"Of {name}"} for name in ("a.png", "b.png", "a.png")]
    captions.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="line 3: a.png has a caption already, in line 1"):
        read_captions(captions, [tmp_path / "a.png", tmp_path / "b.png"])
