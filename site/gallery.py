"""The gallery: the figures of all lessons, and the example pictures, on one page."""

import json
import re
from pathlib import Path

from lessons import Figure, figures, read, title
from PIL import Image
from readme import ROOT, slug

EXAMPLES = sorted((ROOT / "blora_nb" / "data" / "examples").glob("*.png"))
THUMBNAIL = 256  # pixels, of an example picture
FOLDER = "gallery"


def write_gallery(book: Path, notebooks: list[Path]) -> None:
    """Write gallery.md and its pictures into the sources of the book."""
    folder = book / FOLDER
    folder.mkdir()
    parts = [
        "# Gallery",
        "The example pictures, and what the lessons make of them. Press a figure to see the cell"
        " that drew it.",
        "## The example pictures",
        ":::::{div} examples",
        *(example(path, folder) for path in EXAMPLES),
        ":::::",
    ]
    for path in notebooks:
        notebook = read(path)
        captioned = [figure for figure in figures(notebook) if figure.caption]
        shown = [
            show(figure, f"{path.stem}_{number}.png", path.stem, folder)
            for number, figure in enumerate(captioned)
        ]
        parts += [f"## {title(notebook)}", ":::::{div} gallery", *shown, ":::::"]
    (book / "gallery.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def example(path: Path, folder: Path) -> str:
    """An example picture, made small, under its name."""
    with Image.open(path) as picture:
        picture.resize((THUMBNAIL, THUMBNAIL)).save(folder / path.name)
    words = path.stem.replace("_", ", ")
    return f":::{{figure}} {FOLDER}/{path.name}\n:alt: {words}\n\n{words}\n:::"


def show(figure: Figure, name: str, lesson: str, folder: Path) -> str:
    """A figure that leads to its place in the lesson."""
    (folder / name).write_bytes(figure.png)
    alt = json.dumps(figure.caption, ensure_ascii=False)
    place = f"notebooks/{lesson}.html#{slug(figure.heading)}"
    options = f":alt: {alt}\n:target: {place}"
    return f":::{{figure}} {FOLDER}/{name}\n{options}\n\n{in_markdown(figure.caption)}\n:::"


def in_markdown(text: str) -> str:
    """A text as Markdown shows it unchanged."""
    return re.sub(r"([\\\[\]*_`<])", r"\\\1", text)
