"""Grids of pictures, sweeps over alphas and seeds, and curves of losses, as matplotlib figures."""

import io
import textwrap
from base64 import b64encode
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from blora_nb.files.images import read_image
from blora_nb.files.paths import free_path
from blora_nb.files.safe_files import complete_file
from blora_nb.files.saved_images import read_settings
from blora_nb.generation import generate, sample, seed_list
from blora_nb.lora import apply, set_alphas
from blora_nb.metrics import ranked
from blora_nb.registry import pipeline_lock
from blora_nb.validation import SHEET, validated


def widget_data(widget, text):
    """The display data of a widget, with a text for places that show none."""
    return {
        "text/plain": text,
        "application/vnd.jupyter.widget-view+json": {
            "version_major": 2,
            "version_minor": 0,
            "model_id": widget.model_id,
        },
    }


class NotebookFigure(Figure):
    """A matplotlib figure that any notebook shows as a PNG, with its caption as the text for those who cannot see it."""

    caption = ""

    def png(self):
        """The figure as the bytes of a PNG file."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        # 112 colours, chosen to cover all that occur, are enough to look at, and keep a notebook small
        Image.open(drawn).convert("RGB").quantize(
            112, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        ).save(small, format="PNG", optimize=True)
        return small.getvalue()

    def _repr_png_(self):
        return self.png(), {"alt": self.caption}

    def instead_of(self, widget):
        """The display data and metadata of a widget, with this figure for places where no kernel runs."""
        return widget_data(widget, self.caption) | {"image/png": b64encode(self.png()).decode()}, {
            "image/png": {"alt": self.caption}
        }

    def __repr__(self):
        return self.caption


def picture_grid(rows, row_labels=None, column_labels=None, caption="", side=1.25, titles=None):
    """A figure of labelled pictures.

    Args:
        rows: a list of rows, each a list of PIL images; None leaves a place empty.
        row_labels, column_labels: one text for each.
        caption: a sentence under the figure; name the seed and the alphas in it.
        side: of one picture, in inches.
        titles: a text above each picture, in rows like the pictures; instead of `column_labels`.
    """
    columns = max(len(row) for row in rows)
    margin = 0.085 * max((len(t) + 1 for t in row_labels or []), default=0)
    heads = [t for line in titles for t in line] if titles else column_labels or []
    above = 0.28 + 0.16 * max(t.count("\n") for t in heads) if heads else 0.02
    size = (
        margin + side * columns,
        side * len(rows) + above * (len(rows) if titles else 1) + (0.3 if caption else 0),
    )
    figure = NotebookFigure(figsize=size, dpi=96)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    bottom, top = (0.3 if caption else 0.02) / size[1], 1 - above / size[1]
    figure.subplots_adjust(
        left=margin / size[0] + 0.005,
        right=0.995,
        bottom=bottom,
        top=top,
        wspace=0.04,
        hspace=above / side if titles else 0.04,
    )
    for y, row in enumerate(rows):
        for x in range(columns):
            ax = axes[y][x]
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_frame_on(False)
            if x < len(row) and row[x] is not None:
                ax.imshow(
                    np.asarray(row[x]),
                    interpolation="nearest" if row[x].width < 128 else "antialiased",
                )
            if x == 0 and row_labels:
                ax.set_ylabel(row_labels[y], rotation=0, ha="right", va="center", fontsize=9)
            if titles and x < len(titles[y]):
                ax.set_title(titles[y][x], fontsize=9, pad=3)
            elif y == 0 and column_labels:
                ax.set_title(column_labels[x], fontsize=9, pad=3)
    figure.caption = caption or f"{len(rows)} rows of {columns} pictures"
    if caption:
        figure.text(
            0.5, 0.08 / size[1], caption, ha="center", va="bottom", fontsize=8, color="0.35"
        )
    return figure


def alpha_sweep(
    pipe,
    prompt="A [c] in [s] style",
    content=None,
    style=None,
    half="style",
    alphas=(-1, 0, 0.5, 1, 1.5),
    seed=0,
    num_inference_steps=None,
    other_alpha=1.0,
    progress=True,
):
    """One row of pictures of the same seed, along which the alpha of one half changes: a slider on paper.

    Args:
        content, style: `BLoRA`s or paths, or None. half: whose alpha changes. other_alpha: of the other half.
    """
    if half not in ("content", "style"):
        raise ValueError(f'half is "content" or "style", not {half!r}.')
    grid = {half: alphas, "style" if half == "content" else "content": (other_alpha,)}
    rows = _draw_alphas(
        pipe,
        prompt,
        content,
        style,
        grid["content"],
        grid["style"],
        seed,
        num_inference_steps,
        progress,
    )
    other = "style" if half == "content" else "content"
    fixed = (
        f", {other} alpha {other_alpha:g}"
        if {"content": content, "style": style}[other] is not None
        else ""
    )
    caption = (
        f'"{prompt}", seed {seed}, {half} alpha from {min(alphas):g} to {max(alphas):g}{fixed}'
    )
    return picture_grid(
        [[picture for row in rows for picture in row]],
        None,
        [f"{half} {a:g}" for a in alphas],
        caption,
        side=1.35,
    )


def alpha_grid(
    pipe,
    prompt="A [c] in [s] style",
    content=None,
    style=None,
    content_alphas=(0, 0.5, 1, 1.5),
    style_alphas=(0, 0.5, 1, 1.5),
    seed=0,
    num_inference_steps=None,
    progress=True,
):
    """A figure of pictures of the same seed: the content's alpha grows downwards, the style's to the right. Arguments as in `generation.generate`."""
    rows = _draw_alphas(
        pipe,
        prompt,
        content,
        style,
        content_alphas,
        style_alphas,
        seed,
        num_inference_steps,
        progress,
    )
    caption = (
        f'"{prompt}", seed {seed}, content alpha {min(content_alphas):g} to {max(content_alphas):g}, style alpha {min(style_alphas):g} to {max(style_alphas):g}'
        + (f", {num_inference_steps} steps" if num_inference_steps else "")
    )
    return picture_grid(
        rows,
        [f"content {a:g}" for a in content_alphas],
        [f"style {a:g}" for a in style_alphas],
        caption,
    )


def _draw_alphas(
    pipe, prompt, content, style, content_alphas, style_alphas, seed, num_inference_steps, progress
):
    """Rows of pictures, a row for each content alpha; the halves are put on the pipeline once."""
    from tqdm.auto import tqdm

    cells = [(c, s) for c in content_alphas for s in style_alphas]
    pictures = []
    with pipeline_lock(pipe):
        apply(pipe, content, style)
        for content_alpha, style_alpha in tqdm(cells, desc="alphas", disable=not progress):
            set_alphas(pipe, content_alpha, style_alpha)
            pictures += sample(pipe, prompt, seed, num_inference_steps, progress=False)
    return [pictures[i : i + len(style_alphas)] for i in range(0, len(cells), len(style_alphas))]


def seed_sweep(
    pipe,
    prompt="A [c] in [s] style",
    content=None,
    style=None,
    content_alpha=1.0,
    style_alpha=1.0,
    seeds=range(8),
    num_inference_steps=None,
    progress=True,
):
    """A figure of the same settings with several seeds, unranked, four to a row; `seed_ranking` also shows scores. Arguments as in `generation.generate`."""
    seeds = seed_list(seeds)
    with pipeline_lock(pipe):
        images = generate(
            pipe,
            prompt,
            content,
            style,
            content_alpha,
            style_alpha,
            seeds,
            num_inference_steps,
            progress=progress,
        )
    alphas = [
        f"{half} alpha {alpha:g}"
        for half, blora, alpha in (
            ("content", content, content_alpha),
            ("style", style, style_alpha),
        )
        if blora is not None
    ]
    return _cards(
        images,
        [f"seed {seed}" for seed in seeds],
        ", ".join([f'"{prompt}"', f"seeds {seeds[0]} to {seeds[-1]}", *alphas]),
    )


def seed_ranking(seeds, images, scores, caption=""):
    """Pictures of several seeds, best first, with their scores beneath.

    Args:
        scores: name ("content kept", "style moved") to a list of numbers, one for each picture: the judge's 0 to 1, or cosines.
    """
    order = ranked(*scores.values())
    labels = [
        f"{place}. seed {seeds[i]}\n"
        + "\n".join(f"{name} {values[i]:.2f}" for name, values in scores.items())
        for place, i in enumerate(order, 1)
    ]
    return _cards(
        [images[i] for i in order],
        labels,
        caption or f"seeds {', '.join(str(seeds[i]) for i in order)}, best first",
    )


def _cards(images, labels, caption, columns=4, side=1.5):
    """A figure of pictures in rows of `columns`, each with its label underneath."""
    rows = -(-len(images) // columns)
    label_height = 0.17 * max(label.count("\n") + 1 for label in labels) + 0.1
    width = side * columns
    lines = textwrap.wrap(caption, int(width * 15))
    below = 0.15 * len(lines) + 0.15
    size = width, rows * (side + label_height) + below
    figure = NotebookFigure(figsize=size, dpi=96)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.subplots_adjust(
        left=0.005,
        right=0.995,
        top=1 - 0.02 / size[1],
        bottom=(below + label_height) / size[1],
        wspace=0.06,
        hspace=label_height / side * 1.04,
    )
    for ax in axes:
        ax.axis("off")
    for ax, image, label in zip(axes, images, labels):
        ax.imshow(
            np.asarray(image), interpolation="nearest" if image.width < 128 else "antialiased"
        )
        ax.text(0.5, -0.03, label, transform=ax.transAxes, ha="center", va="top", fontsize=8)
    figure.text(
        0.5, 0.08 / size[1], "\n".join(lines), ha="center", va="bottom", fontsize=8, color="0.35"
    )
    figure.caption = caption
    return figure


def checkpoint_grid(folder):
    """The pictures made at each checkpoint of a training: a row for each checkpoint, a column for each seed.

    Raises:
        FileNotFoundError: there are none.
    """
    found = validated(folder)
    rows = [[read_image(picture) for picture in pictures] for pictures in found.values()]
    steps, (prompt, *_) = (
        [f"step {path.name.partition('-')[2]}" for path in found],
        [read_settings(pictures[0])["prompt"] for pictures in found.values()],
    )
    return picture_grid(
        rows,
        steps,
        [f"seed {seed}" for seed in range(max(map(len, rows)))],
        f'"{prompt}" at {len(rows)} checkpoints',
        side=1.5,
    )


def loss_curve(losses, window=20, caption=""):
    """The loss of each step, and its running mean over `window` steps."""
    figure = NotebookFigure(figsize=(6, 2.4), dpi=110, layout="constrained")
    ax = figure.subplots()
    ax.plot(range(1, len(losses) + 1), losses, color="0.75", linewidth=0.8, label="each step")
    if len(losses) >= window:
        ax.plot(
            range(window, len(losses) + 1),
            np.convolve(losses, np.ones(window) / window, "valid"),
            color="#0072b2",
            label=f"mean of {window} steps",
        )
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    figure.caption = caption or f"the loss of {len(losses)} steps"
    if caption:
        ax.set_title(caption, fontsize=8, color="0.35")
    return figure


def heat_map(values, row_labels, column_labels, caption=""):
    """A table of numbers in colours that the colour-blind can tell apart, each number written in its field.

    Args:
        values: [rows, columns], a tensor or nested lists.
    """
    values = np.asarray(values, dtype=float)
    margin, lines = 0.075 * max(map(len, row_labels)), textwrap.wrap(caption, 90)
    size = (
        max(margin + 0.8 * len(column_labels) + 0.3, 6.2),
        0.28 * len(row_labels) + 0.35 + 0.17 * len(lines),
    )
    figure = NotebookFigure(figsize=size, dpi=110)
    width = 0.8 * len(column_labels) / size[0]
    left = (1 - width - margin / size[0]) / 2 + margin / size[0]
    ax = figure.add_axes(
        (left, (0.08 + 0.17 * len(lines)) / size[1], width, 0.28 * len(row_labels) / size[1])
    )
    high = max(values.max(), 1e-9)
    ax.imshow(values, cmap="cividis", aspect="auto", vmin=min(values.min(), 0), vmax=high)
    for (y, x), value in np.ndenumerate(values):
        ax.text(
            x,
            y,
            f"{abs(value) if abs(value) < 0.005 else value:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if value > 0.55 * high else "white",
        )
    ax.set_xticks(range(len(column_labels)), column_labels, fontsize=9)
    ax.set_yticks(range(len(row_labels)), row_labels, fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.caption = caption or f"{len(row_labels)} rows of {len(column_labels)} numbers"
    figure.text(
        0.5, 0.05 / size[1], "\n".join(lines), ha="center", va="bottom", fontsize=8, color="0.35"
    )
    return figure


def overlay(image, weights):
    """A PIL image of the picture, dimmed where the weights [height, width] are small; the largest weight leaves it bright."""
    weights = np.asarray(weights, dtype=np.float32)
    mask = Image.fromarray(weights / max(weights.max(), 1e-9)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    light = 0.15 + 0.85 * np.asarray(mask).clip(0, 1)[..., None]
    return Image.fromarray((np.asarray(image.convert("RGB")) * light).round().astype(np.uint8))


def line_figure(curves, x_label, y_label, caption="", x=None):
    """Named curves, a dictionary of lists of numbers, over the values of `x`, by default 1, 2, 3, …"""
    figure = NotebookFigure(figsize=(6, 2.4), dpi=110, layout="constrained")
    ax = figure.subplots()
    for (name, values), colour, marker in zip(
        curves.items(), ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), "os^D"
    ):
        ax.plot(
            range(1, len(values) + 1) if x is None else x,
            values,
            color=colour,
            marker=marker,
            markersize=4,
            label=name,
        )
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(caption, fontsize=8, color="0.35")
    figure.caption = caption or f"{len(curves)} curves"
    return figure


def write_validation_sheet(folder):
    """Write the `SHEET` of a training into its folder, beside an older one where there is one; returns its path."""
    from blora_nb.figures import checkpoint_grid

    path, sheet = free_path(folder, Path(SHEET).stem, ".png"), checkpoint_grid(folder).png()
    with complete_file(path) as part:
        part.write_bytes(sheet)
    return path
