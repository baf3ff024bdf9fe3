"""Grids of pictures and curves of losses, as matplotlib figures."""

import io

import numpy as np
from PIL import Image
from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib figure that any notebook shows as a PNG, with its caption as the text for those who cannot see it."""

    caption = ""

    def _repr_png_(self):
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        # 128 colours are enough to look at, and keep a notebook small
        Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
        return small.getvalue()

    def __repr__(self):
        return self.caption


def picture_grid(rows, row_labels=None, column_labels=None, caption="", side=1.25):
    """A figure of labelled pictures.

    Args:
        rows: a list of rows, each a list of PIL images; None leaves a place empty.
        row_labels, column_labels: one text for each.
        caption: a sentence under the figure; name the seed and the alphas in it.
        side: of one picture, in inches.
    """
    columns = max(len(row) for row in rows)
    margin = 0.085 * max((len(t) for t in row_labels or []), default=0)
    size = margin + side * columns, side * len(rows) + (0.28 if column_labels else 0) + (0.3 if caption else 0)
    figure = NotebookFigure(figsize=size, dpi=96)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    bottom, top = (0.3 if caption else 0.02) / size[1], 1 - (0.28 if column_labels else 0.02) / size[1]
    figure.subplots_adjust(left=margin / size[0] + 0.005, right=0.995, bottom=bottom, top=top, wspace=0.04, hspace=0.04)
    for y, row in enumerate(rows):
        for x in range(columns):
            ax = axes[y][x]
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_frame_on(False)
            if x < len(row) and row[x] is not None:
                ax.imshow(np.asarray(row[x]), interpolation="nearest" if row[x].width < 128 else "antialiased")
            if x == 0 and row_labels:
                ax.set_ylabel(row_labels[y], rotation=0, ha="right", va="center", fontsize=9)
            if y == 0 and column_labels:
                ax.set_title(column_labels[x], fontsize=9, pad=3)
    figure.caption = caption or f"{len(rows)} rows of {columns} pictures"
    if caption:
        figure.text(0.5, 0.08 / size[1], caption, ha="center", va="bottom", fontsize=8, color="0.35")
    return figure


def loss_curve(losses, window=20, caption=""):
    """The loss of each step, and its running mean over `window` steps."""
    figure = NotebookFigure(figsize=(6, 2.4), dpi=110, layout="constrained")
    ax = figure.subplots()
    ax.plot(range(1, len(losses) + 1), losses, color="0.75", linewidth=0.8, label="each step")
    if len(losses) >= window:
        ax.plot(range(window, len(losses) + 1), np.convolve(losses, np.ones(window) / window, "valid"), color="#0072b2", label=f"mean of {window} steps")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    figure.caption = caption or f"the loss of {len(losses)} steps"
    if caption:
        ax.set_title(caption, fontsize=8, color="0.35")
    return figure
