"""Fetch openly licensed icons and make label maps: which pixels are main, second, accent, line.

    python data/world/fetch_shapes.py      # needs npm; about four minutes on two cores

Writes outputs/teaching_model/shapes.npz: `coverage` uint8 [shapes, 4, 128, 128], `names`, `sets`,
`held_out`. The icons themselves are not kept in this repository; whose they are stands in
data/open_world/NOTICES.md. Sets that tests of other people use (Twemoji, OpenMoji, game-icons) are
not among them. Held out, whoever drew them: `held_out_names()`.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from world.paths import WORK

SIDE = 128  # pixels of a label map
MAIN, SECOND, ACCENT, LINE = range(4)

# the npm packages @iconify-json/NAME, and their versions
ICON_SETS = {
    "fluent-emoji-flat": "1.2.6",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "ph": "1.2.2",  # Phosphor Icons
    "lucide": "1.2.137",
}
PACKAGE_FILES = ("icons", "metadata")
# people in all skin tones, signs, flags and logos are no drawings of things
LEFT_OUT_WORDS = """
    flag keycap dark light medium skin man men woman women person people girl boy couple family
    kiss holding clock oclock thirty button arrow sign logo arrows caret number letter file square
    circle align text layout panel chart brackets sort list git code folder chevron chevrons move
    corner grid rows columns table signal wifi battery japanese zodiac mark input symbol squares
"""
LEFT_OUT = re.compile(rf"\b({'|'.join(LEFT_OUT_WORDS.split())})\b")
HELD_OUT_CATEGORIES = (
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Travel & Places",
    "Activities",
)


def words(name: str) -> set[str]:
    return set(name.split("-"))


def is_thing(name: str) -> bool:
    return LEFT_OUT.search(name) is None


def fetch(icon_set: str, version: str) -> dict:
    """The package's icons and their categories, read from the archive that npm packs."""
    with tempfile.TemporaryDirectory() as folder:
        package = f"@iconify-json/{icon_set}@{version}"
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            files = {name: archive.extractfile(f"package/{name}.json") for name in PACKAGE_FILES}
            return {name: json.load(file) for name, file in files.items() if file}


def svg(icons: dict, name: str) -> str:
    """One icon of a set as an SVG document."""
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}" '
        f'width="{width}" height="{height}" color="#000000">{icon["body"]}</svg>'
    )


def rasterise(source: str) -> np.ndarray:
    """The drawing fitted into the frame and centred: RGBA, float32 [256, 256, 4] in 0..1."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=source, width=320))
    large = Image.open(io.BytesIO(png)).convert("RGBA")
    box = large.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox()
    if box is None:
        raise ValueError("an empty picture")
    return np.asarray(fitted(large.crop(box)), np.float32) / 255


def fitted(image: Image.Image) -> Image.Image:
    """`image` in the middle of a square of 256 pixels, filling 94 % of it."""
    scale = 2 * SIDE * 0.94 / max(image.size)
    size = [max(1, round(scale * edge)) for edge in image.size]
    square = Image.new(image.mode, (2 * SIDE, 2 * SIDE))
    left, top = ((2 * SIDE - edge) // 2 for edge in size)
    square.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top))
    return square


def clusters(colours: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means centres [≤ count, 3] of colours [n, 3], starting from colours far from each other."""
    sample = colours[rng.choice(len(colours), min(3000, len(colours)), replace=False)]
    centres = [np.median(sample, 0)]
    while len(centres) < count:
        distance = np.min([np.square(sample - c).sum(1) for c in centres], 0)
        if distance.max() < 0.02:
            break
        centres.append(sample[distance.argmax()])
    for _ in range(8):
        nearest = np.square(sample[:, None] - np.array(centres)).sum(2).argmin(1)
        for k in np.unique(nearest):
            centres[k] = sample[nearest == k].mean(0)
    return np.array(centres)


def coloured_coverage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours become main, second and accent, by their area."""
    alpha, colours = pixels[..., 3], pixels[..., :3]
    inside = alpha > 0.5
    centres = clusters(colours[inside], 3, rng)
    nearest = np.square(colours[:, :, None] - centres).sum(3).argmin(2)
    kinds = range(len(centres))
    label = np.stack([ndimage.uniform_filter((nearest == k) * alpha, 5) for k in kinds]).argmax(0)
    by_area = np.argsort([-np.sum((label == k) & inside) for k in kinds])
    coverage = np.zeros((4, *alpha.shape), np.float32)
    for part, k in enumerate(by_area):
        coverage[part] = (label == k) * alpha
    return coverage


def line_coverage(pixels: np.ndarray) -> np.ndarray:
    """A line drawing: its strokes are line, what they enclose is main."""
    line = pixels[..., 3]
    outside = ndimage.label(line < 0.5)[0]
    border = np.unique(np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]]))
    enclosed = ~np.isin(outside, border[border > 0]) & (line < 0.5)
    coverage = np.zeros((4, *line.shape), np.float32)
    # half way under the stroke, so that no gap is left between fill and line
    coverage[MAIN] = ndimage.binary_dilation(enclosed, iterations=2)
    coverage[LINE] = line
    return coverage


def duotone_coverage(pixels: np.ndarray) -> np.ndarray:
    """Phosphor's two tones: the transparent area is main, the strokes are line."""
    alpha = pixels[..., 3]
    coverage = np.zeros((4, *alpha.shape), np.float32)
    coverage[LINE] = np.clip((alpha - 0.2) / 0.8, 0, 1)
    coverage[MAIN] = ndimage.binary_dilation((alpha > 0.1) & (alpha < 0.5), iterations=2)
    return coverage


def silhouette_coverage(pixels: np.ndarray) -> np.ndarray:
    """Everything is main."""
    coverage = np.zeros((4, *pixels.shape[:2]), np.float32)
    coverage[MAIN] = pixels[..., 3]
    return coverage


UNCOLOURED = {"line": line_coverage, "duotone": duotone_coverage, "fill": silhouette_coverage}


def label_map(item: tuple[str, str, str, str]) -> np.ndarray | None:
    """uint8 [4, 128, 128]; None where the drawing shows next to nothing."""
    _, name, kind, source = item
    try:
        pixels = rasterise(source)
    except ValueError:
        return None
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # the same in every run
    coverage = coloured_coverage(pixels, rng) if kind == "colour" else UNCOLOURED[kind](pixels)
    small = coverage.reshape(4, SIDE, 2, SIDE, 2).mean((2, 4))
    if small.sum() < 0.03 * SIDE * SIDE:
        return None
    return (255 * small.clip(0, 1) + 0.5).astype(np.uint8)


def icons_of(icon_set: str, package: dict) -> Iterator[tuple[str, str, str, str]]:
    """Set, name of the thing, kind of drawing and SVG of each icon that is used."""
    icons = package["icons"]
    for name in sorted(icons["icons"]):
        thing, kind = name, "colour"
        if icon_set == "ph":
            ending = name.rsplit("-", 1)[-1]
            if ending not in ("duotone", "fill"):
                continue
            thing, kind = name.removesuffix("-" + ending), ending
        elif icon_set == "lucide":
            kind = "line"
        if is_thing(thing):
            yield icon_set, thing, kind, svg(icons, name)


def letters() -> Iterator[tuple[str, str, np.ndarray]]:
    """Capital letters and digits in matplotlib's DejaVu fonts, as silhouettes."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for font_name in ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono"):
        font = ImageFont.truetype(folder / f"{font_name}.ttf", 220)
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789":
            image = Image.new("L", (400, 400))
            ImageDraw.Draw(image).text((80, 60), letter, 255, font)
            pixels = np.asarray(fitted(image.crop(image.getbbox())), np.float32) / 255
            coverage = np.zeros((4, SIDE, SIDE), np.uint8)
            coverage[MAIN] = 255 * pixels.reshape(SIDE, 2, SIDE, 2).mean((1, 3))
            yield "letters", f"letter-{letter}", coverage


def held_out_names(packages: dict[str, dict]) -> list[str]:
    """Every fifth thing that Fluent and Noto both drew.

    No drawing whose name contains one of them is trained on.
    """
    categories = packages["fluent-emoji-flat"]["metadata"]["categories"]
    common = set(packages["noto"]["icons"]["icons"])
    things = sorted(
        name
        for category in HELD_OUT_CATEGORIES
        for name in categories[category]
        if name in common and is_thing(name) and len(words(name)) <= 2
    )
    return things[3::5]


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    sets = tqdm(ICON_SETS.items(), desc="fetching")
    packages = {icon_set: fetch(icon_set, version) for icon_set, version in sets}
    items = [item for icon_set, package in packages.items() for item in icons_of(icon_set, package)]
    with Pool(os.cpu_count()) as pool:
        made = pool.imap(label_map, items, chunksize=50)
        maps = list(tqdm(made, total=len(items), desc="label maps", mininterval=10))
    kept = []
    for (icon_set, name, *_), coverage in zip(items, maps, strict=True):
        if coverage is not None:
            kept.append((icon_set, name, coverage))
    kept += letters()
    sets, names, coverages = zip(*kept, strict=True)
    held_out = held_out_names(packages)
    is_held_out = [any(words(h) <= words(name) for h in held_out) for name in names]
    part = WORK / "shapes.part.npz"
    np.savez(
        part,
        coverage=np.stack(coverages),
        names=np.array(names),
        sets=np.array(sets),
        held_out=np.array(is_held_out),
    )
    part.rename(WORK / "shapes.npz")
    (WORK / "held_out_names.json").write_text(json.dumps(held_out, indent=1) + "\n")
    print(f"{len(names)} drawings of {len(set(names))} things")
    print(f"held out: {len(held_out)} names, {sum(is_held_out)} drawings")


if __name__ == "__main__":
    main()
