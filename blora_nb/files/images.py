"""A picture in (upright, opaque, in sRGB, cropped, with clear errors) and one out (safe names).

What a person should know about a picture, and what is no error, is a remark: a sentence that
`read_image` gives as an `ImageWarning`, and `read_with_remarks` beside the picture.
"""

import io
import json
import re
import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps, PngImagePlugin, features

from blora_nb.errors import BLoRAError, ImageError, ImageWarning, parse_json, shown
from blora_nb.files.safe_files import complete_file

SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
SUFFIXES |= {".webp", ".bmp", ".gif", ".tif", ".tiff"}
# no others: some of Pillow's decoders start programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
if features.check("avif"):
    SUFFIXES |= {".avif", ".avifs"}
    FORMATS += ("AVIF",)
MOST_PIXELS = 150_000_000  # half a gigabyte as RGB; known before anything is decoded
# no file names on Windows
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
RANGES = (1, 255, 65535, 2**31 - 1)  # what white is in the files of usual programs
MOST_EXPOSED = 16  # times white: four stops
MOST_ENLARGED = 4  # times; beyond, what is learnt is the blur
FLAT = 4  # of 255: less of a difference is no drawing
AS_SRGB = "its colours are taken as they are, as sRGB."

CONVERT = "Save it as PNG or JPEG in an image editor"
HEIC = (
    "is a HEIC picture, which Pillow does not read. Save it as JPEG: on an iPhone by sharing it as "
    '"Most Compatible", elsewhere in an image viewer, or in Python with the package pillow-heif '
    "(pip install pillow-heif)"
)
JXL = (
    "is a JPEG XL picture, which Pillow does not read. Save it as PNG, for instance with the "
    "program djxl: djxl IN.jxl OUT.png"
)
AVIF = (
    "is an AVIF picture, which this Pillow does not read. Install a newer one "
    f"(pip install -U pillow), or: {CONVERT}"
)
OTHER = f"is a picture of a kind that is not read here. {CONVERT}"
FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics"), HEIC),
    ".jxl": JXL,
    **({} if ".avif" in SUFFIXES else dict.fromkeys((".avif", ".avifs"), AVIF)),
    **dict.fromkeys((".jp2", ".j2k", ".psd", ".svg", ".tga", ".ico", ".icns", ".ppm"), OTHER),
    **dict.fromkeys((".pgm", ".exr", ".hdr", ".dds", ".dng", ".cr2", ".cr3", ".nef"), OTHER),
    **dict.fromkeys((".arw", ".orf", ".rw2", ".raf", ".xcf", ".kra", ".qoi", ".eps"), OTHER),
}
NO_PICTURES = {".txt", ".caption", ".json", ".jsonl", ".csv", ".npz", ".md", ".zip", ".safetensors"}


def read_image(source) -> Image.Image:
    """An RGB picture as a person sees it: upright, in sRGB, on white, the first of an animation.

    Args:
        source: a path, or a PIL image of any mode.

    What is worth a remark (see `read_with_remarks`) is given as an `ImageWarning`.

    Raises:
        ImageError: the file is missing, a folder, empty, truncated, too large or not a picture.
    """
    image, remarks = read_with_remarks(source)
    tell(remarks)
    return image


def tell(remarks: list[str]) -> None:
    """Give each remark as an `ImageWarning`."""
    for remark in remarks:
        warnings.warn(remark, ImageWarning, stacklevel=3)


def read_with_remarks(source) -> tuple[Image.Image, list[str]]:
    """What `read_image` gives, and sentences on what was left out or assumed, not as warnings."""
    opened = image = source if isinstance(source, Image.Image) else _opened(source)
    name = "The picture" if isinstance(source, Image.Image) else shown(source, 300)
    remarks = []
    try:
        _check_pixels(image, source)
        image.load()
        image = _upright(image)
        if (frames := _frames(opened)) > 1:
            remarks.append(f"{name} is an animation or has pages; the first of {frames} is used.")
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        profile = image.info.get("icc_profile")
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image, said = _eight_bits(image)
            remarks += [f"{name} {text}" for text in said]
        if profile:
            image, said = _managed(image, profile)
            remarks += [f"{name} {text}" for text in said]
        image = image.convert("RGB")
        if alpha:
            image.paste("white", mask=ImageChops.invert(alpha))
        image.info.pop("icc_profile", None)  # so that it is not applied once more
        return image, remarks
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything when a file is damaged
        raise _unreadable(source, error) from error
    finally:
        if opened is not source:
            opened.close()


def remarks_on_square(image: Image.Image, resolution: int, name="The picture") -> list[str]:
    """Sentences on what is wrong with the middle square of a picture, for before it is learnt.

    Args:
        image: from `read_image`. resolution: the side of the square in pixels.
    """
    remarks = []
    side = min(image.size)
    if resolution > MOST_ENLARGED * side:
        remarks.append(
            f"{name} is only {image.width} × {image.height} pixels and is enlarged "
            f"{resolution / side:.1f} times; its blur is learnt, too. Take a larger one."
        )
    extrema = centre_square(image, resolution).getextrema()
    if all(high - low <= FLAT for low, high in extrema):
        remarks.append(
            f"{name} has nothing in it: its middle square is of one colour, RGB "
            f"{tuple(low for low, _ in extrema)} (transparent parts are white). Take another one."
        )
    return remarks


def _frames(image) -> int:
    """How many frames or pages a picture has; 1 for a phone's MPO, whose others are no frames."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # as the damage has it; the first frame is read already
        return 1


def _check_pixels(image, source):
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(
            f"The picture {shown(source, 300)} has {image.width} × {image.height} pixels, "
            "too many to open safely. Save a smaller copy of it."
        )


def _opened(path):
    """The picture file, opened and not yet decoded."""
    try:
        path = Path(path)
        if path.is_dir():
            raise ImageError(f"{shown(path, 300)} is a folder; name one picture in it.")
        if not path.exists():
            raise ImageError(
                f"There is no picture {shown(path, 300)}. Check the path (it is read from "
                f"{Path.cwd()})."
            )
        if not path.is_file():
            raise ImageError(f"{shown(path, 300)} is no ordinary file.")
        with warnings.catch_warnings():
            # Pillow takes a large photo for an attack; the limit here is MOST_PIXELS
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The picture {shown(path, 300)} is too large to open safely ({error}). "
            "Save a smaller copy of it."
        ) from None
    except PermissionError:
        name = shown(path, 300)
        raise ImageError(f"{name} may not be read: its permissions forbid it.") from None
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _unreadable(source, error):
    if not isinstance(source, Image.Image) and (foreign := foreign_kind(Path(source))):
        return ImageError(f"{shown(source, 300)} cannot be read: it {foreign}.")
    return ImageError(
        f"{shown(source, 300)} cannot be read as a picture ({shown(error, 200)}). "
        "Open it in an image editor and save it again as PNG."
    )


def beginning(path: Path) -> bytes:
    """The first 32 bytes of a file; none where it may not be read."""
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError:
        return b""


def foreign_kind(path: Path) -> str | None:
    """What a picture of a kind that is not read here is, and what to do; None for any other file.

    Told by its content, or else by its name.
    """
    start = beginning(path)
    if start[4:8] == b"ftyp":
        brands = start[8:12] + start[16:]
        if b"avif" in brands or b"avis" in brands:
            return None if ".avif" in SUFFIXES else AVIF
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")):
            return HEIC
    if start[:2] == b"\xff\x0a" or start[:12] == b"\x00\x00\x00\x0cJXL \r\n\x87\n":
        return JXL
    return FOREIGN.get(path.suffix.lower())


def has_pictures_beginning(path: Path) -> bool:
    """Whether a file begins as one of the pictures that are read here, whatever its name."""
    start = beginning(path)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    avif = ".avif" in SUFFIXES and start[4:8] == b"ftyp" and b"avif" in start[8:]
    plain = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")
    return webp or avif or start.startswith(plain)


def _upright(image):
    """The picture turned as its EXIF data says; where these are damaged, as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # struct.error, KeyError, TypeError, …, as the damage has it
        return image


def _eight_bits(image) -> tuple[Image.Image, list[str]]:
    """Grey values of 16 or 32 bits, or floating point, brought to 0..255; and what was assumed."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values / 65535 * 255).round().astype(np.uint8)), []
    white = white_of(values, RANGES if image.mode == "F" else RANGES[1:])
    # what is no number is black, the infinities are as far out as they can be
    inside = np.nan_to_num(values, nan=0.0).clip(0, white)
    eight = Image.fromarray((inside / white * 255).round().astype(np.uint8))
    odd = [
        f"{count} {what}"
        for count, what in (
            (int((values < 0).sum()), "below 0, taken as black"),
            (int((values > white).sum()), "above, taken as white"),
            (int(np.isnan(values).sum()), "no numbers, taken as black"),
        )
        if count
    ]
    if image.mode == "I" and not odd:
        return eight, []
    kind = "floating point numbers" if image.mode == "F" else "whole numbers of 32 bits"
    outside = f"; of its {values.size} pixels are {', '.join(odd)}" if odd else ""
    return eight, [f"holds {kind}, of which 0 is taken as black and {white:.6g} as white{outside}."]


def white_of(values: np.ndarray, ranges=RANGES) -> float:
    """Which value is white: the end of the smallest usual range that holds the picture.

    A few pixels say nothing: highlights and ringing go beyond the range as a matter of course. So
    the brightest twentieth is left out, and what is not above 0 or no number. Scene-referred
    pictures (HDR) have large highlights, or are bright as a whole; they are told by a median within
    0..1, or by values that would be next to black in 0..255. One of whole numbers is none of them.
    """
    seen = np.sort(values[np.isfinite(values) & (values > 0)])
    if not seen.size:
        return ranges[0]
    left_out = min(max(1, seen.size // 20), seen.size - 1)
    high = seen[seen.size - 1 - left_out]
    whole = bool((seen == seen.round()).mean() > 0.99)
    for white in ranges:
        scene = not whole and (np.median(seen) <= 1.1 or high <= MOST_EXPOSED)
        if white == 1 and (scene or high <= 1):
            return white
        if white > 1 and high <= 1.1 * white:
            return white
    return float(high)


def _managed(image, profile: bytes) -> tuple[Image.Image, list[str]]:
    """A picture brought from its colour profile to sRGB; as it is, and why, where that fails.

    Grey pictures may have a profile of grey or of RGB; the colours of a palette are RGB.
    """
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = embedded.profile.xcolor_space.strip()
        mode = {"GRAY": "L", "CMYK": "CMYK", "RGB": "RGB"}.get(space)
        grey, four = image.mode in ("1", "L", "LA", "La"), image.mode in ("CMYK", "LAB")
        fits = {"L": grey, "CMYK": image.mode == "CMYK", "RGB": not four}.get(mode, False)
        if not fits:
            return image, [f"has a colour profile for {space}, being {image.mode}; {AS_SRGB}"]
        to_srgb = ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB" and _is_srgb(to_srgb):
            return image, []
        return to_srgb.apply(image.convert(mode)), []
    except Exception as error:  # PyCMSError, OSError, and ImportError where Pillow has no LittleCMS
        reason = shown(str(error) or type(error).__name__, 100)
        return image, [f"has a colour profile that cannot be applied ({reason}); {AS_SRGB}"]


def _is_srgb(to_srgb) -> bool:
    """Whether a transform changes colours by no more than rounding, and may be left out."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    after = np.asarray(to_srgb.apply(Image.fromarray(cube)), dtype=int)
    return int(np.abs(after - cube).max()) <= 1


def find_images(folder_or_file) -> list[Path]:
    """The picture files in a folder, sorted; hidden files and what is no picture are left out.

    What looks like a picture and is left out is named in an `ImageWarning`.

    Raises:
        ImageError: nothing there, or it may not be looked at.
    """
    path = Path(folder_or_file)
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise ImageError(
                f"There is no file or folder {shown(path, 300)}. Check the path (it is read from "
                f"{Path.cwd()})."
            )
        there = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        files = [p for p in there if p.is_file()]
    except OSError as error:
        raise ImageError(
            f"The folder {shown(path, 300)} cannot be looked into ({error.strerror or error})."
        ) from None
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    left_out = _left_out([p for p in files if p not in found])
    folders = [p.name for p in there if p.is_dir() and _holds_pictures(p)]
    if folders:
        left_out.append(
            f"The pictures in the folders in it ({shown(', '.join(folders), 200)}) are not used; "
            "name one of these folders instead. Repeats, as in 10_fish, have no meaning here."
        )
    if not found:
        more = "".join(f" {text}" for text in left_out)
        raise ImageError(f"No picture in {path}. Supported: {', '.join(sorted(SUFFIXES))}.{more}")
    for text in left_out:
        warnings.warn(f"{path}: {text}", ImageWarning, stacklevel=2)
    return found


def _left_out(files: list[Path]) -> list[str]:
    """Sentences that name the pictures among the files that a folder's reading leaves out."""
    by_reason: dict[str, list[str]] = {}
    for file in files:
        if file.suffix.lower() in NO_PICTURES:
            continue
        reason = foreign_kind(file)
        if reason is None and has_pictures_beginning(file):
            reason = "is a picture by its content; give it an ending that says so"
        if reason:
            by_reason.setdefault(reason, []).append(file.name)
    return [
        f"Left out: {shown(', '.join(names), 300)}; {'each ' if len(names) > 1 else 'it '}{reason}."
        for reason, names in by_reason.items()
    ]


def _holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder; none where it may not be looked into."""
    try:
        there = [p for p in folder.iterdir() if not p.name.startswith(".")]
        return any(p.suffix.lower() in SUFFIXES for p in there)
    except OSError:
        return False


def centre_square(image, resolution):
    """The middle of the picture as a square of `resolution` pixels: the short side is resized, the
    long one cropped.
    """
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def to_tensor(image):
    """float32 [1, 3, height, width] in -1..1, as the VAE wants it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def safe_name(text, longest=120):
    """A file name that every system takes, made from a prompt: "A <c>/cat" becomes "A_c_cat".

    It has at most `longest` bytes.
    """
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
        raise OSError(
            f"Cannot write to the folder {folder} ({error.strerror or error}). Nothing was done "
            "yet; choose another folder."
        ) from None
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
    """Write a picture of `generate` into a folder (made if needed), as PROMPT_seedN.png; the path.

    Its settings are inside, so that `python -m blora_nb generate --like` makes it again. Nothing is
    overwritten: a second one of the name gets -2.

    Raises:
        ImageError: the picture does not know what it was made with.
        OSError: the folder cannot be written to.
    """
    settings = image.info.get("blora_nb", {})
    if "prompt" not in settings:
        raise ImageError(
            "This picture does not know what it was made with; only pictures of generate do. Save "
            "it with its own method: picture.save(…)."
        )
    name = f"{safe_name(settings['prompt'])}_seed{settings['seed']}"
    return save_image(image, free_path(writable_folder(folder), name, ".png"))


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
        raise ImageError(
            f"{shown(path, 300)} has no settings inside; only pictures written by `python -m "
            "blora_nb generate` or `save_picture` have them."
        )
    try:
        return parse_json(text, f"The text field of {path}")
    except BLoRAError as error:
        raise ImageError(str(error)) from None
