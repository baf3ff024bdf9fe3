"""What a style is in the teaching model's world: 65 numbers. Random ones for training, named ones for the lessons."""

from collections.abc import Mapping

import torch
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

# name and length of each group of numbers; colours are -1..1, one-hot groups 0 or 1, all others about 0..1
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
_STARTS = dict(
    zip(FIELDS, torch.tensor([0, *FIELDS.values()]).cumsum(0)[:-1].tolist(), strict=True)
)


def get(styles: Tensor, field: str) -> Tensor:
    """The numbers of `field` [batch, length] of styles [batch, NUMBERS] (a view)."""
    return styles[:, _STARTS[field] : _STARTS[field] + FIELDS[field]]


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
    """Random colours: half of them vivid, a quarter pale or dark, a quarter near white, black or grey."""

    def rand() -> Tensor:
        return torch.rand(count, generator=generator)

    hue, kind, a, b = rand(), rand(), rand(), rand()
    vivid, muted = kind < 0.5, kind < 0.75
    saturation = torch.where(vivid, 0.6 + 0.4 * a, torch.where(muted, 0.15 + 0.5 * a, 0.12 * a * a))
    value = torch.where(
        vivid,
        0.45 + 0.55 * b,
        torch.where(muted, 0.2 + 0.75 * b, torch.where(b < 0.3, 0.02 + 0.4 * b, 0.6 + 0.4 * b)),
    )
    return hsv(hue, saturation, value)


def colours_unlike(others: list[Tensor], least: float, generator: torch.Generator) -> Tensor:
    """Random colours at a distance of about `least` (white to black is 3.5) or more from each of `others`."""
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
    choice = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(choice, len(weights)).float()


def angles(count: int, generator: torch.Generator) -> Tensor:
    """Cosine and sine [count, 2] of twice an angle (a pattern looks the same after half a turn): mostly 0, 45, 90 or 135 degrees."""
    steps = torch.randint(4, (count,), generator=generator) * torch.pi / 4
    jitter = torch.where(
        torch.rand(count, generator=generator) < 0.5,
        0.0,
        0.15 * torch.randn(count, generator=generator),
    )
    return torch.stack([torch.cos(2 * (steps + jitter)), torch.sin(2 * (steps + jitter))], 1)


def random_styles(count: int, generator: torch.Generator, held_out: bool = False) -> Tensor:
    """Styles [count, NUMBERS]; with `held_out` each has a pattern or a main hue that no training picture has."""

    def rand() -> Tensor:
        return torch.rand(count, generator=generator)

    allowed = [0.0 if p in HELD_OUT_PATTERNS else 1.0 for p in PATTERNS]
    ground_weights = [
        w * (9 if p == "flat" else 1.5 if p == "gradient" else 0.9)
        for p, w in zip(PATTERNS, allowed, strict=True)
    ]
    fill_weights = [
        w * (12 if p == "flat" else 1.5 if p == "gradient" else 0.8)
        for p, w in zip(PATTERNS, allowed, strict=True)
    ]
    white = torch.where(rand() < 0.5, 1.0, 0.9)[:, None] * torch.ones(count, 3)
    ground_1 = torch.where((rand() < 0.25)[:, None], white, colours(count, generator))
    ground_2 = (
        ground_1
        + (colours_unlike([ground_1], 0.6, generator) - ground_1) * (0.25 + 0.75 * rand())[:, None]
    )
    main_1 = colours_unlike([ground_1, ground_2], 0.8, generator)
    for _ in range(8):
        hue = hue_of(main_1)
        inside = (hue > HELD_OUT_HUES[0]) & (hue < HELD_OUT_HUES[1])
        main_1 = torch.where(
            inside[:, None], colours_unlike([ground_1, ground_2], 0.8, generator), main_1
        )
    main_2 = (
        main_1 + (colours_unlike([main_1], 0.6, generator) - main_1) * (0.3 + 0.7 * rand())[:, None]
    )
    second = colours_unlike([main_1, ground_1], 0.5, generator)
    accent = colours_unlike([main_1, second], 0.5, generator)
    dark = torch.full((count, 3), -0.85) + 0.15 * torch.randn(count, 3, generator=generator)
    line = torch.where(
        (rand() < 0.55)[:, None],
        dark.clamp(-1, 1),
        colours_unlike([main_1, ground_1], 0.9, generator),
    )
    line_width = torch.where(rand() < 0.5, 0.0, 0.25 + 0.75 * rand())
    hollow = rand() < 0.1  # a line drawing: nothing is filled
    ground_pattern, fill_pattern = (
        one_hot(ground_weights, count, generator),
        one_hot(fill_weights, count, generator),
    )
    texture = one_hot([9, 1, 1, 1, 1, 1, 0.7, 1.3], count, generator)
    if held_out:
        which = rand()
        new = one_hot([float(p in HELD_OUT_PATTERNS) for p in PATTERNS], count, generator)
        ground_pattern = torch.where((which < 0.4)[:, None], new, ground_pattern)
        fill_pattern = torch.where(((which >= 0.4) & (which < 0.6))[:, None], new, fill_pattern)
        new_hue = HELD_OUT_HUES[0] + (HELD_OUT_HUES[1] - HELD_OUT_HUES[0]) * rand()
        main_1 = torch.where(
            (which >= 0.6)[:, None], hsv(new_hue, 0.6 + 0.4 * rand(), 0.5 + 0.5 * rand()), main_1
        )
    flat = torch.nn.functional.one_hot(torch.zeros(count, dtype=torch.long), len(PATTERNS)).float()
    hollow_ = hollow[:, None]
    line = torch.where(hollow_, colours_unlike([ground_1], 1.4, generator), line)
    return style_from(
        {
            "ground_pattern": torch.where(hollow_ & (rand() < 0.8)[:, None], flat, ground_pattern),
            "ground_1": ground_1,
            "ground_2": ground_2,
            "ground_frequency": rand()[:, None],
            "ground_angle": angles(count, generator),
            "fill_pattern": torch.where(hollow_, flat, fill_pattern),
            "main_1": torch.where(hollow_, ground_1, main_1),
            "main_2": torch.where(hollow_, ground_1, main_2),
            "fill_frequency": rand()[:, None],
            "fill_angle": angles(count, generator),
            "second": torch.where(hollow_, ground_1, second),
            "accent": torch.where(hollow_, ground_1, accent),
            "line": line,
            "line_width": torch.where(hollow, 0.3 + 0.7 * rand(), line_width)[:, None],
            "glow": (torch.where(rand() < 0.12, 0.3 + 0.7 * rand(), 0.0) * (line_width > 0))[
                :, None
            ],
            "shadow": torch.where(rand() < 0.15, 0.4 + 0.6 * rand(), 0.0)[:, None],
            "texture": texture,
            "texture_strength": (0.4 + 0.6 * rand())[:, None] * (1 - texture[:, :1]),
            "texture_size": rand()[:, None] * (1 - texture[:, :1]),
            "wobble": torch.where(rand() < 0.25, rand(), 0.0)[:, None],
        },
        count,
    )


# ---------------------------------------------------------------- named styles


def named_style(
    ground: tuple,
    fill: tuple,
    second: str,
    accent: str,
    line: str = "#202020",
    line_width: float = 0.0,
    glow: float = 0.0,
    shadow: float = 0.0,
    texture: str = "none",
    strength: float = 0.8,
    size: float = 0.4,
    wobble: float = 0.0,
) -> Tensor:
    """One style [NUMBERS]. `ground` and `fill` are (pattern, colour, colour, frequency 0..1, angle in degrees), shorter where flat."""

    def colour(text: str) -> Tensor:
        return torch.tensor([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 127.5 - 1

    def area(values: tuple) -> dict[str, Tensor]:
        pattern, first, second_, frequency, angle = (
            *values,
            *(None, "#000000", values[1], 0.5, 0)[len(values) :],
        )
        twice = 2 * torch.deg2rad(torch.tensor(float(angle)))
        one = torch.zeros(len(PATTERNS))
        one[PATTERNS.index(pattern)] = 1
        return {
            "pattern": one,
            "1": colour(first),
            "2": colour(second_),
            "frequency": torch.tensor([frequency]),
            "angle": torch.stack([twice.cos(), twice.sin()]),
        }

    kind = torch.zeros(len(TEXTURES))
    kind[TEXTURES.index(texture)] = 1
    fields = {f"ground_{key}": value for key, value in area(ground).items()}
    fields |= {
        (f"main_{key}" if key in "12" else f"fill_{key}"): value
        for key, value in area(fill).items()
    }
    on = 0.0 if texture == "none" else 1.0
    fields |= {
        "second": colour(second),
        "accent": colour(accent),
        "line": colour(line),
        "texture": kind,
    }
    numbers = {
        "line_width": line_width,
        "glow": glow,
        "shadow": shadow,
        "texture_strength": strength * on,
        "texture_size": size * on,
        "wobble": wobble,
    }
    fields |= {key: torch.tensor([float(value)]) for key, value in numbers.items()}
    return style_from(fields, 1)[0]


PLAIN = named_style(("flat", "#ffffff"), ("flat", "#111111"), "#777777", "#bbbbbb", "#444444")

NAMED_STYLES = {
    "neon": named_style(
        ("flat", "#0b0420"), ("flat", "#2a0a4a"), "#12305e", "#5a0f5a", "#ff5cf4", 0.7, glow=1.0
    ),
    "blueprint": named_style(
        ("grid", "#1846b4", "#3f70d8", 0.5),
        ("flat", "#1846b4"),
        "#2a5ccb",
        "#4a7ce0",
        "#f2f7ff",
        0.6,
    ),
    "gold": named_style(
        ("gradient", "#1c0206", "#5a0a12", 0, 90),
        ("gradient", "#fff0a0", "#b87a10", 0, 90),
        "#c98f1e",
        "#fffbe0",
        "#7a4a08",
    ),
    "ink": named_style(
        ("flat", "#ffffff"), ("flat", "#111111"), "#8a8a8a", "#ffffff", "#111111", 0.5
    ),
    "chalk": named_style(
        ("flat", "#1f4a36"),
        ("flat", "#3f7a5c"),
        "#d9b8c8",
        "#f2e3a0",
        "#f4f6ee",
        0.6,
        texture="crayon",
        wobble=0.6,
    ),
    "stripes": named_style(
        ("flat", "#ffdf4f"),
        ("stripes", "#ffffff", "#d81e2c", 0.4, 90),
        "#1d4e9e",
        "#1d4e9e",
        "#1d4e9e",
    ),
    "popart": named_style(
        ("dots", "#29c5e6", "#ffffff", 0.4, 0),
        ("flat", "#ff3d8b"),
        "#ffe12e",
        "#ffe12e",
        "#111111",
        0.6,
    ),
    "wood": named_style(
        ("planks", "#7a4a24", "#5a3216", 0.3, 0),
        ("flat", "#e2b77a"),
        "#c08c4c",
        "#fbe3b4",
        "#4a2810",
        0.35,
    ),
    "sunset": named_style(
        ("gradient", "#56206e", "#ff9a3c", 0, 90),
        ("flat", "#200a33"),
        "#3c1450",
        "#ffce5a",
        "#200a33",
    ),
    "candy": named_style(
        ("checker", "#ffc6de", "#ffe4ef", 0.2, 0),
        ("stripes", "#7a4fd0", "#38c6b0", 0.4, 45),
        "#ff5f9e",
        "#fff3a8",
        "#ffffff",
        0.5,
    ),
    "night": named_style(
        ("stars", "#0a1446", "#f4f0c0", 0.4, 0),
        ("flat", "#f6ecb4"),
        "#c9b46a",
        "#8a9ae8",
        "#fff8d0",
    ),
    "clay": named_style(
        ("flat", "#bda6d8"), ("flat", "#d4694a"), "#5f8a6e", "#f0c45c", "#8a3a24", shadow=1.0
    ),
    "sketch": named_style(
        ("flat", "#fbf8f0"), ("flat", "#fbf8f0"), "#fbf8f0", "#fbf8f0", "#303038", 0.5, wobble=0.7
    ),
    "pixels": named_style(
        ("flat", "#9bd0f0"),
        ("flat", "#e04848"),
        "#f8d048",
        "#503078",
        "#202030",
        0.4,
        texture="pixels",
        size=0.5,
    ),
    "mosaic": named_style(
        ("flat", "#e8dcc0"),
        ("flat", "#1e6e8c"),
        "#e0a030",
        "#c04a30",
        "#3c3028",
        texture="mosaic",
        size=0.4,
    ),
    "watercolour": named_style(
        ("flat", "#faf6ec"),
        ("gradient", "#4a8ab8", "#8ac0d0", 0, 90),
        "#d88a90",
        "#e8c878",
        "#406080",
        texture="watercolour",
        wobble=0.5,
    ),
    "halftone": named_style(
        ("flat", "#fff6c8"),
        ("flat", "#f08090"),
        "#60b0d0",
        "#ffffff",
        "#c8283c",
        0.4,
        texture="halftone",
        size=0.4,
    ),
    "hatching": named_style(
        ("flat", "#fafaf8"),
        ("flat", "#c8c8d0"),
        "#9a9aa8",
        "#ececf0",
        "#282838",
        0.5,
        texture="hatching",
        size=0.4,
    ),
    "crayon": named_style(
        ("flat", "#fffdf4"),
        ("flat", "#e05a30"),
        "#3a8a4a",
        "#f0b828",
        "#7a3a1c",
        0.5,
        texture="crayon",
        size=0.5,
        wobble=0.5,
    ),
    "sand": named_style(
        ("flat", "#e0c48c"),
        ("flat", "#b87838"),
        "#8a5424",
        "#f4e4bc",
        "#6a4018",
        texture="grain",
        size=0.3,
    ),
    "comic": named_style(
        ("rings", "#ffd820", "#ff9a18", 0.3, 0),
        ("flat", "#e02838"),
        "#2858c8",
        "#ffffff",
        "#101010",
        0.9,
    ),
    "sea": named_style(
        ("waves", "#1878a8", "#2a98c4", 0.4, 90),
        ("flat", "#fff4e0"),
        "#f07858",
        "#f8c848",
        "#0c3a58",
        0.3,
    ),
    "forest": named_style(
        ("gradient", "#0c3020", "#2a6a3c", 0, 90),
        ("flat", "#a8d060"),
        "#6a4424",
        "#f4e890",
        "#0c2414",
    ),
    "royal": named_style(
        ("checker", "#4a1470", "#5c2084", 0.3, 45),
        ("flat", "#f0c040"),
        "#c82850",
        "#ffffff",
        "#2a0840",
        0.5,
    ),
    "polka": named_style(
        ("flat", "#fff0f4"),
        ("dots", "#e83870", "#ffffff", 0.5, 45),
        "#4080c0",
        "#f8d850",
        "#a01848",
    ),
    "retro": named_style(
        ("stripes", "#f4e4c0", "#ecc890", 0.2, 45),
        ("flat", "#d86830"),
        "#1e8078",
        "#5a3020",
        "#5a3020",
        0.4,
        shadow=0.6,
    ),
}
HELD_OUT_NAMED_STYLES = {
    "mint": named_style(
        ("stripes", "#b8f4d8", "#d8fbe9", 0.4, 45),
        ("flat", "#14806c"),
        "#f0507a",
        "#ffffff",
        "#0a4438",
    ),
    "ice": named_style(
        ("gradient", "#eaf6ff", "#8fc4f2", 0, 90),
        ("gradient", "#ffffff", "#6aaef0", 0, 90),
        "#4a86d8",
        "#ffffff",
        "#2f6fd0",
        0.4,
    ),
    "tiger": named_style(
        ("flat", "#4a2c10"),
        ("stripes", "#ff9a1e", "#141008", 0.45, 45),
        "#ffb84a",
        "#ffffff",
        "#ffe6c0",
        0.35,
    ),
    "lagoon": named_style(
        ("zigzag", "#0f8b96", "#1aa3ac", 0.4, 90),
        ("dots", "#ffe9a8", "#f0a850", 0.4, 0),
        "#ff7a5c",
        "#ffffff",
        "#06343c",
        0.4,
    ),
    "cherry": named_style(
        ("scales", "#ffe8ee", "#ffd0dc", 0.4, 0),
        ("flat", "#b01030"),
        "#3c7a34",
        "#ffffff",
        "#600818",
        0.3,
        texture="watercolour",
    ),
    "matrix": named_style(
        ("grid", "#04140a", "#0a4020", 0.8, 0),
        ("flat", "#0a8a34"),
        "#30f070",
        "#c0ffd0",
        "#30f070",
        0.4,
        glow=0.8,
        texture="pixels",
        size=0.2,
    ),
}
