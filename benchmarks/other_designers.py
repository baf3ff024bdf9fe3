"""Drawings by designers whom the teaching model has never met: do they work as one's own would?

    python benchmarks/other_designers.py    # needs npm, resvg-py and scipy; eight minutes

Twemoji, OpenMoji and Game-icons.net take no part in any training and in no choice of a setting.
Twenty-two of their drawings are chosen by lot, once: of the two emoji sets among animals, food,
objects, places and activities. About half of the emoji stand on white, the rest on a colour by lot;
the icons of Game-icons.net, which are silhouettes, get a colour of their own. What is measured is
said in `own_pictures.py`.

Writes other_designers.md and .json, and outputs/other_designers.png to look at: the drawings are
not the project's (Twemoji CC BY 4.0, OpenMoji CC BY-SA 4.0, Game-icons.net CC BY 3.0), so no
picture of them is kept.
"""

import io
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from blora_nb import load_pipeline
from own_pictures import measure
from report import OUTPUTS, fingerprint, write
from world.fetch_shapes import HELD_OUT_CATEGORIES, fetch, is_thing, svg
from world.styles import colours, far_from

SEED = 0
SIDE = 512  # pixels
VERSIONS = {"twemoji": "1.2.5", "openmoji": "1.2.29", "game-icons": "1.2.4"}
COUNTS = {"twemoji": 9, "openmoji": 9, "game-icons": 4}


def things(package: dict) -> list[str]:
    """The names of a set's drawings of things; a set without categories has nothing else."""
    wanted = {category.replace(" & ", " ") for category in HELD_OUT_CATEGORIES}
    categories = package["metadata"].get("categories")
    if not categories:
        return sorted(package["icons"]["icons"])
    names = set()
    for category, members in categories.items():
        if category.replace(" & ", " ") in wanted:
            names.update(members)
    return sorted(name for name in names if is_thing(name) and name in package["icons"]["icons"])


def as_hex(colour: torch.Tensor) -> str:
    """A colour [3] in -1..1 as #rrggbb."""
    return "#" + bytes(((colour + 1) * 127.5).round().byte().tolist()).hex()


def picture(source: str, ground: str, ink: str) -> Image.Image:
    """An SVG on a square of one colour; what has no colour gets `ink`."""
    import resvg_py

    source = source.replace('color="#000000"', f'color="{ink}"')
    inner = round(0.8 * SIDE)
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=source, width=inner))))
    square = Image.new("RGBA", (SIDE, SIDE), ground)
    square.alpha_composite(drawn.convert("RGBA"), ((SIDE - inner) // 2, (SIDE - drawn.height) // 2))
    return square.convert("RGB")


def draw_lots() -> dict[str, Image.Image]:
    """The chosen drawings, by set and name."""
    lots = random.Random(SEED)
    generator = torch.Generator().manual_seed(SEED)
    named = {}
    for icon_set, version in tqdm(VERSIONS.items(), desc="fetching"):
        package = fetch(icon_set, version)
        for name in lots.sample(things(package), COUNTS[icon_set]):
            ground = colours(1, generator)
            ink = as_hex(far_from(ground)[0])
            on_white = icon_set != "game-icons" and lots.random() < 0.5
            source = svg(package["icons"], name)
            background = "#ffffff" if on_white else as_hex(ground[0])
            named[f"{name} ({icon_set})"] = picture(source, background, ink)
    return named


def main() -> None:
    result = measure(load_pipeline("tiny", device="cpu"), draw_lots())
    OUTPUTS.mkdir(exist_ok=True)
    result.figure().savefig(OUTPUTS / "other_designers.png")
    text = f"""# Drawings by designers whom the teaching model has never met

Made by `python benchmarks/other_designers.py`, with the default settings. {result.in_words()} \
A silhouette is what differs from the colour of the border, a palette a histogram of colours; both \
are compared with those of all the pictures.

{result.table()}
"""
    psnr = [round(rebuilt.psnr, 2) for rebuilt in result.rebuilt]
    gains = [round(float(gain), 2) for gain in result.gains]
    results = {"names": result.names, "rebuilt dB": psnr, "above one colour": gains}
    results |= {"silhouette and palette found": result.found, "model": fingerprint()}
    write("other_designers", text, results)


if __name__ == "__main__":
    main()
