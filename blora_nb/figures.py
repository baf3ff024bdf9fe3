"""Grids of pictures, sweeps over alphas, heat maps and curves, as matplotlib figures."""

import io
import math
import textwrap
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw
from torch import Tensor

from blora_nb.blocks import COLOUR_OF_HALF
from blora_nb.checkpoint_scores import CheckpointScores, recommended
from blora_nb.files.images import read_image
from blora_nb.files.paths import free_path
from blora_nb.files.safe_files import complete_file
from blora_nb.files.saved_images import read_settings
from blora_nb.generation import sample
from blora_nb.lora import Given, apply, set_alphas
from blora_nb.metrics import DECIMALS, mean_and_error, ranked
from blora_nb.rebuilding import psnr
from blora_nb.registry import pipeline_lock
from blora_nb.running.checkpoints import step_of
from blora_nb.validation import SHEET, SHOWN_AS, pictures_by_half

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from ipywidgets import Widget

    from blora_nb.alpha_frontier import Frontier, FrontierPoint

Row = Sequence[Image.Image | None]
Rows = Sequence[Row]

GAP = 0.05  # inches between pictures
# Okabe and Ito's colours, which the colour-blind can tell apart
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MARKERS = "os^D"
BEST = "0.1"  # the colour of what is recommended
MOST_TICKS = 12
# dB (PSNR) of a figure with few colours to that with all: the lessons' figures, which have to stay
# small, have 30.4 and more; grids of smooth pictures such as photos, which show bands, 25 to 29.9
LOOKS_THE_SAME = 30.0
NEAR = 7  # points of type from a point of a chart to a label that needs no line to it


def widget_data(widget: "Widget", text: str) -> dict[str, Any]:
    """The display data of a widget, with a text for places that show none."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": text, "application/vnd.jupyter.widget-view+json": view}


class NotebookFigure(Figure):
    """A matplotlib figure that any notebook shows as a PNG file.

    Attributes:
        caption: the sentence under the figure, also its text for those who cannot see it.
    """

    caption = ""

    def add_caption(self, caption: str, otherwise: str) -> None:
        """Write a caption under all that has been drawn; without one, `otherwise` is the text."""
        self.caption = caption or otherwise
        if not caption:
            return
        drawn = self.get_tightbbox()  # in inches
        # 15 characters of this size take an inch
        lines = textwrap.wrap(caption, int(15 * max(drawn.width, 5)))
        x = (drawn.x0 + drawn.x1) / 2 / self.get_figwidth()
        y = (drawn.y0 - 0.08) / self.get_figheight()
        # a prompt may have dollar signs, which are no mathematics
        shown = self.text(x, y, "\n".join(lines), ha="center", va="top", fontsize=8, color="0.35")
        shown.set_parse_math(False)

    def savefig(self, *args: Any, **options: Any) -> None:
        """As matplotlib's, but labels and caption outside of the axes always belong to it."""
        super().savefig(*args, **{"bbox_inches": "tight", "pad_inches": 0.05, **options})

    def png(self) -> bytes:
        """The figure as the bytes of a PNG file, with fewer colours where that looks the same."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        # 112 colours, chosen to cover all that occur, keep a notebook small
        all_colours = Image.open(drawn).convert("RGB")
        few_colours = all_colours.quantize(
            112, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        )
        both = [np.asarray(one.convert("RGB")) / 255 for one in (few_colours, all_colours)]
        if psnr(*both) < LOOKS_THE_SAME:
            return drawn.getvalue()
        few_colours.save(small, format="PNG", optimize=True)
        return small.getvalue()

    def instead_of(self, widget: "Widget") -> tuple[dict[str, Any], dict[str, Any]]:
        """The display data and metadata of a widget; without a kernel, this figure is shown."""
        data = widget_data(widget, self.caption)
        data["image/png"] = b64encode(self.png()).decode()
        return data, {"image/png": {"alt": self.caption}}

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.png(), {"alt": self.caption}

    def __repr__(self) -> str:
        return self.caption


def picture_grid(
    rows: Rows | Row,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    caption: str = "",
    side: float = 1.25,
    titles: Sequence[Sequence[str]] | None = None,
) -> NotebookFigure:
    """A figure of labelled pictures.

    Args:
        rows: a list of rows, each a list of PIL images, or the images of a single row; None leaves
            a place empty.
        row_labels, column_labels: one text for each.
        caption: a sentence under the figure; name the seed and the alphas in it.
        side: the width of one picture, in inches.
        titles: a text above each picture, in rows like the pictures; instead of `column_labels`.

    Raises:
        ValueError: there are no pictures, or some are in rows and some are not.
    """
    rows = _checked_rows(rows)
    lines = max((text.count("\n") + 1 for line in titles or () for text in line), default=0)
    figure, axes = _show_pictures(rows, side, 0.16 * lines + 0.12 if titles else GAP)
    for row, texts in zip(axes, titles or [column_labels or []]):
        for ax, text in zip(row, texts):
            ax.set_title(text, fontsize=9, pad=3)
    for ax, text in zip(axes[:, 0], row_labels or []):
        ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    height, width = axes.shape
    figure.add_caption(caption, f"{height} rows of {width} pictures")
    return figure


def _checked_rows(given: Rows | Row) -> Rows:
    """What `picture_grid` was given, as rows."""
    single = [one for one in given if one is None or isinstance(one, Image.Image)]
    rows = [row for row in given if not (row is None or isinstance(row, Image.Image))]
    if bool(single) == any(len(row) > 0 for row in rows):
        raise ValueError(
            "picture_grid takes a list of pictures, or a list of rows that are lists of pictures; "
            "it must not be empty."
        )
    return [single] if single else rows


def _show_pictures(rows: Rows, side: float, gap: float) -> tuple[NotebookFigure, np.ndarray]:
    """A figure of pictures and its axes [rows, columns]; `side`, `gap` between rows: inches."""
    columns = max(len(row) for row in rows)
    first = next((picture for row in rows for picture in row if picture), None)
    height = side * first.height / first.width if first else side
    size = columns * (side + GAP) - GAP, len(rows) * (height + gap) - gap
    figure = NotebookFigure(figsize=size, dpi=96)
    whole = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    spaces = {"wspace": GAP / side, "hspace": gap / height}
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=whole | spaces)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)
    for row, pictures in zip(axes, rows):
        for ax, picture in zip(row, pictures):
            if picture is not None:
                _show_picture(ax, picture)
    return figure, axes


def _show_picture(ax: Axes, picture: Image.Image) -> None:
    """Draw a picture on an axis; a small one keeps its pixels."""
    smooth = "nearest" if picture.width < 128 else "antialiased"
    ax.imshow(np.asarray(picture), interpolation=smooth)


def alpha_grid(
    pipe: "StableDiffusionXLPipeline",
    prompt: str = "A [c] in [s] style",
    content: Given | None = None,
    style: Given | None = None,
    content_alphas: Sequence[float] = (0, 0.5, 1, 1.5),
    style_alphas: Sequence[float] = (0, 0.5, 1, 1.5),
    seed: int = 0,
    num_inference_steps: int | None = None,
    progress: bool = True,
) -> NotebookFigure:
    """A figure of pictures of one seed: content alpha downwards, style alpha to the right.

    One alpha for one half, as in `content_alphas=[1]`, gives a sweep over the other's.
    The arguments are those of `generation.generate`.

    Raises:
        ValueError: there are alphas for a half that is None.
    """
    from tqdm.auto import tqdm

    halves = (("content", content, content_alphas), ("style", style, style_alphas))
    for half, blora, tried in halves:
        if blora is None and list(tried) != [1]:
            raise ValueError(
                f"There is no {half} half to draw with several alphas. Give {half}=, or "
                f"{half}_alphas=[1] for a sweep over the other half's."
            )
    alphas = [(c, s) for c in content_alphas for s in style_alphas]
    pictures = []
    with pipeline_lock(pipe):
        apply(pipe, content, style)
        for c, s in tqdm(alphas, desc="alphas", disable=not progress):
            set_alphas(pipe, None if content is None else c, None if style is None else s)
            pictures += sample(pipe, prompt, seed, num_inference_steps, progress=False)
    caption = [f'"{prompt}"', f"seed {seed}"]
    for half, blora, tried in halves:
        if blora is not None:
            last = f" to {max(tried):g}" if len(tried) > 1 else ""
            caption.append(f"{half} alpha {min(tried):g}{last}")
    if num_inference_steps:
        caption.append(f"{num_inference_steps} steps")
    return picture_grid(
        _in_rows(pictures, len(style_alphas)),
        [f"content {alpha:g}" for alpha in content_alphas],
        [f"style {alpha:g}" for alpha in style_alphas],
        ", ".join(caption),
    )


def _in_rows(pictures: Sequence[Image.Image], columns: int) -> Rows:
    return [pictures[start : start + columns] for start in range(0, len(pictures), columns)]


def seed_ranking(
    seeds: Sequence[int],
    images: Sequence[Image.Image],
    scores: Mapping[str, Sequence[float]],
    caption: str = "",
) -> NotebookFigure:
    """Pictures of several seeds, the best first, with their scores beneath.

    Args:
        scores: name ("content kept", "style moved") to a list of numbers, one for each picture:
            the judge's 0 to 1, or cosines.
    """
    order = ranked(*scores.values())
    labels = []
    for place, index in enumerate(order, 1):
        lines = [f"{name} {values[index]:.2f}" for name, values in scores.items()]
        labels.append("\n".join([f"{place}. seed {seeds[index]}", *lines]))
    in_words = ", ".join(str(seeds[index]) for index in order)
    caption = caption or f"seeds {in_words}, best first"
    rows = _in_rows([images[index] for index in order], 4)
    figure, axes = _show_pictures(rows, side=1.5, gap=0.14 * (1 + len(scores)) + 0.2)
    for ax, label in zip(axes.flat, labels):
        ax.text(0.5, -0.03, label, transform=ax.transAxes, ha="center", va="top", fontsize=8)
    figure.add_caption(caption, "")
    return figure


def checkpoint_grid(folder: str | Path) -> NotebookFigure:
    """The pictures made at each checkpoint: a row for each checkpoint, a column for each seed.

    Where each half was drawn alone, too, its pictures follow in the same row.

    Args:
        folder: the `output_dir` of a training.

    Raises:
        FileNotFoundError: there are none.
    """
    found = pictures_by_half(folder)
    counts = {
        half: max(len(files[half]) for files in found.values())
        for half in next(iter(found.values()))
    }
    rows = []
    for files in found.values():
        row: list[Image.Image | None] = []
        for half, count in counts.items():
            drawn = [read_image(file) for file in files[half]]
            row += [*drawn, *[None] * (count - len(drawn))]
        rows.append(row)
    steps = [f"step {step_of(path)}" for path in found]
    last = list(found.values())[-1]
    columns = [
        f"{SHOWN_AS[half]}\nseed {seed}" for half, count in counts.items() for seed in range(count)
    ]
    prompts = [
        f'{SHOWN_AS[half]} "{read_settings(files[0])["prompt"]}"' for half, files in last.items()
    ]
    caption = f"{len(rows)} checkpoints; {', '.join(prompts)}"
    return picture_grid(rows, steps, columns, caption, side=1.5 if len(columns) < 5 else 1.0)


def checkpoint_curve(
    scores: Sequence[CheckpointScores], chosen: str | Path | None = None
) -> NotebookFigure:
    """Content kept and style moved over the steps of a training, with the recommended checkpoint.

    Args:
        scores: from `checkpoint_scores.score_checkpoints`.
        chosen: the folder of a checkpoint to be marked by a line.
    """
    figure, ax = _chart("training step", "score")
    best = recommended(scores)
    steps = [one.step for one in scores]
    content = [mean_and_error(one.content_scores) for one in scores]
    style = [mean_and_error(one.style_scores) for one in scores]
    curves = {"content kept": content, "style moved": style}
    colours = COLOUR_OF_HALF.values()
    # dashed, so that both show where they meet
    for (name, values), colour, marker, line in zip(curves.items(), colours, MARKERS, ("-", "--")):
        means = [mean for mean, _ in values]
        errors = [error or 0 for _, error in values]
        ax.errorbar(
            steps,
            means,
            yerr=errors,
            color=colour,
            ecolor=to_rgba(colour, 0.5),
            marker=marker,
            markersize=4,
            linestyle=line,
            elinewidth=0.8,
            label=name,
        )
    starred = [best.content_kept, best.style_moved]
    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 13,
        "color": BEST,
        "linestyle": "none",
        "zorder": 4,
    }
    ax.plot([best.step] * 2, starred, label="recommended", **star)
    for one in scores:
        if chosen is not None and one.checkpoint == Path(chosen):
            ax.axvline(one.step, color="0.6", linestyle=":", zorder=0, label="chosen")
    low, high = ax.get_ylim()
    # cosines can be negative; room for the star above the highest
    lowest = min(min(one.content_kept, one.style_moved) for one in scores)
    ax.set_ylim(min(low, 0) if lowest < 0 else 0, high + 0.08 * (high - min(low, 0)))
    if len(steps) <= MOST_TICKS:
        ax.set_xticks(steps)
    handles, names = ax.get_legend_handles_labels()
    entries = dict(zip(names, handles))
    order = [*curves, *(name for name in entries if name not in curves)]
    ax.legend(
        [entries[name] for name in order],
        order,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize=8,
    )
    figure.add_caption(_curve_caption(scores, best), "")
    return figure


def _curve_caption(scores: Sequence[CheckpointScores], best: CheckpointScores) -> str:
    """What was scored, the rule of the recommendation, and how far it is to be trusted."""
    counts = {len(one.content_scores) for one in scores}
    count = " to ".join(map(str, sorted({min(counts), max(counts)})))
    if best.halves_apart:
        what = "content half alone in another style, style half alone on another object"
    else:
        what = "pictures of both halves: how far the training picture is drawn again"
    noise = "One picture each says nothing of the noise."
    if max(counts) > 1:
        noise = f"Bars: ± one standard error over {count} pictures; few pictures are noisy."
    return (
        f"{what[0].upper()}{what[1:]}. {noise} Recommended: step {best.step}, the earliest at "
        "which the smaller score, scaled from its lowest (0) to its highest (1), is within 0.1 of "
        "the best."
    )


def write_validation_sheet(folder: str | Path) -> Path:
    """Write the `SHEET` of a training into its folder, beside older ones; returns its path."""
    sheet = checkpoint_grid(folder)
    path = free_path(folder, Path(SHEET).stem, ".png")
    with complete_file(path) as part:
        sheet.savefig(part, format="png")
    return path


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
        _show_picture(ax, point.images[0])
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
            way = _boxes_along([point + near * 8 / radius, point + near]) if joined else []
            fits = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if fits and not any(one.overlaps(other) for one in (box, *way) for other in taken):
                text.set_position(tuple(middle / pixels))
                taken += [box, *way]
                if joined:
                    _join(ax, label, near / pixels)
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


def _boxes_along(line: Sequence[np.ndarray] | np.ndarray) -> list[Bbox]:
    """Small boxes that cover a line through points, in pixels."""
    return [
        _box(point, 3, 3)
        for start, end in pairwise(line)
        for point in np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 3))
    ]


def _join(ax: Axes, label: PointLabel, offset: np.ndarray) -> None:
    """A thin line from a label to its point; `offset` from the point to the label, in points."""
    ax.annotate(
        "",
        (label.x, label.y),
        xytext=tuple(offset),
        textcoords="offset points",
        arrowprops={
            "arrowstyle": "-",
            "color": "0.6",
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 4,
        },
    )


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
            f"Bars: ± one standard error over {len(frontier.seeds)} seeds; scores over few seeds "
            "are noisy, and points nearer than that may change places."
        )
    return (
        f'"{frontier.prompt}", {len(frontier.points)} pairs of alphas, seeds {seeds}. '
        f"Recommended: content alpha {content_alpha:g}, style alpha {style_alpha:g}. Both scores "
        "are scaled from their lowest (0) to their highest (1), and the point is taken whose "
        f"smaller one is the highest; ties go to the alphas nearest 1. {noise} Pictures: seed "
        f"{frontier.seeds[0]}, from most content to most style."
    )


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
    light = 0.15 + 0.85 * np.asarray(mask).clip(0, 1)[..., None]
    shown = Image.fromarray((np.asarray(image.convert("RGB")) * light).round().astype(np.uint8))
    if mark:
        row, column = mark
        high, wide = image.height / weights.shape[0], image.width / weights.shape[1]
        corners = (column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1)
        ImageDraw.Draw(shown).rectangle(corners, outline="white", width=max(1, image.width // 64))
    return shown


def loss_curve(losses: Sequence[float], window: int = 20, caption: str = "") -> NotebookFigure:
    """The loss of each step, and its running mean over `window` steps."""
    figure, ax = _chart("step", "loss")
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, color="0.75", linewidth=0.8, label="each step")
    if len(losses) >= window:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        ax.plot(steps[window - 1 :], mean, color=LINE_COLOURS[0], label=f"mean of {window} steps")
    _finish_chart(ax)
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
    figure, ax = _chart(x_label, y_label)
    for (name, values), colour, marker in zip(curves.items(), LINE_COLOURS, MARKERS):
        places = range(1, len(values) + 1) if x is None else x
        ax.plot(places, values, color=colour, marker=marker, markersize=4, label=name)
    _finish_chart(ax)
    figure.add_caption(caption, f"{len(curves)} curves")
    return figure


def _chart(x_label: str, y_label: str) -> tuple[NotebookFigure, Axes]:
    """A figure with empty axes for curves."""
    figure = NotebookFigure(figsize=(5.4, 1.8), dpi=110)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlabel=x_label, ylabel=y_label)
    return figure, ax


def _finish_chart(ax: Axes) -> None:
    """What has to wait until the curves are drawn: the range from 0 on, and the legend."""
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
