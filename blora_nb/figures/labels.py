"""Texts for the points of a chart, placed where they cover nothing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

THIN_LINE = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
NEAR = 7  # points of type from a point of a chart to a label that needs no line to it


@dataclass(frozen=True)
class PointLabel:
    """A text for a point of a chart.

    Attributes:
        x, y: the point, in the units of the axes.
        needed: may stand far from its point; others are left out where there is no room near it.
    """

    x: float
    y: float
    text: str
    needed: bool = True


def label_points(
    ax: Axes, labels: Sequence[PointLabel], line: Sequence[tuple[float, float]] = ()
) -> None:
    """Write labels beside their points so that no text covers a point, a line, or another text.

    A label that has to stand away from its point is joined to it by a thin line. The first labels
    choose first. Nothing may be drawn afterwards that changes the limits of the axes.

    Args:
        line: the (x, y) of a line through points, in the units of the axes.
    """
    figure = ax.get_figure()
    assert figure is not None
    pixels = figure.dpi / 72  # of a point of type
    inside = ax.get_window_extent()
    # matplotlib puts it off until drawing
    ax.autoscale_view()
    points = ax.transData.transform([(label.x, label.y) for label in labels])
    taken = [_box(point, 9 * pixels, 9 * pixels) for point in points]
    if line:
        taken += _boxes_along(ax.transData.transform(line))
    for label, point in zip(labels, points):
        text = ax.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8 if label.needed else 7,
            color="0.15" if label.needed else "0.5",
        )
        size = text.get_window_extent()
        for radius, angle in _ways_round(farthest=200 if label.needed else 30):
            # from the point to the middle of the text, and to where a line to it ends
            near = np.array([math.cos(angle), math.sin(angle)]) * radius * pixels
            middle = near + np.sign(near.round(6)) * (size.width / 2, size.height / 2)
            box = _box(point + middle, size.width + 4, size.height + 2)
            joined = radius > NEAR
            # without a line, a label seems to belong to the nearest point
            if not joined and _distance(box, point) > min(_distance(box, p) for p in points):
                continue
            way = _boxes_along([point + near * 8 / radius, point + near]) if joined else []
            fits = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if fits and not any(one.overlaps(other) for one in (box, *way) for other in taken):
                text.set_position(tuple(middle / pixels))
                taken += [box, *way]
                if joined:
                    ax.annotate(
                        "",
                        (label.x, label.y),
                        xytext=tuple(near / pixels),
                        textcoords="offset points",
                        arrowprops=THIN_LINE,
                    )
                break
        else:
            text.remove()


def _ways_round(farthest: float) -> Iterator[tuple[float, float]]:
    """(distance, angle) of places to try for a label, in points and radians.

    The nearest first, and oblique ones first: on level ones are the bars of standard errors.
    """
    for distance in range(NEAR, int(farthest), 8):
        for sixteenth in (2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11, 0, 8, 4, 12):
            yield distance, sixteenth * math.pi / 8


def _box(middle: np.ndarray, width: float, height: float) -> Bbox:
    """A box round its middle (x, y)."""
    half = np.array([width, height]) / 2
    return Bbox([middle - half, middle + half])


def _distance(box: Bbox, point: np.ndarray) -> float:
    """How far a point (x, y) lies outside a box."""
    outside = np.maximum(0, np.maximum(box.min - point, point - box.max))
    return float(np.hypot(*outside))


def _boxes_along(line: Sequence[np.ndarray] | np.ndarray) -> list[Bbox]:
    """Small boxes that cover a line through points, in pixels."""
    return [
        _box(point, 3, 3)
        for start, end in pairwise(line)
        for point in np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 3))
    ]
