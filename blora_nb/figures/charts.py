"""Charts with a line for each curve, such as the loss of a training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from blora_nb.blocks import COLOUR_OF_HALF
from blora_nb.figures.notebook_figure import NotebookFigure

# Okabe and Ito's colours, which the colour-blind can tell apart
LINE_COLOURS = (*COLOUR_OF_HALF.values(), "#009e73", "#cc79a7")
MARKERS = "os^D"
BEST = "0.1"  # the colour of what is recommended


def loss_curve(losses: Sequence[float], window: int = 20, caption: str = "") -> NotebookFigure:
    """The loss of each step, and its running mean over `window` steps."""
    figure, ax = chart("step", "loss")
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, color="0.75", linewidth=0.8, label="each step")
    if len(losses) >= window:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        ax.plot(steps[window - 1 :], mean, color=LINE_COLOURS[1], label=f"mean of {window} steps")
    finish_chart(ax)
    figure.add_caption(caption, f"the loss of {len(losses)} steps")
    return figure


def line_figure(
    curves: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    caption: str = "",
    x: Sequence[float] | None = None,
) -> NotebookFigure:
    """Up to four curves by name, over the values of `x`, by default 1, 2, 3, …

    Raises:
        ValueError: there are more, which could not be told apart.
    """
    most = len(LINE_COLOURS)
    if len(curves) > most:
        raise ValueError(
            f"There are {len(curves)} curves, and only {most} of them can be told apart. Draw "
            "several figures."
        )
    figure, ax = chart(x_label, y_label)
    for (name, values), colour, marker in zip(curves.items(), LINE_COLOURS, MARKERS):
        places = range(1, len(values) + 1) if x is None else x
        ax.plot(places, values, color=colour, marker=marker, markersize=4, label=name)
    finish_chart(ax)
    figure.add_caption(caption, f"{len(curves)} curves")
    return figure


def chart(x_label: str, y_label: str) -> tuple[NotebookFigure, Axes]:
    """A figure with empty axes for curves."""
    figure = NotebookFigure(figsize=(5.4, 1.8), dpi=110)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlabel=x_label, ylabel=y_label)
    return figure, ax


def finish_chart(ax: Axes) -> None:
    """What has to wait until the curves are drawn: the range from 0 on, and the legend."""
    # cosines can be negative, and then the range begins at the lowest
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
