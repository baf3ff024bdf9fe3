"""Attention as a map, alone or over its picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from blora_nb.figures.notebook_figure import NotebookFigure


def heat_map(
    values: Tensor | Sequence[Sequence[float]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    caption: str = "",
) -> NotebookFigure:
    """A table of numbers with coloured fields, which the colour-blind can tell apart.

    Args:
        values: [rows, columns], a tensor or nested lists.
    """
    table = np.asarray(values, dtype=float)
    rows, columns = table.shape
    figure = NotebookFigure(figsize=(0.8 * columns, 0.28 * rows), dpi=110)
    ax = figure.add_axes((0, 0, 1, 1))
    high = max(table.max(), 1e-9)
    ax.imshow(table, cmap="cividis", aspect="auto", vmin=min(table.min(), 0), vmax=high)
    for (y, x), value in np.ndenumerate(table):
        colour = "black" if value > 0.55 * high else "white"
        ax.text(x, y, f"{value:z.2f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(columns), column_labels, fontsize=9)
    ax.set_yticks(range(rows), row_labels, fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.add_caption(caption, f"{rows} rows of {columns} numbers")
    return figure


def overlay(
    image: Image.Image, weights: Tensor | np.ndarray, mark: tuple[int, int] | None = None
) -> Image.Image:
    """The picture, dimmed where the weights [height, width] are small, bright where largest.

    Args:
        mark: row and column of the weights, a position that gets a frame.
    """
    weights = np.asarray(weights, dtype=np.float32)
    mask = Image.fromarray(weights / max(weights.max(), 1e-9))
    mask = mask.resize(image.size, Image.Resampling.BILINEAR)
    light = 0.3 + 0.7 * np.asarray(mask).clip(0, 1)[..., None]
    shown = Image.fromarray((np.asarray(image.convert("RGB")) * light).round().astype(np.uint8))
    if mark:
        row, column = mark
        high, wide = image.height / weights.shape[0], image.width / weights.shape[1]
        corners = (column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1)
        ImageDraw.Draw(shown).rectangle(corners, outline="white", width=max(1, image.width // 64))
    return shown
