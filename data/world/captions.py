"""What can be said about a picture: nouns, named styles, words for attributes, and captions."""

import random
from dataclasses import dataclass
from string import ascii_lowercase

import torch
from torch import Tensor

from blora_nb.course.drawings import COLOURS
from world.painting import place
from world.samples import Shapes
from world.styles import NAMED_STYLES, Area, flat, named_style

# the first set that has a drawing of a noun shows what it means
EMOJI_SETS = ("fluent-emoji-flat", "noto", "noto-v1")
NO_NOUNS = {*"0123456789", "unicorn-1"}
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
FILL_WORDS = {"striped": "stripes", "dotted": "dots", "checkered": "checker"}
TEXTURE_WORDS = {
    "hatched": "hatching",
    "halftoned": "halftone",
    "painted": "watercolour",
    "crayoned": "crayon",
    "tiled": "mosaic",
    "pixelated": "pixels",
}
SMALL_WORDS = ["a", "an", "the", "in", "on", "of", "style", "and", "with"]
SMALL_WORDS += ["picture", "drawing", "photo", "icon", "outlined", "one", "two"]
STARTS = ["A", "A", "A", "A", "a", "The", "", "A drawing of a", "A picture of a"]
CANONICAL_POSE = (0.8, 0.0, 0.0, 0.0, 1.0)  # scale, shifts, turn, not mirrored


@dataclass(frozen=True)
class Noun:
    """A thing with a name, and the rows of the label maps that show it.

    The first row is what the word means.
    """

    name: str
    rows: tuple[int, ...]


def nouns(shapes: Shapes) -> list[Noun]:
    """All things with a name of at most three words that an emoji designer drew."""
    rows: dict[str, list[int]] = {}
    for icon_set in (*EMOJI_SETS, "ph", "lucide"):
        for row, (name, its_set) in enumerate(zip(shapes.names, shapes.sets, strict=True)):
            is_noun = name not in NO_NOUNS and name.count("-") < 3
            known = name in rows or icon_set in EMOJI_SETS
            if its_set == icon_set and is_noun and known:
                rows.setdefault(name, []).append(row)
    found = {name.replace("-", " "): tuple(its) for name, its in sorted(rows.items())}
    for name, word in SAME_THING.items():
        if name in rows and word not in found:
            found[word] = tuple(rows[name])
    return [Noun(name, its) for name, its in sorted(found.items())]


def canonical_shapes(shapes: Shapes, things: list[Noun]) -> Tensor:
    """Each noun's first drawing in the middle of the frame [nouns, 4, 128, 128]."""
    rows = torch.tensor([noun.rows[0] for noun in things])
    poses = torch.tensor([CANONICAL_POSE] * len(rows))
    parts = zip(rows.split(100), poses.split(100))
    return torch.cat([place(shapes.coverage[some], their_poses) for some, their_poses in parts])


def channels(colour: str) -> list[int]:
    """Red, green and blue of a colour #rrggbb, 0..255."""
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def shade(colour: str, target: int, share: float) -> str:
    """A colour #rrggbb moved a share of the way to black (0) or white (255)."""
    moved = [round(value * (1 - share) + target * share) for value in channels(colour)]
    return "#" + "".join(f"{value:02x}" for value in moved)


def attribute_style(
    fill: str | None, ground: str | None, outlined: bool, pattern: str | None, texture: str | None
) -> Tensor:
    """The style [NUMBERS] that words like "outlined striped red on blue" describe.

    By default the ground is white and the thing is grey.
    """
    main = COLOURS[fill or "grey"]
    # the second part and the pattern contrast with the main part, the accent with both
    away, back = (0, 255) if sum(channels(main)) > 380 else (255, 0)
    area = flat(main)
    if pattern:
        area = Area(FILL_WORDS[pattern], main, shade(main, away, 0.55), 0.45, 45)
    line = "#fafafa" if ground == "black" else "#161616"
    return named_style(
        flat(COLOURS[ground or "white"]),
        area,
        (shade(main, away, 0.35), shade(main, back, 0.5), line),
        line_width=0.55 if outlined else 0.0,
        texture=(TEXTURE_WORDS[texture], 0.4) if texture else ("none", 0.0),
    )


def joined(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def style_words(random_: random.Random) -> tuple[str, str, Tensor]:
    """(words before the noun, words after it, the style they mean)."""
    if random_.random() < 0.5:
        name = random_.choice(list(NAMED_STYLES))
        return "", f"in {name} style", NAMED_STYLES[name]
    fill = random_.choice([None, *COLOURS] if random_.random() < 0.3 else list(COLOURS))
    others = [c for c in COLOURS if c != fill]
    ground = random_.choice(others) if random_.random() < 0.6 else None
    outlined = random_.random() < 0.3
    pattern = random_.choice(list(FILL_WORDS)) if random_.random() < 0.2 else None
    texture = random_.choice(list(TEXTURE_WORDS)) if random_.random() < 0.2 else None
    if not (fill or ground or outlined or pattern or texture):
        fill = random_.choice(list(COLOURS))
    meaning = attribute_style(fill, ground, outlined, pattern, texture)
    words = joined("outlined" if outlined else "", texture, pattern, fill)
    if not ground:
        return words, "", meaning
    if random_.random() < 0.5:
        return "", joined("in", words, "on", ground, "style"), meaning
    return words, f"on {ground}", meaning


def caption(things: list[Noun], random_: random.Random) -> tuple[str, int | None, Tensor | None]:
    """A caption, the index of the noun in it or None, and the style it describes or None."""
    x, y = (f"[{letter}]" for letter in random_.sample(ascii_lowercase, 2))
    noun = random_.randrange(len(things)) if random_.random() < 0.65 else None
    before, after, style = style_words(random_) if random_.random() < 0.6 else ("", "", None)
    if style is None and random_.random() < 0.5:
        after = f"in {y} style"
    thing = x if noun is None else things[noun].name
    return joined(random_.choice(STARTS), before, thing, after), noun, style


def vocabulary(things: list[Noun]) -> list[str]:
    """Every word that the text encoders understand."""
    words = [*SMALL_WORDS, *COLOURS, *FILL_WORDS, *TEXTURE_WORDS, *NAMED_STYLES]
    return list(dict.fromkeys(words + [word for noun in things for word in noun.name.split()]))
