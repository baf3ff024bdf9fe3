"""Which files are pictures that are read here, by name and content; and what to do about others."""

from pathlib import Path

from PIL import features

HAS_AVIF = bool(features.check("avif"))
SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
SUFFIXES |= {".webp", ".bmp", ".gif", ".tif", ".tiff"}
# no others: some of Pillow's decoders start programs
IMAGE_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
if HAS_AVIF:
    SUFFIXES |= {".avif", ".avifs"}
    IMAGE_FORMATS += ("AVIF",)

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
UNREADABLE = {
    **dict.fromkeys((".jp2", ".j2k", ".psd", ".svg", ".tga", ".ico", ".icns", ".ppm"), OTHER),
    **dict.fromkeys((".pgm", ".exr", ".hdr", ".dds", ".dng", ".cr2", ".cr3", ".nef"), OTHER),
    **dict.fromkeys((".arw", ".orf", ".rw2", ".raf", ".xcf", ".kra", ".qoi", ".eps"), OTHER),
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics"), HEIC),
    ".jxl": JXL,
}

AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")


def why_unreadable(path: Path) -> str | None:
    """What a picture of a kind that is not read here is, and what to do; None for any other file.

    The content decides, or else the name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        start = b""
    # those that an ISO media file (HEIC, AVIF, MP4) names at its beginning
    brands = start[8:12] + start[16:] if start[4:8] == b"ftyp" else b""
    if any(brand in brands for brand in AVIF_BRANDS):
        return None if HAS_AVIF else AVIF
    if any(brand in brands for brand in HEIC_BRANDS):
        return HEIC
    if start.startswith(JXL_SIGNATURES):
        return JXL
    return UNREADABLE.get(path.suffix.lower())
