"""Paint label maps in styles, a batch at a time: pictures [batch, 3, 128, 128] in -1..1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from world.styles import PATTERNS, TEXTURES, get

SIDE = 128
MAIN, SECOND, ACCENT, LINE = range(4)
_STEPS = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
_Y, _X = torch.meshgrid(_STEPS, _STEPS, indexing="ij")  # -0.5..0.5, y downwards


def smooth_noise(grain: float, seed: int, stretch: float = 1.0) -> Tensor:
    """A fixed field [SIDE, SIDE] of mean 0 and standard deviation 1.

    Its features are `grain` pixels wide, and `stretch` times as wide from left to right.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = max(2, round(SIDE / grain))
    coarse = torch.randn(1, 1, cells, max(2, round(cells / stretch)), generator=generator)
    field = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0]
    return (field - field.mean()) / field.std()


_NOISE = {"fine": smooth_noise(4, 1), "middle": smooth_noise(9, 2), "wide": smooth_noise(24, 3)}
# streaks that run from bottom left to top right
_STROKES = F.grid_sample(
    smooth_noise(3, 4, stretch=5)[None, None],
    torch.stack([(_X - _Y) * 1.41, (_X + _Y) * 1.41], -1)[None],
    padding_mode="reflection",
    align_corners=False,
)[0, 0]
# where a trembling hand puts a point
_SWAY = torch.stack([smooth_noise(18, 5), smooth_noise(18, 6)], -1)


# ---------------------------------------------------------------- shapes into the frame


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """Poses [count, 5]: scale, shift x, shift y, turn, mirrored.

    The scale is a share of the frame, shifts are in half frames, the turn is in radians, and
    mirrored is -1 or 1.
    """

    def rand() -> Tensor:
        return torch.rand(count, generator=generator)

    scale = torch.where(rand() < 0.75, 0.6 + 0.36 * rand(), 0.34 + 0.3 * rand())
    scale = torch.where(rand() < 0.05, 1.05 + 0 * scale, scale)
    room = (1.02 - scale).clamp(min=0.02)
    centred = torch.where(rand() < 0.5, 0.3, 1.0)
    dx, dy = (room * centred * (2 * rand() - 1) for _ in range(2))
    most = torch.where(rand() < 0.5, 0.05, 0.18)
    turn = most * torch.randn(count, generator=generator).clamp(-2, 2)
    mirror = torch.where(rand() < 0.5, -1.0, 1.0)
    return torch.stack([scale, dx, dy, turn, mirror], 1)


def place(coverage: Tensor, poses: Tensor) -> Tensor:
    """Put label maps uint8 [batch, 4, 128, 128] into the frame: [batch, 4, SIDE, SIDE] in 0..1."""
    scale, dx, dy, turn, mirror = poses.unbind(1)
    c, s = torch.cos(turn) / scale, torch.sin(turn) / scale
    first_row = torch.stack([mirror * c, mirror * s, -mirror * (c * dx + s * dy)], 1)
    second_row = torch.stack([-s, c, -(c * dy - s * dx)], 1)
    matrices = torch.stack([first_row, second_row], 1)
    placed = torch.empty(len(coverage), 4, SIDE, SIDE)
    maps = coverage.float() / 255
    # a small drawing is sampled from a smaller map, so that thin lines stay
    for small in (False, True):
        chosen = (scale < 0.6) == small
        if not chosen.any():
            continue
        source = F.avg_pool2d(maps[chosen], 2) if small else maps[chosen]
        size = [len(source), 4, SIDE, SIDE]
        grid = F.affine_grid(matrices[chosen], size, align_corners=False)
        placed[chosen] = F.grid_sample(source, grid, align_corners=False)
    return placed.clamp(0, 1)


def put_on_badges(placed: Tensor, generator: torch.Generator, share: float = 0.06) -> Tensor:
    """Some drawings stand on a disc or a rounded square, which takes the second colour."""

    def rand() -> Tensor:
        return torch.rand(len(placed), generator=generator)

    chosen = rand() < share
    corner = torch.where(rand() < 0.6, 2.0, 6.0)[chosen, None, None]
    radius = (0.36 + 0.1 * rand())[chosen, None, None]
    distance = (_X.abs() ** corner + _Y.abs() ** corner) ** (1 / corner)
    disc = (0.5 + (radius - distance) * SIDE).clamp(0, 1)
    shape = F.interpolate(placed[chosen], scale_factor=0.55, mode="bilinear", antialias=True)
    margin = SIDE - shape.shape[-1]
    shape = F.pad(shape, (margin // 2, margin - margin // 2, margin // 2, margin - margin // 2))
    free = 1 - shape.sum(1).clamp(0, 1)
    shape[:, SECOND] = shape[:, SECOND] + disc * free
    result = placed.clone()
    result[chosen] = shape
    return result


# ---------------------------------------------------------------- patterns


def _wave(u: Tensor) -> Tensor:
    """Distance to the middle of the period, 0..0.5."""
    return ((u % 1) - 0.5).abs()


def _length(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt()


def pattern_amount(name: str, frequency: Tensor, twice_angle: Tensor) -> Tensor:
    """How much of the second colour [batch, SIDE, SIDE] a pattern has at each pixel."""
    angle = torch.atan2(twice_angle[:, 1], twice_angle[:, 0])[:, None, None] / 2
    cycles = (3 + 7 * frequency)[:, :, None]
    along = _X * angle.cos() + _Y * angle.sin()
    across = _Y * angle.cos() - _X * angle.sin()
    u, v = along * cycles, across * cycles
    pixel = cycles / SIDE

    def soft(distance: Tensor) -> Tensor:
        return (0.5 + distance / pixel).clamp(0, 1)

    if name == "gradient":
        return (0.5 + along).clamp(0, 1)
    if name == "stripes":
        return soft(0.25 - _wave(u))
    if name == "grid":
        return torch.maximum(soft(0.07 - _wave(u)), soft(0.07 - _wave(v)))
    if name == "dots":
        return soft(0.27 - _length(_wave(u), _wave(v)))
    if name == "checker":
        a, b = soft(0.25 - _wave(u / 2)), soft(0.25 - _wave(v / 2))
        return a + b - 2 * a * b
    if name == "planks":
        shift = 0.5 * (torch.floor(v) % 2)
        return torch.maximum(soft(0.06 - _wave(v + 0.5)), soft(0.05 - _wave(u / 2 + shift)))
    if name == "stars":
        row, column = torch.floor(v), torch.floor(u)
        du = u % 1 - 0.5 - 0.28 * torch.sin(5 * column + 3 * row)
        dv = v % 1 - 0.5 - 0.28 * torch.cos(7 * row + 2 * column)
        return soft(0.1 + 0.06 * torch.sin(3 * row + 11 * column) - _length(du, dv))
    if name == "waves":
        return soft(0.25 - _wave(u + 0.22 * torch.sin(2 * torch.pi * v)))
    if name == "rings":
        return soft(0.25 - _wave(_length(_X, _Y) * cycles))
    if name == "zigzag":
        return soft(0.25 - _wave(u + 0.9 * _wave(v)))
    if name == "scales":
        shift = 0.5 * (torch.floor(2 * v) % 2)
        distance = _length(_wave(u + shift + 0.5), (2 * v) % 1 / 2)
        return soft(0.07 - (distance - 0.45).abs())
    raise ValueError(f"unknown pattern {name!r}")


def areas(styles: Tensor, part: str, colour: str) -> Tensor:
    """Every frame [batch, 3, SIDE, SIDE] filled with its pattern in its two colours.

    Where two patterns meet they change places: each shows the other's second colour as its first.
    """
    frequency, angle = (get(styles, f"{part}_{key}") for key in ("frequency", "angle"))
    amount = torch.zeros(len(styles), SIDE, SIDE)
    for name, weight in zip(PATTERNS, get(styles, f"{part}_pattern").T, strict=True):
        chosen = weight > 0
        if name != "flat" and chosen.any():
            below = amount[chosen]
            above = pattern_amount(name, frequency[chosen], angle[chosen])
            amount[chosen] = below + above - 2 * below * above
    first, second = (get(styles, f"{colour}_{i}")[:, :, None, None] for i in (1, 2))
    return first + (second - first) * amount[:, None]


# ---------------------------------------------------------------- a picture


def blur(x: Tensor, radius: int) -> Tensor:
    """Two box blurs of width 2 · radius + 1."""
    for _ in range(2):
        x = F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
    return x


def outlines(parts: Tensor, width: Tensor) -> Tensor:
    """Lines [batch, 1, SIDE, SIDE] along the borders of all parts.

    A `width` [batch] of 1 is about five pixels.
    """
    bands = []
    for size in (3, 5):
        grown = F.max_pool2d(parts, size, 1, size // 2)
        shrunk = 1 - F.max_pool2d(1 - parts, size, 1, size // 2)
        bands.append((grown - shrunk).amax(1, keepdim=True).clamp(0, 1))
    narrow, wide = bands
    width = width[:, None, None, None]
    faint = narrow * (2 * width).clamp(0, 1)
    return torch.where(width < 0.5, faint, narrow + (wide - narrow) * (2 * width - 1))


def trembling(placed: Tensor, styles: Tensor) -> Tensor:
    """Shapes as an unsteady hand draws them."""
    wobble = get(styles, "wobble")[:, 0]
    chosen = wobble > 0
    if not chosen.any():
        return placed
    strength = 0.03 * wobble[chosen, None, None, None]
    moved = torch.stack([2 * _X, 2 * _Y], -1) + strength * _SWAY
    result = placed.clone()
    result[chosen] = F.grid_sample(placed[chosen], moved, align_corners=False)
    return result


def paint(placed: Tensor, styles: Tensor) -> Tensor:
    """Pictures [batch, 3, SIDE, SIDE] in -1..1.

    Args:
        placed: shapes [batch, 4, SIDE, SIDE] in 0..1, from `place`.
        styles: [batch, NUMBERS].
    """
    placed = trembling(placed, styles)

    def number(field: str) -> Tensor:
        return get(styles, field)[:, :, None, None]

    parts, drawn = placed[:, :LINE], placed[:, LINE:]
    alpha = torch.maximum(parts.sum(1, keepdim=True).clamp(0, 1), drawn)
    line = torch.maximum(outlines(parts, get(styles, "line_width")[:, 0]), drawn)
    picture = areas(styles, "ground", "ground")
    shadow = get(styles, "shadow")[:, 0] > 0
    if shadow.any():
        cast = blur(F.pad(alpha[shadow], (5, -5, 5, -5)), 2)
        picture[shadow] = -1 + (picture[shadow] + 1) * (1 - 0.5 * number("shadow")[shadow] * cast)
    glow = get(styles, "glow")[:, 0] > 0
    if glow.any():
        halo = number("glow")[glow] * (1.6 * blur(line[glow], 4)).clamp(0, 1)
        picture[glow] += (number("line")[glow] - picture[glow]) * halo
    fill = areas(styles, "fill", "main")
    picture = picture + (fill - picture) * parts[:, MAIN : MAIN + 1]
    for part, colour in ((SECOND, "second"), (ACCENT, "accent")):
        picture = picture + (number(colour) - picture) * parts[:, part : part + 1]
    drawn_over = picture + (number("line") - picture) * line
    return textured(drawn_over, picture, alpha, parts, styles).clamp(-1, 1)


@torch.no_grad()
def swatches(styles: Tensor) -> Tensor:
    """What styles look like: the ground without an object, and the main part filling the frame.

    Returns:
        [batch, 6, SIDE, SIDE] in -1..1: two pictures, one after the other.
    """
    nothing = torch.zeros(len(styles), 4, SIDE, SIDE)
    everything = nothing.clone()
    everything[:, MAIN] = 1
    return torch.cat([paint(nothing, styles), paint(everything, styles)], 1)


def textured(
    picture: Tensor, filled: Tensor, alpha: Tensor, parts: Tensor, styles: Tensor
) -> Tensor:
    """Pictures with what a hand, a printer or a tiler leaves behind.

    `filled` are the pictures without their lines.
    """
    kinds = get(styles, "texture").argmax(1)
    result = picture.clone()
    for index, kind in enumerate(TEXTURES):
        chosen = kinds == index
        if kind == "none" or not chosen.any():
            continue

        def number(field: str, chosen: Tensor = chosen) -> Tensor:
            return get(styles, field)[chosen, :, None, None]

        x, inside = picture[chosen], alpha[chosen]
        strength, size = number("texture_strength"), number("texture_size")
        if kind == "grain":
            x = x + 0.2 * strength * torch.lerp(_NOISE["fine"], _NOISE["middle"], size)
        elif kind in ("hatching", "halftone"):
            light = (filled[chosen].mean(1, keepdim=True) + 1) / 2
            marks = strokes(light, size) if kind == "hatching" else halftone_dots(light, size)
            x = x + (number("line") - x) * 0.9 * strength * marks * (0.25 + 0.75 * inside)
        elif kind == "watercolour":
            wash = 0.5 + 0.35 * _NOISE["wide"] + 0.15 * _NOISE["middle"]
            paper = torch.ones_like(x) * 0.92
            x = x + (paper - x) * 0.45 * strength * wash.clamp(0, 1) * inside
            rim = (parts[chosen] * (1 - blur(parts[chosen], 2))).amax(1, keepdim=True)
            x = -1 + (x + 1) * (1 - 0.9 * strength * rim)
        elif kind == "crayon":
            gaps = (0.5 + 1.2 * (_STROKES - 0.9 + 0.5 * size)).clamp(0, 1)
            x = x + (number("ground_1") - x) * strength * gaps
        else:
            x = tiled(x, size, strength if kind == "mosaic" else None, number("line"))
        result[chosen] = x
    return result


def strokes(light: Tensor, size: Tensor) -> Tensor:
    """Diagonal strokes, the thinner the lighter the place: [batch, 1, SIDE, SIDE] in 0..1."""
    cycles = 26 - 12 * size
    distance = _wave((_X + _Y) * cycles / 2 + 0.02 * _NOISE["wide"])
    return (0.5 + (0.42 - 0.34 * light - distance) * SIDE / cycles).clamp(0, 1)


def halftone_dots(light: Tensor, size: Tensor) -> Tensor:
    """A printer's dots, the smaller the lighter the place: [batch, 1, SIDE, SIDE] in 0..1."""
    cycles = 22 - 10 * size
    u, v = (_X + _Y) * cycles / 2**0.5, (_X - _Y) * cycles / 2**0.5
    distance = _length(_wave(u), _wave(v))
    return (0.5 + (0.5 - 0.4 * light - distance) * SIDE / cycles).clamp(0, 1)


def tiled(x: Tensor, size: Tensor, grout: Tensor | None, line: Tensor) -> Tensor:
    """Pictures averaged over square tiles, with grout between them for a mosaic."""
    result = x.clone()
    which = (size.flatten() * 3.999).long()
    for index, edge in enumerate((4, 6, 8, 10)):
        chosen = which == index
        if not chosen.any():
            continue
        margin = (-SIDE) % edge
        tiles = F.avg_pool2d(F.pad(x[chosen], (0, margin, 0, margin), mode="replicate"), edge)
        flat = tiles.repeat_interleave(edge, 2).repeat_interleave(edge, 3)[..., :SIDE, :SIDE]
        if grout is not None:
            first = torch.arange(SIDE) % edge == 0
            gap = (first[:, None] | first[None, :]).float()
            flat = flat + (line[chosen] - flat) * 0.7 * grout[chosen] * gap
        result[chosen] = flat
    return result
