"""The content–style frontier as a chart, with the pictures along it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from blora_nb.evaluation.metrics import DECIMALS
from blora_nb.figures.charts import BEST, LINE_COLOURS
from blora_nb.figures.grids import show_picture
from blora_nb.figures.labels import PointLabel, label_points
from blora_nb.figures.notebook_figure import NotebookFigure

if TYPE_CHECKING:
    from blora_nb.figures.alpha_frontier import Frontier, FrontierPoint


def frontier_figure(frontier: "Frontier") -> NotebookFigure:
    """Content kept against style moved for pairs of alphas, and pictures along the frontier.

    Points at the same place, to two decimals, have one label. A dominated point has one where there
    is room.
    """
    figure = NotebookFigure(figsize=(9.2, 4.1), dpi=110)
    _draw_frontier(figure.add_axes((0, 0, 0.5, 1)), frontier)
    best = frontier.best_point
    for number, point in enumerate(_along(frontier.frontier, best, 4)):
        row, column = divmod(number, 2)
        ax = figure.add_axes((0.55 + 0.235 * column, 0.61 - 0.59 * row, 0.2, 0.45))
        show_picture(ax, point.images[0])
        ax.set(xticks=[], yticks=[], frame_on=point is best)
        ax.spines[:].set(color=BEST, linewidth=2.5)
        ax.set_xlabel(
            f"content {point.content_alpha:g}, style {point.style_alpha:g}\n"
            f"kept {point.content_kept:.2f}, moved {point.style_moved:.2f}",
            fontsize=8,
            fontweight="bold" if point is best else "normal",
        )
    figure.add_caption(_frontier_caption(frontier), "")
    return figure


def _draw_frontier(ax: Axes, frontier: "Frontier") -> None:
    """The points with their standard errors and labels, and a line through the frontier."""
    best, on_it = frontier.best_point, frontier.frontier
    off_it = [point for point in frontier.points if point not in on_it]
    dot: dict[str, Any] = {"marker": "o", "markersize": 5, "linestyle": "none", "elinewidth": 0.7}
    line = dot | {"linestyle": "-", "linewidth": 1.2}
    star = dot | {"marker": "*", "markersize": 15, "zorder": 4}
    for points, name, colour, look in (
        (off_it, "dominated", "0.6", dot),
        (on_it, "frontier", LINE_COLOURS[2], line),
        ([best], "recommended", BEST, star),
    ):
        if points:
            places = np.array([_place(point) for point in points])
            ax.errorbar(
                places[:, 0],
                places[:, 1],
                xerr=[point.content_error or 0 for point in points],
                yerr=[point.style_error or 0 for point in points],
                color=colour,
                ecolor=to_rgba(colour, 0.35),
                label=name,
                **look,
            )
    ax.set(xlabel="content kept", ylabel="style moved")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(0.12)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8,
        title="labels: content alpha / style alpha",
        title_fontsize=8,
        alignment="left",
    )
    labels = _labels(frontier, [best, *on_it, *off_it])
    label_points(ax, labels, [_place(point) for point in on_it])


def _place(point: "FrontierPoint") -> tuple[float, float]:
    """Its content kept and style moved, as they count."""
    return round(point.content_kept, DECIMALS), round(point.style_moved, DECIMALS)


def _labels(frontier: "Frontier", points: Sequence["FrontierPoint"]) -> list[PointLabel]:
    """One label for all points at one place; the first of them is named."""
    places: dict[tuple[float, float], list[FrontierPoint]] = {}
    for point in points:
        there = places.setdefault(_place(point), [])
        if point not in there:
            there.append(point)
    on_it = frontier.frontier
    labels = []
    for place, (first, *others) in places.items():
        text = f"{first.content_alpha:g} / {first.style_alpha:g}"
        text += f" and {len(others)} more" if others else ""
        labels.append(PointLabel(*place, text, needed=first in on_it))
    return labels


def _along(
    points: Sequence["FrontierPoint"], best: "FrontierPoint", count: int
) -> list["FrontierPoint"]:
    """At most `count` points, evenly spaced among those given, the recommended one among them."""
    if len(points) <= count:
        return list(points)
    places = {round(i * (len(points) - 1) / (count - 1)) for i in range(count)}
    wanted = points.index(best)
    if wanted not in places:
        places.remove(min(places, key=lambda place: abs(place - wanted)))
        places.add(wanted)
    return [points[place] for place in sorted(places)]


def _frontier_caption(frontier: "Frontier") -> str:
    """What was drawn, the rule of the recommendation, and how far the scores are to be trusted."""
    content_alpha, style_alpha = frontier.best
    seeds = ", ".join(str(seed) for seed in frontier.seeds)
    if len(frontier.seeds) == 1:
        noise = "One seed says nothing of the noise: other seeds may give another order."
    else:
        noise = (
            f"Bars: ± one standard error over {len(frontier.seeds)} seeds; points nearer than that "
            "may change places."
        )
    return (
        f'"{frontier.prompt}", {len(frontier.points)} pairs of alphas, seeds {seeds}. '
        f"Recommended: content alpha {content_alpha:g}, style alpha {style_alpha:g}, the best "
        f"balance. {noise} Pictures: seed {frontier.seeds[0]}, from most content to most style."
    )
