"""What can be said about a picture of the world: nouns, named styles, words for attributes, and captions made of them."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from world.painting import place
from world.samples import Shapes
from world.styles import NAMED_STYLES, named_style

EMOJI_SETS = (
    "fluent-emoji-flat",
    "noto",
    "noto-v1",
)  # the first that has a drawing of a noun shows what it means
NO_NOUNS = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "unicorn-1"}
SAME_THING = {
    "red-heart": "heart",
    "evergreen-tree": "tree",
    "deciduous-tree": "tree",
    "crescent-moon": "moon",
    "sailboat": "boat",
    "automobile": "car",
    "red-apple": "apple",
    "teacup-without-handle": "cup",
    "hibiscus": "flower",
    "house-building": "house",
    "tropical-fish": "fish",
    "bird": "bird",
    "smiling-face": "smiley",
    "hot-beverage": "coffee",
    "banana": "banana",
}
COLOURS = {
    "red": "#d8242c",
    "orange": "#f58a1e",
    "yellow": "#f8d92e",
    "green": "#2f9e44",
    "teal": "#14958f",
    "blue": "#2456d0",
    "purple": "#7a34b8",
    "pink": "#f486b8",
    "brown": "#7c4a22",
    "black": "#161616",
    "white": "#fafafa",
    "grey": "#8c8c8c",
}
FILL_WORDS = {"striped": "stripes", "dotted": "dots", "checkered": "checker"}
TEXTURE_WORDS = {
    "hatched": "hatching",
    "halftoned": "halftone",
    "painted": "watercolour",
    "crayoned": "crayon",
    "tiled": "mosaic",
    "pixelated": "pixels",
}
SMALL_WORDS = [
    "a",
    "an",
    "the",
    "in",
    "on",
    "of",
    "style",
    "and",
    "with",
    "picture",
    "drawing",
    "photo",
    "icon",
    "outlined",
    "one",
    "two",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CANONICAL_POSE = (0.8, 0.0, 0.0, 0.0, 1.0)  # scale, shifts, turn, not mirrored


@dataclass(frozen=True)
class Noun:
    """A thing with a name, and the rows of the label maps that show it; the first row is what the word means."""

    name: str
    rows: tuple[int, ...]


def nouns(shapes: Shapes) -> list[Noun]:
    """All things with a name of at most three words that an emoji designer drew."""
    rows: dict[str, list[int]] = {}
    for icon_set in (*EMOJI_SETS, "ph", "lucide"):
        for row, (name, its_set) in enumerate(zip(shapes.names, shapes.sets, strict=True)):
            known = name in rows
            if (
                its_set == icon_set
                and (known or icon_set in EMOJI_SETS)
                and name not in NO_NOUNS
                and name.count("-") < 3
            ):
                rows.setdefault(name, []).append(row)
    found = {name.replace("-", " "): tuple(its) for name, its in sorted(rows.items())}
    for name, word in SAME_THING.items():
        if name in rows and word not in found:
            found[word] = tuple(rows[name])
    return [Noun(name, its) for name, its in sorted(found.items())]


def canonical_shapes(shapes: Shapes, things: list[Noun]) -> Tensor:
    """Each noun's first drawing in the middle of the frame [nouns, 4, 128, 128]."""
    rows = torch.tensor([noun.rows[0] for noun in things])
    return torch.cat(
        [
            place(shapes.coverage[part], torch.tensor([CANONICAL_POSE] * len(part)))
            for part in rows.split(100)
        ]
    )


def shade(colour: str, towards: float, part: float) -> str:
    """A colour #rrggbb moved a part of the way to black (0) or white (255)."""
    return "#" + "".join(
        f"{round(int(colour[i : i + 2], 16) * (1 - part) + towards * part):02x}" for i in (1, 3, 5)
    )


def attribute_style(
    fill: str | None, ground: str | None, outlined: bool, pattern: str | None, texture: str | None
) -> Tensor:
    """The style [NUMBERS] that words like "outlined striped red on blue" describe; white ground, grey thing by default."""
    main, behind = COLOURS[fill or "grey"], COLOURS[ground or "white"]
    light = sum(int(main[i : i + 2], 16) for i in (1, 3, 5)) > 380
    second = shade(main, 0 if light else 255, 0.35)
    line = "#fafafa" if ground == "black" else "#161616"
    fill_area = (
        (FILL_WORDS[pattern], main, shade(main, 0 if light else 255, 0.55), 0.45, 45)
        if pattern
        else ("flat", main)
    )
    return named_style(
        ("flat", behind),
        fill_area,
        second,
        shade(main, 255 if light else 0, 0.5),
        line,
        0.55 if outlined else 0.0,
        texture=TEXTURE_WORDS[texture] if texture else "none",
    )


def style_words(random_: random.Random) -> tuple[str, str, Tensor]:
    """(words before the noun, words after it, the style they mean)."""
    if random_.random() < 0.5:
        name = random_.choice(list(NAMED_STYLES))
        return "", f"in {name} style", NAMED_STYLES[name]
    fill = random_.choice([None, *COLOURS] if random_.random() < 0.3 else list(COLOURS))
    others = [c for c in COLOURS if c != fill]
    ground = random_.choice(others) if random_.random() < 0.6 else None
    outlined, pattern = (
        random_.random() < 0.3,
        random_.choice(list(FILL_WORDS)) if random_.random() < 0.2 else None,
    )
    texture = random_.choice(list(TEXTURE_WORDS)) if random_.random() < 0.2 else None
    if not (fill or ground or outlined or pattern or texture):
        fill = random_.choice(list(COLOURS))
    meaning = attribute_style(fill, ground, outlined, pattern, texture)
    words = " ".join(w for w in ("outlined" * outlined, texture, pattern, fill) if w)
    if (
        ground and random_.random() < 0.5
    ):  # all of it after the noun: "in outlined red on blue style"
        return "", f"in {words + ' ' if words else ''}on {ground} style", meaning
    return words, f"on {ground}" if ground else "", meaning


def caption(things: list[Noun], random_: random.Random) -> tuple[str, int | None, Tensor | None]:
    """(a caption, the number of the noun in it or None, the style it describes or None)."""
    x, y = (f"[{letter}]" for letter in random_.sample(LETTERS, 2))
    noun = random_.randrange(len(things)) if random_.random() < 0.65 else None
    before, after, style = style_words(random_) if random_.random() < 0.6 else ("", "", None)
    if style is None and random_.random() < 0.5:
        after = f"in {y} style"
    thing = x if noun is None else things[noun].name
    start = random_.choice(["A", "A", "A", "A", "a", "The", "", "A drawing of a", "A picture of a"])
    return " ".join(w for w in (start, before, thing, after) if w), noun, style


def vocabulary(things: list[Noun]) -> list[str]:
    """Every word that the text encoders understand."""
    words = [*SMALL_WORDS, *COLOURS, *FILL_WORDS, *TEXTURE_WORDS, *NAMED_STYLES]
    return list(dict.fromkeys(words + [word for noun in things for word in noun.name.split()]))
