"""Draw the pictures of this course: an object (content) in a style, each known by construction.

`draw("cat", "neon", seed=0, size=128)` returns one picture. The object decides the polygons, the
style decides every colour, texture and line, the seed decides only the pose (size, position,
rotation). Nothing depends on the number of pixels, so the same call draws a 128 px picture
and a 1024 px picture for the real SDXL.
"""

import random
from dataclasses import dataclass
from math import cos, pi, sin, tau

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from blora_nb.errors import check_names

BACKGROUND, MAIN, SECOND, ACCENT, LINE = range(5)  # what a pixel of the label map can be

Points = list[tuple[float, float]]  # from -1 to 1, y downwards
Part = tuple[int, Points]  # the label of a polygon's pixels, and the polygon
Pose = tuple[float, float, float, float]  # scale, shift x, shift y, rotation in turns
Area = str  # a colour #rrggbb, or a pattern and its two colours: "bars #ffffff #d81e2c"

# ---------------------------------------------------------------- shapes


def points(text: str) -> Points:
    """Points written as in SVG: "x,y x,y …"."""
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def ellipse(
    cx: float, cy: float, rx: float, ry: float | None = None, start: float = 0.0, end: float = 1.0
) -> Points:
    """Points of an ellipse from `start` to `end`, in turns; 0 is right, 0.25 is down."""
    ry = rx if ry is None else ry
    turns = [start + (end - start) * i / 40 for i in range(41)]
    return [(cx + rx * cos(tau * t), cy + ry * sin(tau * t)) for t in turns]


def band(cx: float, cy: float, outer: float, inner: float, start: float, end: float) -> Points:
    """A bent strip: the outer arc forwards, the inner arc back."""
    return ellipse(cx, cy, outer, outer, start, end) + ellipse(cx, cy, inner, inner, end, start)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def heart_curve() -> Points:
    polygon = []
    for t in (tau * i / 60 for i in range(60)):
        height = 13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)
        polygon.append((0.052 * 16 * sin(t) ** 3, -0.052 * height - 0.1))
    return polygon


UMBRELLA_HANDLE = [
    *points("-0.07,-0.1 0.07,-0.1 0.07,0.62"),
    *ellipse(0.24, 0.64, 0.17, 0.17, 0.5, 0.0),
    (0.55, 0.64),
    *ellipse(0.24, 0.64, 0.31, 0.31, 0.0, 0.5),
    (-0.07, 0.62),
]
SCALLOPS = [p for x in (0.56, 0.0, -0.56) for p in ellipse(x, 0.02, 0.28, 0.16, 0.0, -0.5)]
APPLE_LEFT = [*ellipse(-0.34, 0.02, 0.46, 0.56, 0.25, 0.8), (0, -0.42)]
APPLE_RIGHT = [*ellipse(0.34, 0.02, 0.46, 0.56, 0.7, 1.25), (0, 0.52)]
STAR = [
    (radius * sin(pi * i / 5), 0.06 - radius * cos(pi * i / 5))
    for i, radius in enumerate([0.95, 0.4] * 5)
]
BELL_TOP = [(-0.55, 0.3), *ellipse(0, -0.2, 0.52, 0.62, 0.5, 1.0), (0.55, 0.3)]
CRESCENT = ellipse(0.05, 0, 0.85, 0.85, 0.13, 0.87) + ellipse(0.42, 0, 0.64, 0.64, 0.83, 0.17)
ARROW = points("-0.9,-0.22 0.15,-0.22 0.15,-0.62 0.92,0 0.15,0.62 0.15,0.22 -0.9,0.22")
SIXTHS = [tau * i / 6 for i in range(6)]
CAT_EARS = points("-0.72,-0.9 -0.3,-0.56 0.3,-0.56 0.72,-0.9")
GHOST_HEM = points("0.66,0.85 0.33,0.58 0,0.85 -0.33,0.58 -0.66,0.85")
ROCKET_BODY = points(
    "0,-0.98 0.22,-0.68 0.34,-0.2 0.34,0.4 0.24,0.68 -0.24,0.68 -0.34,0.4 -0.34,-0.2 -0.22,-0.68"
)

OBJECTS: dict[str, list[Part]] = {
    "star": [(MAIN, STAR)],
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
    "moon": [(MAIN, CRESCENT)],
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
        *((MAIN, ellipse(0.52 * sin(a), -0.52 * cos(a), 0.36)) for a in SIXTHS),
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
        (MAIN, CAT_EARS + ellipse(0, 0.1, 0.75, 0.72, 0.0, 0.5)),
        (ACCENT, ellipse(-0.3, 0.02, 0.14)),
        (ACCENT, ellipse(0.3, 0.02, 0.14)),
        (SECOND, [(-0.13, 0.34), (0.13, 0.34), (0, 0.5)]),
    ],
    "umbrella": [
        (SECOND, UMBRELLA_HANDLE),
        (MAIN, ellipse(0, 0.02, 0.84, 0.8, 0.5, 1.0) + SCALLOPS),
    ],
    "rocket": [
        (SECOND, [(-0.3, 0.2), (-0.68, 0.82), (0.68, 0.82), (0.3, 0.2)]),
        (MAIN, ROCKET_BODY),
        (ACCENT, ellipse(0, -0.2, 0.18)),
    ],
    "apple": [
        (SECOND, [(0.02, -0.4), (-0.06, -0.9), (0.1, -0.92), (0.14, -0.4)]),
        (MAIN, APPLE_LEFT + APPLE_RIGHT),
        (ACCENT, [(0.14, -0.6), (0.36, -0.88), (0.66, -0.86), (0.42, -0.58)]),
    ],
    "crown": [
        (MAIN, points("-0.82,0.6 -0.9,-0.5 -0.42,0.05 0,-0.75 0.42,0.05 0.9,-0.5 0.82,0.6")),
        (SECOND, box(-0.82, 0.4, 0.82, 0.7)),
        (ACCENT, ellipse(0, 0.05, 0.15)),
    ],
}
MORE_OBJECTS: dict[str, list[Part]] = {
    "arrow": [(MAIN, ARROW)],
    "bell": [
        (SECOND, ellipse(0, 0.7, 0.2)),
        (MAIN, [(-0.78, 0.62), *BELL_TOP, (0.78, 0.62)]),
        (ACCENT, ellipse(0, -0.84, 0.13)),
    ],
    "butterfly": [
        *((MAIN, ellipse(s * 0.45, -0.32, 0.44, 0.42)) for s in (-1, 1)),
        *((SECOND, ellipse(s * 0.36, 0.38, 0.33, 0.36)) for s in (-1, 1)),
        (ACCENT, ellipse(0, 0, 0.12, 0.72)),
    ],
    "ghost": [
        (MAIN, ellipse(0, -0.2, 0.66, 0.68, 0.5, 1.0) + GHOST_HEM),
        (ACCENT, ellipse(-0.24, -0.22, 0.13)),
        (ACCENT, ellipse(0.24, -0.22, 0.13)),
    ],
}

# ---------------------------------------------------------------- styles


@dataclass(frozen=True)
class Style:
    """Colours are #rrggbb; a pattern paints its second one over the first (see `paint`)."""

    background: Area
    main: Area
    second: str
    accent: str
    line: str | None = None  # colour of the outlines, None for none
    width: float = 0.0  # of the outlines, in object units (the object is 2 wide)
    glow: float = 0.0  # how strongly the outlines shine
    shadow: float = 0.0  # how dark the shadow of the object is


STYLES = {
    "neon": Style("#0b0420", "#2a0a4a", "#12305e", "#5a0f5a", "#ff5cf4", width=0.13, glow=1.0),
    "blueprint": Style(
        "grid #1846b4 #3f70d8", "#1846b4", "#2a5ccb", "#4a7ce0", "#f2f7ff", width=0.11
    ),
    "gold": Style("gradient #1c0206 #4a0a12", "gradient #fff0a0 #b87a10", "#c98f1e", "#fffbe0"),
    "ink": Style("#ffffff", "#111111", "#8a8a8a", "#ffffff", "#111111", width=0.08),
    "chalk": Style(
        "diagonal #1f4a36 #265740", "#3f7a5c", "#d9b8c8", "#f2e3a0", "#f4f6ee", width=0.12
    ),
    "stripes": Style("#ffdf4f", "bars #ffffff #d81e2c", "#1d4e9e", "#1d4e9e"),
    "popart": Style("dots #29c5e6 #ffffff", "#ff3d8b", "#ffe12e", "#ffe12e", "#111111", width=0.12),
    "wood": Style("planks #7a4a24 #5a3216", "#e2b77a", "#c08c4c", "#fbe3b4", "#4a2810", width=0.06),
    "sunset": Style("gradient #56206e #ff9a3c", "#200a33", "#3c1450", "#ffce5a"),
    "candy": Style(
        "checker #ffc6de #ffe4ef",
        "diagonal #7a4fd0 #38c6b0",
        "#ff5f9e",
        "#fff3a8",
        "#ffffff",
        width=0.09,
    ),
    "night": Style("stars #0a1446 #f4f0c0", "#f6ecb4", "#c9b46a", "#8a9ae8"),
    "clay": Style("#bda6d8", "#d4694a", "#5f8a6e", "#f0c45c", shadow=0.45),
}
HELD_OUT_STYLES = {
    "mint": Style("diagonal #b8f4d8 #d8fbe9", "#14806c", "#f0507a", "#ffffff"),
    "ice": Style(
        "gradient #eaf6ff #8fc4f2",
        "gradient #ffffff #6aaef0",
        "#4a86d8",
        "#ffffff",
        "#2f6fd0",
        width=0.08,
    ),
    "tiger": Style(
        "#4a2c10", "diagonal #ff9a1e #141008", "#ffb84a", "#ffffff", "#ffe6c0", width=0.07
    ),
    "lagoon": Style(
        "bars #0f8b96 #1aa3ac", "dots #ffe9a8 #f0a850", "#ff7a5c", "#ffffff", "#06343c", width=0.08
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

# the example pictures. None of these drawings is in the training, nor is the last style
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


def rgb(colour: str) -> np.ndarray:
    """A colour #rrggbb as float32 [3] in 0..1."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255


def colour_style(name: str) -> Style:
    """The style called "red on blue" or "outlined red on blue", in flat colours.

    Raises:
        ValueError: a colour is not in `COLOURS`.
    """
    words = name.removeprefix("outlined ").split(" on ")
    check_names(words, COLOURS, "colour", "drawings.COLOURS")
    fill, ground = (COLOURS[word] for word in words)
    target = 0.0 if rgb(fill).mean() > 0.5 else 1.0
    shade = rgb(fill) * (1 - 0.3) + target * 0.3
    second = "#" + "".join(f"{round(255 * value):02x}" for value in shade)
    if not name.startswith("outlined "):
        return Style(ground, fill, second, accent=ground)
    line = "#fafafa" if name.endswith(" on black") else "#161616"
    return Style(ground, fill, second, accent=ground, line=line, width=0.09)


def paint(area: Area, size: int) -> np.ndarray:
    """An area filled with its pattern, float32 [size, size, 3] in 0..1.

    Patterns are fixed to the frame, so a style always looks the same.
    """
    if area.startswith("#"):
        return np.broadcast_to(rgb(area), (size, size, 3)).copy()
    pattern, *colours = area.split()
    first, second = (rgb(colour) for colour in colours)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size  # 0 to 1
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
    share = np.asarray(amount, np.float32)[..., None]
    return first * (1 - share) + second * share


# ---------------------------------------------------------------- putting both together


def pose(seed: int) -> Pose:
    """The pose of an object: small changes around the middle."""
    random_ = random.Random(seed)
    return (
        random_.uniform(0.66, 0.84),
        random_.uniform(-0.1, 0.1),
        random_.uniform(-0.1, 0.1),
        random_.uniform(-0.02, 0.02),
    )


def free_pose(seed: int) -> Pose:
    """A pose of any kind: anywhere, of any size, leaning to either side."""
    random_ = random.Random(seed)
    scale = random_.uniform(0.4, 0.85)
    room = 0.95 - scale
    shift_x, shift_y = random_.uniform(-room, room), random_.uniform(-room, room)
    return scale, shift_x, shift_y, random_.uniform(-0.12, 0.12)


def label_map(parts: list[Part], pose_: Pose, width: float, size: int) -> np.ndarray:
    """What each pixel shows, uint8 [size, size]: parts in order, each with its outline."""
    scale, dx, dy, turn = pose_
    c, s = scale * cos(tau * turn), scale * sin(tau * turn)
    image = Image.new("L", (size, size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    line_width = max(1, round(width * scale * size / 2))
    for label, polygon in parts:
        placed = []
        for x, y in polygon:
            right, down = 1 + dx + c * x - s * y, 1 + dy + s * x + c * y
            placed.append((right * size / 2, down * size / 2))
        canvas.polygon(placed, fill=label)
        if width:
            # centred on the border; the inner half stays visible on top of the fill
            canvas.line(placed + placed[:2], fill=LINE, width=line_width, joint="curve")
    return np.asarray(image)


def blurred(mask: np.ndarray, radius: float) -> np.ndarray:
    """A mask [height, width] with soft edges, float32 [height, width, 1] in 0..1."""
    image = Image.fromarray((255 * mask).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)[..., None] / 255


def draw(
    object_name: str, style_name: str, seed: int = 0, size: int = 128, pose_: Pose | None = None
) -> Image.Image:
    """One picture in RGB, `size` × `size` pixels.

    Args:
        style_name: a named style, or "red on blue".
        pose_: by default that of the seed.

    Raises:
        ValueError: there is no such object, style or colour.
    """
    objects, named = OBJECTS | MORE_OBJECTS, STYLES | HELD_OUT_STYLES
    check_names([object_name], objects, "object", "drawings.OBJECTS, with drawings.MORE_OBJECTS,")
    if style_name.count(" on ") == 1:
        style = colour_style(style_name)
    else:
        listed = "drawings.STYLES, with drawings.HELD_OUT_STYLES,"
        check_names([style_name], named, "style", listed)
        style = named[style_name]
    large = size * (3 if size <= 256 else 2)  # drawn larger and averaged, for smooth edges
    labels = label_map(objects[object_name], pose_ or pose(seed), style.width, large)
    picture = paint(style.background, large)
    if style.shadow:
        moved = np.roll(labels > 0, (large // 28, large // 28), (0, 1))
        picture *= 1 - style.shadow * blurred(moved, large / 90)
    picture[labels == MAIN] = paint(style.main, large)[labels == MAIN]
    picture[labels == SECOND] = rgb(style.second)
    picture[labels == ACCENT] = rgb(style.accent)
    if style.line:
        line = labels == LINE
        picture[line] = rgb(style.line)
        if style.glow:
            halo = blurred(line, large / 40) * ~line[..., None]
            picture += style.glow * rgb(style.line) * halo
    picture = (255 * picture.clip(0, 1) + 0.5).astype(np.uint8)
    return Image.fromarray(picture).resize((size, size), Image.Resampling.BOX)
