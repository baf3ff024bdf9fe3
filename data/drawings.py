"""Draw the pictures of this course: an object (content) in a style, each known by construction.

`draw("cat", "neon", seed=0, size=128)` returns one picture. The object decides the polygons, the style decides
every colour, texture and line, the seed decides only the pose (size, position, rotation). Nothing depends on the
number of pixels, so the same call draws a 128 px training picture and a 1024 px picture for the real SDXL.

    python data/drawings.py          # writes data/overview.png and the 1024 px pictures of data/examples
"""

import random
from dataclasses import dataclass
from math import cos, pi, sin, tau
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

BACKGROUND, MAIN, SECOND, ACCENT, LINE = range(5)  # what a pixel of the label map can be

# ---------------------------------------------------------------- shapes, in coordinates from -1 to 1, y downwards


def ellipse(cx, cy, rx, ry=None, start=0.0, end=1.0):
    """Points of an ellipse (or of the part of it from `start` to `end`, in turns; 0 is right, 0.25 is down)."""
    ry = rx if ry is None else ry
    turns = [start + (end - start) * i / 40 for i in range(41)]
    return [(cx + rx * cos(tau * t), cy + ry * sin(tau * t)) for t in turns]


def band(cx, cy, outer, inner, start, end):
    """A bent strip: the outer arc forwards, the inner arc back."""
    return ellipse(cx, cy, outer, outer, start, end) + ellipse(cx, cy, inner, inner, end, start)


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def spikes(count, outer, inner, cx=0.0, cy=0.0):
    """A star with `count` points."""
    radius = [outer, inner] * count
    return [
        (cx + r * sin(pi * i / count), cy - r * cos(pi * i / count)) for i, r in enumerate(radius)
    ]


def heart_curve():
    angles = [tau * i / 60 for i in range(60)]
    return [
        (
            0.052 * 16 * sin(t) ** 3,
            -0.052 * (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) - 0.1,
        )
        for t in angles
    ]


def crescent():
    return ellipse(0.05, 0, 0.85, 0.85, 0.13, 0.87) + ellipse(0.42, 0, 0.64, 0.64, 0.83, 0.17)


def umbrella_top():
    scallops = [p for i in range(3) for p in ellipse(0.56 - 0.56 * i, 0.02, 0.28, 0.16, 0.0, -0.5)]
    return ellipse(0, 0.02, 0.84, 0.8, 0.5, 1.0) + scallops


OBJECTS = {
    "star": [(MAIN, spikes(5, 0.95, 0.4, cy=0.06))],
    "heart": [(MAIN, heart_curve())],
    "house": [
        (MAIN, box(-0.6, -0.12, 0.6, 0.8)),
        (SECOND, [(-0.85, -0.1), (0, -0.85), (0.85, -0.1)]),
        (ACCENT, box(-0.18, 0.3, 0.18, 0.8)),
    ],
    "fish": [
        (SECOND, [(0.35, 0), (0.92, -0.48), (0.78, 0), (0.92, 0.48)]),
        (MAIN, ellipse(-0.18, 0, 0.7, 0.45)),
        (ACCENT, ellipse(-0.5, -0.1, 0.11)),
    ],
    "tree": [
        (SECOND, box(-0.15, 0.45, 0.15, 0.92)),
        (MAIN, [(-0.75, 0.55), (0.75, 0.55), (0, -0.3)]),
        (MAIN, [(-0.56, 0.02), (0.56, 0.02), (0, -0.92)]),
    ],
    "moon": [(MAIN, crescent())],
    "cup": [
        (SECOND, band(0.42, 0.02, 0.46, 0.24, -0.25, 0.25)),
        (MAIN, [(-0.7, -0.6), (0.5, -0.6), (0.4, 0.7), (-0.6, 0.7)]),
    ],
    "mushroom": [
        (SECOND, [(-0.26, 0.0), (0.26, 0.0), (0.34, 0.85), (-0.34, 0.85)]),
        (MAIN, ellipse(0, 0.1, 0.88, 0.92, 0.5, 1.0)),
        (ACCENT, ellipse(-0.35, -0.22, 0.17)),
        (ACCENT, ellipse(0.3, -0.35, 0.17)),
    ],
    "flower": [
        *(
            (MAIN, ellipse(0.52 * sin(tau * i / 6), -0.52 * cos(tau * i / 6), 0.36))
            for i in range(6)
        ),
        (ACCENT, ellipse(0, 0, 0.34)),
    ],
    "boat": [
        (MAIN, [(-0.85, 0.35), (0.85, 0.35), (0.5, 0.8), (-0.5, 0.8)]),
        (SECOND, [(-0.02, -0.9), (-0.02, 0.22), (-0.68, 0.22)]),
        (ACCENT, [(0.1, -0.55), (0.62, 0.22), (0.1, 0.22)]),
    ],
    "car": [
        (SECOND, [(-0.45, 0.0), (-0.28, -0.5), (0.3, -0.5), (0.52, 0.0)]),
        (MAIN, [(-0.92, -0.02), (0.9, -0.02), (0.92, 0.42), (-0.92, 0.42)]),
        (ACCENT, ellipse(-0.5, 0.45, 0.25)),
        (ACCENT, ellipse(0.5, 0.45, 0.25)),
    ],
    "cat": [
        (
            MAIN,
            [
                (-0.72, -0.9),
                (-0.3, -0.56),
                (0.3, -0.56),
                (0.72, -0.9),
                *ellipse(0, 0.1, 0.75, 0.72, 0.0, 0.5),
            ],
        ),
        (ACCENT, ellipse(-0.3, 0.02, 0.14)),
        (ACCENT, ellipse(0.3, 0.02, 0.14)),
        (SECOND, [(-0.13, 0.34), (0.13, 0.34), (0, 0.5)]),
    ],
    "umbrella": [
        (
            SECOND,
            [
                (-0.07, -0.1),
                (0.07, -0.1),
                (0.07, 0.62),
                *ellipse(0.24, 0.64, 0.17, 0.17, 0.5, 0.0),
                (0.55, 0.64),
                *ellipse(0.24, 0.64, 0.31, 0.31, 0.0, 0.5),
                (-0.07, 0.62),
            ],
        ),
        (MAIN, umbrella_top()),
    ],
    "rocket": [
        (SECOND, [(-0.3, 0.2), (-0.68, 0.82), (0.68, 0.82), (0.3, 0.2)]),
        (
            MAIN,
            [
                (0, -0.98),
                (0.22, -0.68),
                (0.34, -0.2),
                (0.34, 0.4),
                (0.24, 0.68),
                (-0.24, 0.68),
                (-0.34, 0.4),
                (-0.34, -0.2),
                (-0.22, -0.68),
            ],
        ),
        (ACCENT, ellipse(0, -0.2, 0.18)),
    ],
    "apple": [
        (SECOND, [(0.02, -0.4), (-0.06, -0.9), (0.1, -0.92), (0.14, -0.4)]),
        (
            MAIN,
            [
                *ellipse(-0.34, 0.02, 0.46, 0.56, 0.25, 0.8),
                (0, -0.42),
                *ellipse(0.34, 0.02, 0.46, 0.56, 0.7, 1.25),
                (0, 0.52),
            ],
        ),
        (ACCENT, [(0.14, -0.6), (0.36, -0.88), (0.66, -0.86), (0.42, -0.58)]),
    ],
    "crown": [
        (
            MAIN,
            [
                (-0.82, 0.6),
                (-0.9, -0.5),
                (-0.42, 0.05),
                (0, -0.75),
                (0.42, 0.05),
                (0.9, -0.5),
                (0.82, 0.6),
            ],
        ),
        (SECOND, box(-0.82, 0.4, 0.82, 0.7)),
        (ACCENT, ellipse(0, 0.05, 0.15)),
    ],
}
HELD_OUT_OBJECTS = {
    "arrow": [
        (
            MAIN,
            [
                (-0.9, -0.22),
                (0.15, -0.22),
                (0.15, -0.62),
                (0.92, 0),
                (0.15, 0.62),
                (0.15, 0.22),
                (-0.9, 0.22),
            ],
        )
    ],
    "bell": [
        (SECOND, ellipse(0, 0.7, 0.2)),
        (
            MAIN,
            [
                (-0.78, 0.62),
                (-0.55, 0.3),
                *ellipse(0, -0.2, 0.52, 0.62, 0.5, 1.0),
                (0.55, 0.3),
                (0.78, 0.62),
            ],
        ),
        (ACCENT, ellipse(0, -0.84, 0.13)),
    ],
    "butterfly": [
        *((MAIN, ellipse(s * 0.45, -0.32, 0.44, 0.42)) for s in (-1, 1)),
        *((SECOND, ellipse(s * 0.36, 0.38, 0.33, 0.36)) for s in (-1, 1)),
        (ACCENT, ellipse(0, 0, 0.12, 0.72)),
    ],
    "ghost": [
        (
            MAIN,
            [
                *ellipse(0, -0.2, 0.66, 0.68, 0.5, 1.0),
                (0.66, 0.85),
                (0.33, 0.58),
                (0, 0.85),
                (-0.33, 0.58),
                (-0.66, 0.85),
            ],
        ),
        (ACCENT, ellipse(-0.24, -0.22, 0.13)),
        (ACCENT, ellipse(0.24, -0.22, 0.13)),
    ],
}

# ---------------------------------------------------------------- styles


@dataclass(frozen=True)
class Style:
    """Colours are #rrggbb; a pattern paints its second colour over the first (see `paint`)."""

    background: tuple  # (pattern, colour, colour)
    main: tuple  # (pattern, colour, colour)
    second: str
    accent: str
    line: str | None = None  # colour of the outlines, None for none
    width: float = 0.0  # of the outlines, in object units (the object is 2 wide)
    glow: float = 0.0  # how strongly the outlines shine
    shadow: float = 0.0  # how dark the shadow of the object is


STYLES = {
    "neon": Style(
        ("flat", "#0b0420", "#0b0420"),
        ("flat", "#2a0a4a", "#2a0a4a"),
        "#12305e",
        "#5a0f5a",
        "#ff5cf4",
        0.13,
        glow=1.0,
    ),
    "blueprint": Style(
        ("grid", "#1846b4", "#3f70d8"),
        ("flat", "#1846b4", "#1846b4"),
        "#2a5ccb",
        "#4a7ce0",
        "#f2f7ff",
        0.11,
    ),
    "gold": Style(
        ("gradient", "#1c0206", "#4a0a12"), ("gradient", "#fff0a0", "#b87a10"), "#c98f1e", "#fffbe0"
    ),
    "ink": Style(
        ("flat", "#ffffff", "#ffffff"),
        ("flat", "#111111", "#111111"),
        "#8a8a8a",
        "#ffffff",
        "#111111",
        0.08,
    ),
    "chalk": Style(
        ("diagonal", "#1f4a36", "#265740"),
        ("flat", "#3f7a5c", "#3f7a5c"),
        "#d9b8c8",
        "#f2e3a0",
        "#f4f6ee",
        0.12,
    ),
    "stripes": Style(
        ("flat", "#ffdf4f", "#ffdf4f"), ("bars", "#ffffff", "#d81e2c"), "#1d4e9e", "#1d4e9e"
    ),
    "popart": Style(
        ("dots", "#29c5e6", "#ffffff"),
        ("flat", "#ff3d8b", "#ff3d8b"),
        "#ffe12e",
        "#ffe12e",
        "#111111",
        0.12,
    ),
    "wood": Style(
        ("planks", "#7a4a24", "#5a3216"),
        ("flat", "#e2b77a", "#e2b77a"),
        "#c08c4c",
        "#fbe3b4",
        "#4a2810",
        0.06,
    ),
    "sunset": Style(
        ("gradient", "#56206e", "#ff9a3c"), ("flat", "#200a33", "#200a33"), "#3c1450", "#ffce5a"
    ),
    "candy": Style(
        ("checker", "#ffc6de", "#ffe4ef"),
        ("diagonal", "#7a4fd0", "#38c6b0"),
        "#ff5f9e",
        "#fff3a8",
        "#ffffff",
        0.09,
    ),
    "night": Style(
        ("stars", "#0a1446", "#f4f0c0"), ("flat", "#f6ecb4", "#f6ecb4"), "#c9b46a", "#8a9ae8"
    ),
    "clay": Style(
        ("flat", "#bda6d8", "#bda6d8"),
        ("flat", "#d4694a", "#d4694a"),
        "#5f8a6e",
        "#f0c45c",
        shadow=0.45,
    ),
}
HELD_OUT_STYLES = {
    "mint": Style(
        ("diagonal", "#b8f4d8", "#d8fbe9"), ("flat", "#14806c", "#14806c"), "#f0507a", "#ffffff"
    ),
    "ice": Style(
        ("gradient", "#eaf6ff", "#8fc4f2"),
        ("gradient", "#ffffff", "#6aaef0"),
        "#4a86d8",
        "#ffffff",
        "#2f6fd0",
        0.08,
    ),
    "tiger": Style(
        ("flat", "#4a2c10", "#4a2c10"),
        ("diagonal", "#ff9a1e", "#141008"),
        "#ffb84a",
        "#ffffff",
        "#ffe6c0",
        0.07,
    ),
    "lagoon": Style(
        ("bars", "#0f8b96", "#1aa3ac"),
        ("dots", "#ffe9a8", "#f0a850"),
        "#ff7a5c",
        "#ffffff",
        "#06343c",
        0.08,
    ),
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


# the pictures of data/examples, none of whose combinations is in the training: the last one not even object and style
EXAMPLES = [
    ("star", "sunset"),
    ("cat", "wood"),
    ("mushroom", "clay"),
    ("rocket", "candy"),
    ("flower", "neon"),
    ("apple", "popart"),
    ("moon", "blueprint"),
    ("boat", "stripes"),
    ("ghost", "tiger"),
]
EXAMPLE_SEED = 2_000_000


def is_held_out(object_name, style_name):
    """True for the object-style combinations that no training picture shows (two for each style, one or two for each object)."""
    i, j = list(OBJECTS).index(object_name), list(STYLES).index(style_name)
    return (i + 3 * j) % 8 == 0


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255


def colour_style(name):
    """The style called "red on blue" or "outlined red on blue": flat colours, for pictures beyond the named styles."""
    fill, ground = name.removeprefix("outlined ").split(" on ")
    shade = lambda colour, towards, part: (
        "#" + "".join(f"{round(255 * v):02x}" for v in rgb(colour) * (1 - part) + towards * part)
    )
    light = rgb(COLOURS[fill]).mean() > 0.5
    second, accent = shade(COLOURS[fill], 0.0 if light else 1.0, 0.3), COLOURS[ground]
    line = (
        {"line": "#161616" if ground != "black" else "#fafafa", "width": 0.09}
        if name.startswith("outlined ")
        else {}
    )
    return Style(
        ("flat", COLOURS[ground], COLOURS[ground]),
        ("flat", COLOURS[fill], COLOURS[fill]),
        second,
        accent,
        **line,
    )


def paint(pattern, first, second, size):
    """An area [size, size, 3] filled with a pattern. Patterns are fixed to the frame, so a style always looks the same."""
    first, second = rgb(first), rgb(second)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size  # 0 to 1
    if pattern == "flat":
        return np.broadcast_to(first, (size, size, 3)).copy()
    if pattern == "gradient":
        amount = y
    elif pattern == "grid":
        amount = ((x * 6 + 0.06) % 1 < 0.12) | ((y * 6 + 0.06) % 1 < 0.12)
    elif pattern == "bars":
        amount = (y * 6) % 1 < 0.5
    elif pattern == "diagonal":
        amount = ((x + y) * 6) % 1 < 0.5
    elif pattern == "dots":
        amount = ((x * 6) % 1 - 0.5) ** 2 + ((y * 6) % 1 - 0.5) ** 2 < 0.07
    elif pattern == "checker":
        amount = ((x * 3) % 1 < 0.5) ^ ((y * 3) % 1 < 0.5)
    elif pattern == "planks":
        amount = ((y * 6 + 0.06) % 1 < 0.12) | ((x * 3 + 0.5 * (y * 6 % 2 < 1) + 0.03) % 1 < 0.06)
    elif pattern == "stars":
        amount = np.zeros((size, size), bool)
        for i in range(16):
            cx, cy = (i % 4 + 0.5 + 0.3 * sin(5 * i)) / 4, (i // 4 + 0.5 + 0.3 * cos(7 * i)) / 4
            amount |= (x - cx) ** 2 + (y - cy) ** 2 < (0.012 + 0.006 * (i % 3)) ** 2
    else:
        raise ValueError(f"unknown pattern {pattern!r}")
    amount = np.asarray(amount, np.float32)[..., None]
    return first * (1 - amount) + second * amount


# ---------------------------------------------------------------- putting both together


def pose(seed):
    """The pose of an object: (scale, shift x, shift y, rotation in turns), small changes around the middle."""
    random_ = random.Random(seed)
    return (
        random_.uniform(0.66, 0.84),
        random_.uniform(-0.1, 0.1),
        random_.uniform(-0.1, 0.1),
        random_.uniform(-0.02, 0.02),
    )


def free_pose(seed):
    """A pose that no training picture of the teaching model has: anywhere, of any size, leaning to either side."""
    random_ = random.Random(seed)
    scale = random_.uniform(0.4, 0.85)
    room = 0.95 - scale
    return (
        scale,
        random_.uniform(-room, room),
        random_.uniform(-room, room),
        random_.uniform(-0.12, 0.12),
    )


def label_map(parts, pose_, width, size):
    """What each pixel shows, uint8 [size, size]: parts are painted in order, each with its outline."""
    scale, dx, dy, turn = pose_
    c, s = scale * cos(tau * turn), scale * sin(tau * turn)
    image = Image.new("L", (size, size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for label, points in parts:
        points = [
            ((1 + dx + c * x - s * y) * size / 2, (1 + dy + s * x + c * y) * size / 2)
            for x, y in points
        ]
        if width:
            pixels = max(1, round(width * scale * size / 2))
            canvas.line(points + points[:2], fill=LINE, width=pixels, joint="curve")
            # the line is centred on the border; its inner half stays visible on top of the fill
            canvas.polygon(points, fill=label)
            canvas.line(points + points[:2], fill=LINE, width=pixels, joint="curve")
        else:
            canvas.polygon(points, fill=label)
    return np.asarray(image)


def draw(object_name, style_name, seed=0, size=128, pose_=None):
    """One picture, an RGB PIL image of `size` × `size` pixels. `style_name` is a named style or "red on blue"; the pose is by default that of the seed."""
    parts = {**OBJECTS, **HELD_OUT_OBJECTS}[object_name]
    named = {**STYLES, **HELD_OUT_STYLES}
    style = named[style_name] if style_name in named else colour_style(style_name)
    large = size * (3 if size <= 256 else 2)  # drawn larger and averaged, for smooth edges
    labels = label_map(parts, pose_ or pose(seed), style.width, large)
    picture = paint(*style.background, large)
    if style.shadow:
        moved = np.roll(labels > 0, (large // 28, large // 28), (0, 1)).astype(np.float32)
        soft = Image.fromarray((255 * moved).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(large / 90)
        )
        picture *= 1 - style.shadow * np.asarray(soft, np.float32)[..., None] / 255
    picture[labels == MAIN] = paint(*style.main, large)[labels == MAIN]
    picture[labels == SECOND] = rgb(style.second)
    picture[labels == ACCENT] = rgb(style.accent)
    if style.line:
        line = labels == LINE
        picture[line] = rgb(style.line)
        if style.glow:
            soft = Image.fromarray((255 * line).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(large / 40)
            )
            picture += (
                style.glow
                * rgb(style.line)
                * np.asarray(soft, np.float32)[..., None]
                / 255
                * ~line[..., None]
            )
    picture = (255 * picture.clip(0, 1) + 0.5).astype(np.uint8)
    return Image.fromarray(picture).resize((size, size), Image.Resampling.BOX)


def sheet(pictures, columns, gap=4):
    """All pictures (of one size) in one image, row by row."""
    size = pictures[0].width
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (columns * (size + gap) - gap, rows * (size + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        image.paste(picture, ((i % columns) * (size + gap), (i // columns) * (size + gap)))
    return image


if __name__ == "__main__":
    here = Path(__file__).parent
    everything = [
        draw(o, s, i, 64)
        for i, o in enumerate({**OBJECTS, **HELD_OUT_OBJECTS})
        for s in {**STYLES, **HELD_OUT_STYLES}
    ]
    sheet(everything, columns=len(STYLES) + len(HELD_OUT_STYLES), gap=2).quantize(
        256, dither=Image.Dither.NONE
    ).save(here / "overview.png", optimize=True)
    (here / "examples").mkdir(exist_ok=True)
    for object_name, style_name in EXAMPLES:
        draw(object_name, style_name, EXAMPLE_SEED, 1024).save(
            here / "examples" / f"{object_name}_{style_name}.png", optimize=True
        )
