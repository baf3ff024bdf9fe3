"""Draw the example pictures of the course, and a sheet of every object in every style.

python data/draw_examples.py     # writes blora_nb/data/examples and data/overview.png
"""

from pathlib import Path

from PIL import Image

from blora_nb.assets import DATA
from blora_nb.course.drawings import (
    EXAMPLE_SEED,
    EXAMPLES,
    HELD_OUT_STYLES,
    MORE_OBJECTS,
    OBJECTS,
    STYLES,
    draw,
)


def sheet(pictures: list[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """All pictures (of one size) in one image, row by row."""
    size = pictures[0].width
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (columns * (size + gap) - gap, rows * (size + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        image.paste(picture, ((i % columns) * (size + gap), (i // columns) * (size + gap)))
    return image


def main() -> None:
    objects, styles = {**OBJECTS, **MORE_OBJECTS}, {**STYLES, **HELD_OUT_STYLES}
    everything = [draw(o, s, i, 64) for i, o in enumerate(objects) for s in styles]
    overview = sheet(everything, columns=len(styles), gap=2)
    overview = overview.quantize(256, dither=Image.Dither.NONE)
    overview.save(Path(__file__).parent / "overview.png", optimize=True)
    folder = DATA / "examples"
    folder.mkdir(exist_ok=True)
    for object_name, style_name in EXAMPLES:
        picture = draw(object_name, style_name, EXAMPLE_SEED, 1024)
        picture.save(folder / f"{object_name}_{style_name}.png", optimize=True)


if __name__ == "__main__":
    main()
