"""A style is 65 numbers: random ones for training, named ones for the lessons.

The order of the random draws is part of the world: with another order, the same seed would give
other pictures, and a training that is resumed would go on with them.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATTERNS = (
    "flat",
    "gradient",
    "stripes",
    "grid",
    "dots",
    "checker",
    "planks",
    "stars",
    "waves",
    "rings",
    "zigzag",
    "scales",
)
TEXTURES = ("none", "grain", "hatching", "halftone", "watercolour", "crayon", "mosaic", "pixels")
HELD_OUT_PATTERNS = ("zigzag", "scales")  # no training picture has them
HELD_OUT_HUES = (0.44, 0.50)  # of the main colour: a band of bluish greens

# name and length of each group of numbers: colours are -1..1, one-hot groups 0 or 1, others 0..1
FIELDS = {
    "ground_pattern": len(PATTERNS),
    "ground_1": 3,
    "ground_2": 3,
    "ground_frequency": 1,
    "ground_angle": 2,
    "fill_pattern": len(PATTERNS),
    "main_1": 3,
    "main_2": 3,
    "fill_frequency": 1,
    "fill_angle": 2,
    "second": 3,
    "accent": 3,
    "line": 3,
    "line_width": 1,
    "glow": 1,
    "shadow": 1,
    "texture": len(TEXTURES),
    "texture_strength": 1,
    "texture_size": 1,
    "wobble": 1,
}
NUMBERS = sum(FIELDS.values())
_ENDS = dict(zip(FIELDS, accumulate(FIELDS.values())))


def get(styles: Tensor, field: str) -> Tensor:
    """The numbers of `field` [batch, length] of styles [batch, NUMBERS] (a view)."""
    return styles[:, _ENDS[field] - FIELDS[field] : _ENDS[field]]


def style_from(fields: Mapping[str, Tensor], count: int) -> Tensor:
    """Styles [count, NUMBERS] from one tensor a field; what is missing is zero."""
    styles = torch.zeros(count, NUMBERS)
    for field, values in fields.items():
        get(styles, field).copy_(values)
    return styles


# ---------------------------------------------------------------- random styles


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours [count, 3] in -1..1."""
    offsets = torch.tensor([5.0, 3.0, 1.0])
    k = (offsets + 6 * hue[:, None]) % 6
    colours = value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
    return 2 * colours - 1


def colours(count: int, generator: torch.Generator) -> Tensor:
    """Random colours: half vivid, a quarter pale or dark, a quarter near white, black or grey."""

    def rand() -> Tensor:
        return torch.rand(count, generator=generator)

    hue, kind, a, b = rand(), rand(), rand(), rand()
    vivid, muted = kind < 0.5, kind < 0.75
    saturation = torch.where(muted, 0.15 + 0.5 * a, 0.12 * a * a)
    saturation = torch.where(vivid, 0.6 + 0.4 * a, saturation)
    near_grey = torch.where(b < 0.3, 0.02 + 0.4 * b, 0.6 + 0.4 * b)
    value = torch.where(muted, 0.2 + 0.75 * b, near_grey)
    value = torch.where(vivid, 0.45 + 0.55 * b, value)
    return hsv(hue, saturation, value)


def colours_unlike(others: list[Tensor], least: float, generator: torch.Generator) -> Tensor:
    """Random colours, nearly always at a distance of `least` or more from each of `others`.

    Distances are Euclidean in RGB from -1 to 1: from black to white it is 3.5.
    """
    count = len(others[0])
    best = colours(count, generator)
    for _ in range(6):
        near = torch.stack([(best - other).norm(dim=1) for other in others]).amin(0) < least
        best = torch.where(near[:, None], colours(count, generator), best)
    return best


def hue_of(rgb: Tensor) -> Tensor:
    """Hue in turns of colours [count, 3]."""
    red, green, blue = rgb.unbind(1)
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi) % 1


def one_hot(weights: list[float], count: int, generator: torch.Generator) -> Tensor:
    """Random choices [count, len(weights)], each a row with a single 1."""
    choice = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator)
    return F.one_hot(choice, len(weights)).float()


def angles(count: int, generator: torch.Generator) -> Tensor:
    """Cosine and sine [count, 2] of twice an angle, as a pattern looks the same after half a turn.

    Mostly near 0, 45, 90 or 135 degrees.
    """
    steps = torch.randint(4, (count,), generator=generator) * torch.pi / 4
    exact = torch.rand(count, generator=generator) < 0.5
    jitter = torch.where(exact, 0.0, 0.15 * torch.randn(count, generator=generator))
    return torch.stack([torch.cos(2 * (steps + jitter)), torch.sin(2 * (steps + jitter))], 1)


def pattern_weights(flat: float, gradient: float, other: float) -> list[float]:
    """How often each pattern is drawn in training; those held out never are."""
    weights = {"flat": flat, "gradient": gradient} | dict.fromkeys(HELD_OUT_PATTERNS, 0.0)
    return [weights.get(pattern, other) for pattern in PATTERNS]


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Colours [count, 3] moved from the first to the second by a share [count]."""
    return first + (second - first) * share[:, None]


def random_styles(count: int, generator: torch.Generator, held_out: bool = False) -> Tensor:
    """Styles [count, NUMBERS].

    With `held_out` each has a pattern or a main hue that no training picture has.
    """

    def rand() -> Tensor:
        return torch.rand(count, generator=generator)

    def unlike(least: float, *others: Tensor) -> Tensor:
        return colours_unlike(list(others), least, generator)

    def sometimes(share: float, least: float) -> Tensor:
        return torch.where(rand() < share, least + (1 - least) * rand(), 0.0)

    white = torch.where(rand() < 0.5, 1.0, 0.9)[:, None] * torch.ones(count, 3)
    ground_1 = torch.where((rand() < 0.25)[:, None], white, colours(count, generator))
    ground_2 = mix(ground_1, unlike(0.6, ground_1), 0.25 + 0.75 * rand())
    main_1 = unlike(0.8, ground_1, ground_2)
    for _ in range(8):
        hue = hue_of(main_1)
        inside = (hue > HELD_OUT_HUES[0]) & (hue < HELD_OUT_HUES[1])
        main_1 = torch.where(inside[:, None], unlike(0.8, ground_1, ground_2), main_1)
    main_2 = mix(main_1, unlike(0.6, main_1), 0.3 + 0.7 * rand())
    second = unlike(0.5, main_1, ground_1)
    accent = unlike(0.5, main_1, second)
    dark = torch.full((count, 3), -0.85) + 0.15 * torch.randn(count, 3, generator=generator)
    dark_line = (rand() < 0.55)[:, None]
    line = torch.where(dark_line, dark.clamp(-1, 1), unlike(0.9, main_1, ground_1))
    line_width = torch.where(rand() < 0.5, 0.0, 0.25 + 0.75 * rand())
    hollow = rand() < 0.1  # a line drawing: nothing is filled
    ground_pattern = one_hot(pattern_weights(9, 1.5, 0.9), count, generator)
    fill_pattern = one_hot(pattern_weights(12, 1.5, 0.8), count, generator)
    texture = one_hot([9, 1, 1, 1, 1, 1, 0.7, 1.3], count, generator)
    if held_out:
        which = rand()
        new = one_hot([float(p in HELD_OUT_PATTERNS) for p in PATTERNS], count, generator)
        new_ground, new_fill = which < 0.4, (which >= 0.4) & (which < 0.6)
        ground_pattern = torch.where(new_ground[:, None], new, ground_pattern)
        fill_pattern = torch.where(new_fill[:, None], new, fill_pattern)
        new_hue = HELD_OUT_HUES[0] + (HELD_OUT_HUES[1] - HELD_OUT_HUES[0]) * rand()
        new_colour = hsv(new_hue, 0.6 + 0.4 * rand(), 0.5 + 0.5 * rand())
        main_1 = torch.where((which >= 0.6)[:, None], new_colour, main_1)
    flat_pattern = F.one_hot(torch.zeros(count, dtype=torch.long), len(PATTERNS)).float()
    unfilled = hollow[:, None]
    line = torch.where(unfilled, unlike(1.4, ground_1), line)
    flat_ground = unfilled & (rand() < 0.8)[:, None]
    fields = {
        "ground_pattern": torch.where(flat_ground, flat_pattern, ground_pattern),
        "ground_1": ground_1,
        "ground_2": ground_2,
        "ground_frequency": rand()[:, None],
        "ground_angle": angles(count, generator),
        "fill_pattern": torch.where(unfilled, flat_pattern, fill_pattern),
        "main_1": torch.where(unfilled, ground_1, main_1),
        "main_2": torch.where(unfilled, ground_1, main_2),
        "fill_frequency": rand()[:, None],
        "fill_angle": angles(count, generator),
        "second": torch.where(unfilled, ground_1, second),
        "accent": torch.where(unfilled, ground_1, accent),
        "line": line,
        "line_width": torch.where(hollow, 0.3 + 0.7 * rand(), line_width)[:, None],
        "glow": (sometimes(0.12, 0.3) * (line_width > 0))[:, None],
        "shadow": sometimes(0.15, 0.4)[:, None],
        "texture": texture,
        "texture_strength": (0.4 + 0.6 * rand())[:, None] * (1 - texture[:, :1]),
        "texture_size": rand()[:, None] * (1 - texture[:, :1]),
        "wobble": sometimes(0.25, 0.0)[:, None],
    }
    return style_from(fields, count)


EFFECTS = ("texture", "texture_strength", "texture_size", "glow", "shadow", "wobble")


def effects(styles: Tensor) -> Tensor:
    """The numbers [count, 13] of what is not colour, pattern or line: textures, glow, shadow."""
    return torch.cat([get(styles, field) for field in EFFECTS], 1)


def without_effects(styles: Tensor) -> Tensor:
    """The same styles [count, NUMBERS]: colours, patterns and lines are left."""
    clean = styles.clone()
    for field in EFFECTS:
        get(clean, field).zero_()
    get(clean, "texture")[:, 0] = 1
    return clean


def without_patterns(styles: Tensor) -> Tensor:
    """The same styles [count, NUMBERS] in flat colours: only parts and lines are left."""
    flat = without_effects(styles)
    for field in ("ground_pattern", "fill_pattern"):
        get(flat, field).zero_()
        get(flat, field)[:, 0] = 1
    return flat


def far_from(colours: Tensor) -> Tensor:
    """For each of some colours [count, 3] in -1..1 one that stands out from it."""
    near_grey = colours.norm(dim=1, keepdim=True) < 0.9
    shifted = colours - 1.2 * colours.mean(1, keepdim=True).sign()
    return torch.where(near_grey, shifted, -colours).clamp(-1, 1)


def with_loud_patterns(styles: Tensor, generator: torch.Generator) -> Tensor:
    """The same styles [count, NUMBERS] in flat colours but for a pattern of two far colours.

    It fills the ground, or the main part, or in a fifth of them both have one; mostly it is coarse.
    A third are two patterns, one over the other: so there are many more than have a name.
    """
    loud, count = without_patterns(styles), len(styles)
    weights = pattern_weights(0, 2, 1)
    where = torch.rand(count, 1, generator=generator)
    for part, prefix, here in (("ground", "ground", where < 0.6), ("fill", "main", where > 0.4)):
        over = torch.rand(count, 1, generator=generator) < 1 / 3
        pattern = one_hot(weights, count, generator)
        pattern = torch.maximum(pattern, one_hot(weights, count, generator) * over)
        fill = get(loud, f"{part}_pattern")
        fill.copy_(torch.where(here, pattern, fill))
        get(loud, f"{prefix}_2").copy_(far_from(get(loud, f"{prefix}_1")))
        get(loud, f"{part}_frequency").mul_(torch.rand(count, 1, generator=generator))
    return loud


def with_loud_effects(styles: Tensor, generator: torch.Generator) -> Tensor:
    """The same styles [count, NUMBERS] in flat colours but for one strong texture, or a shadow.

    Lines stand out from the main part, as a texture is drawn in their colour.
    """
    loud, count = without_patterns(styles), len(styles)
    texture = one_hot([1.0] * len(TEXTURES), count, generator)
    strength, size = torch.rand(2, count, 1, generator=generator)
    has_texture = 1 - texture[:, :1]
    get(loud, "texture").copy_(texture)
    get(loud, "texture_strength").copy_((0.6 + 0.4 * strength) * has_texture)
    get(loud, "texture_size").copy_(size * has_texture)
    get(loud, "shadow").copy_((0.6 + 0.4 * strength) * texture[:, :1])
    get(loud, "line").copy_(far_from(get(loud, "main_1")))
    return loud


def dark_on_light(styles: Tensor) -> Tensor:
    """The same styles [count, NUMBERS], from light to dark: ground, accent, second, main.

    They keep a part of their hues.
    """
    ordered = styles.clone()
    changes = {
        "ground": (0.65, 0.35),
        "accent": (0.1, 0.4),
        "second": (-0.35, 0.4),
        "main": (-0.6, 0.4),
        "line": (-0.75, 0.25),
    }
    for field in FIELDS:
        middle, share = changes.get(field.removesuffix("_1").removesuffix("_2"), (0.0, 1.0))
        numbers = get(ordered, field)
        if FIELDS[field] == 3:
            numbers.copy_((middle + share * numbers).clamp(-1, 1))
    return ordered


# ---------------------------------------------------------------- named styles


class Area(NamedTuple):
    """How an area is filled: a pattern of two colours #rrggbb."""

    pattern: str
    first: str
    second: str
    frequency: float = 0.5  # 0..1
    angle: float = 0  # degrees


def flat(colour: str) -> Area:
    return Area("flat", colour, colour)


def colour(text: str) -> Tensor:
    """A colour #rrggbb as [3] in -1..1."""
    return torch.tensor([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 127.5 - 1


def chosen(name: str, names: tuple[str, ...]) -> Tensor:
    """A row [len(names)] with a 1 at one name."""
    return F.one_hot(torch.tensor(names.index(name)), len(names)).float()


def named_style(
    ground: Area,
    fill: Area,
    palette: tuple[str, str, str],
    line_width: float = 0.0,
    glow: float = 0.0,
    shadow: float = 0.0,
    texture: tuple[str, float] = ("none", 0.0),
    wobble: float = 0.0,
) -> Tensor:
    """One style [NUMBERS].

    Args:
        ground, fill: of the background and of the main part.
        palette: colours of the second part, the accent and the outlines.
        line_width, glow, shadow, wobble: 0..1.
        texture: its kind, of `TEXTURES`, and its size 0..1.
    """
    kind, size = texture
    fields = dict(zip(("second", "accent", "line"), map(colour, palette)))
    fields["texture"] = chosen(kind, TEXTURES)
    for part, prefix, area in (("ground", "ground", ground), ("fill", "main", fill)):
        twice = 2 * torch.deg2rad(torch.tensor(float(area.angle)))
        fields |= {
            f"{part}_pattern": chosen(area.pattern, PATTERNS),
            f"{prefix}_1": colour(area.first),
            f"{prefix}_2": colour(area.second),
            f"{part}_frequency": torch.tensor([area.frequency]),
            f"{part}_angle": torch.stack([twice.cos(), twice.sin()]),
        }
    numbers = {
        "line_width": line_width,
        "glow": glow,
        "shadow": shadow,
        "texture_strength": 0.0 if kind == "none" else 0.8,
        "texture_size": size,
        "wobble": wobble,
    }
    fields |= {name: torch.tensor([float(number)]) for name, number in numbers.items()}
    return style_from(fields, 1)[0]


PLAIN = named_style(flat("#ffffff"), flat("#111111"), ("#777777", "#bbbbbb", "#444444"))

NAMED_STYLES = {
    "neon": named_style(
        flat("#0b0420"),
        flat("#2a0a4a"),
        ("#12305e", "#5a0f5a", "#ff5cf4"),
        line_width=0.7,
        glow=1.0,
    ),
    "blueprint": named_style(
        Area("grid", "#1846b4", "#3f70d8", 0.5),
        flat("#1846b4"),
        ("#2a5ccb", "#4a7ce0", "#f2f7ff"),
        line_width=0.6,
    ),
    "gold": named_style(
        Area("gradient", "#1c0206", "#5a0a12", 0, 90),
        Area("gradient", "#fff0a0", "#b87a10", 0, 90),
        ("#c98f1e", "#fffbe0", "#7a4a08"),
    ),
    "ink": named_style(
        flat("#ffffff"), flat("#111111"), ("#8a8a8a", "#ffffff", "#111111"), line_width=0.5
    ),
    "chalk": named_style(
        flat("#1f4a36"),
        flat("#3f7a5c"),
        ("#d9b8c8", "#f2e3a0", "#f4f6ee"),
        line_width=0.6,
        texture=("crayon", 0.4),
        wobble=0.6,
    ),
    "stripes": named_style(
        flat("#ffdf4f"),
        Area("stripes", "#ffffff", "#d81e2c", 0.4, 90),
        ("#1d4e9e", "#1d4e9e", "#1d4e9e"),
    ),
    "popart": named_style(
        Area("dots", "#29c5e6", "#ffffff", 0.4, 0),
        flat("#ff3d8b"),
        ("#ffe12e", "#ffe12e", "#111111"),
        line_width=0.6,
    ),
    "wood": named_style(
        Area("planks", "#7a4a24", "#5a3216", 0.3, 0),
        flat("#e2b77a"),
        ("#c08c4c", "#fbe3b4", "#4a2810"),
        line_width=0.35,
    ),
    "sunset": named_style(
        Area("gradient", "#56206e", "#ff9a3c", 0, 90),
        flat("#200a33"),
        ("#3c1450", "#ffce5a", "#200a33"),
    ),
    "candy": named_style(
        Area("checker", "#ffc6de", "#ffe4ef", 0.2, 0),
        Area("stripes", "#7a4fd0", "#38c6b0", 0.4, 45),
        ("#ff5f9e", "#fff3a8", "#ffffff"),
        line_width=0.5,
    ),
    "night": named_style(
        Area("stars", "#0a1446", "#f4f0c0", 0.4, 0),
        flat("#f6ecb4"),
        ("#c9b46a", "#8a9ae8", "#fff8d0"),
    ),
    "clay": named_style(
        flat("#bda6d8"), flat("#d4694a"), ("#5f8a6e", "#f0c45c", "#8a3a24"), shadow=1.0
    ),
    "sketch": named_style(
        flat("#fbf8f0"),
        flat("#fbf8f0"),
        ("#fbf8f0", "#fbf8f0", "#303038"),
        line_width=0.5,
        wobble=0.7,
    ),
    "pixels": named_style(
        flat("#9bd0f0"),
        flat("#e04848"),
        ("#f8d048", "#503078", "#202030"),
        line_width=0.4,
        texture=("pixels", 0.5),
    ),
    "mosaic": named_style(
        flat("#e8dcc0"), flat("#1e6e8c"), ("#e0a030", "#c04a30", "#3c3028"), texture=("mosaic", 0.4)
    ),
    "watercolour": named_style(
        flat("#faf6ec"),
        Area("gradient", "#4a8ab8", "#8ac0d0", 0, 90),
        ("#d88a90", "#e8c878", "#406080"),
        texture=("watercolour", 0.4),
        wobble=0.5,
    ),
    "halftone": named_style(
        flat("#fff6c8"),
        flat("#f08090"),
        ("#60b0d0", "#ffffff", "#c8283c"),
        line_width=0.4,
        texture=("halftone", 0.4),
    ),
    "hatching": named_style(
        flat("#fafaf8"),
        flat("#c8c8d0"),
        ("#9a9aa8", "#ececf0", "#282838"),
        line_width=0.5,
        texture=("hatching", 0.4),
    ),
    "crayon": named_style(
        flat("#fffdf4"),
        flat("#e05a30"),
        ("#3a8a4a", "#f0b828", "#7a3a1c"),
        line_width=0.5,
        texture=("crayon", 0.5),
        wobble=0.5,
    ),
    "sand": named_style(
        flat("#e0c48c"), flat("#b87838"), ("#8a5424", "#f4e4bc", "#6a4018"), texture=("grain", 0.3)
    ),
    "comic": named_style(
        Area("rings", "#ffd820", "#ff9a18", 0.3, 0),
        flat("#e02838"),
        ("#2858c8", "#ffffff", "#101010"),
        line_width=0.9,
    ),
    "sea": named_style(
        Area("waves", "#1878a8", "#2a98c4", 0.4, 90),
        flat("#fff4e0"),
        ("#f07858", "#f8c848", "#0c3a58"),
        line_width=0.3,
    ),
    "forest": named_style(
        Area("gradient", "#0c3020", "#2a6a3c", 0, 90),
        flat("#a8d060"),
        ("#6a4424", "#f4e890", "#0c2414"),
    ),
    "royal": named_style(
        Area("checker", "#4a1470", "#5c2084", 0.3, 45),
        flat("#f0c040"),
        ("#c82850", "#ffffff", "#2a0840"),
        line_width=0.5,
    ),
    "polka": named_style(
        flat("#fff0f4"),
        Area("dots", "#e83870", "#ffffff", 0.5, 45),
        ("#4080c0", "#f8d850", "#a01848"),
    ),
    "retro": named_style(
        Area("stripes", "#f4e4c0", "#ecc890", 0.2, 45),
        flat("#d86830"),
        ("#1e8078", "#5a3020", "#5a3020"),
        line_width=0.4,
        shadow=0.6,
    ),
}
HELD_OUT_NAMED_STYLES = {
    "mint": named_style(
        Area("stripes", "#b8f4d8", "#d8fbe9", 0.4, 45),
        flat("#14806c"),
        ("#f0507a", "#ffffff", "#0a4438"),
    ),
    "ice": named_style(
        Area("gradient", "#eaf6ff", "#8fc4f2", 0, 90),
        Area("gradient", "#ffffff", "#6aaef0", 0, 90),
        ("#4a86d8", "#ffffff", "#2f6fd0"),
        line_width=0.4,
    ),
    "tiger": named_style(
        flat("#4a2c10"),
        Area("stripes", "#ff9a1e", "#141008", 0.45, 45),
        ("#ffb84a", "#ffffff", "#ffe6c0"),
        line_width=0.35,
    ),
    "lagoon": named_style(
        Area("zigzag", "#0f8b96", "#1aa3ac", 0.4, 90),
        Area("dots", "#ffe9a8", "#f0a850", 0.4, 0),
        ("#ff7a5c", "#ffffff", "#06343c"),
        line_width=0.4,
    ),
    "cherry": named_style(
        Area("scales", "#ffe8ee", "#ffd0dc", 0.4, 0),
        flat("#b01030"),
        ("#3c7a34", "#ffffff", "#600818"),
        line_width=0.3,
        texture=("watercolour", 0.4),
    ),
    "matrix": named_style(
        Area("grid", "#04140a", "#0a4020", 0.8, 0),
        flat("#0a8a34"),
        ("#30f070", "#c0ffd0", "#30f070"),
        line_width=0.4,
        texture=("pixels", 0.2),
        glow=0.8,
    ),
}
