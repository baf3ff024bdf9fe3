"""Grids of pictures: rows and columns, sweeps over alphas, seeds in the order of their scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from blora_nb.evaluation.metrics import ranked
from blora_nb.figures.notebook_figure import NotebookFigure
from blora_nb.files.images import read_with_remarks
from blora_nb.generation import sample, seed_list
from blora_nb.lora import HalfSource, apply, check_strength, set_alphas
from blora_nb.registry import pipeline_lock

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

Row = Sequence[Image.Image | None]
Rows = Sequence[Row]

GAP = 0.05  # inches between pictures


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
        ValueError: there are no pictures, or some are in rows and some are not; there are more or
            fewer labels than rows or columns.
    """
    rows = _checked_rows(rows)
    row_labels, column_labels = list(row_labels or ()), list(column_labels or ())
    titles = [list(texts) for texts in titles or ()]
    _check_count("row_labels", row_labels, len(rows), "rows")
    _check_count("column_labels", column_labels, max(map(len, rows)), "columns")
    _check_count("titles", titles, len(rows), "rows")
    for texts, row in zip(titles, rows):
        _check_count("A row of titles", texts, len(row), "pictures in its row")
    lines = max((text.count("\n") + 1 for line in titles for text in line), default=0)
    figure, axes = show_pictures(rows, side, 0.16 * lines + 0.12 if titles else GAP)
    for row, texts in zip(axes, titles or [column_labels]):
        for ax, text in zip(row, texts):
            ax.set_title(text, fontsize=9, pad=3)
    for ax, text in zip(axes[:, 0], row_labels):
        ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    height, width = axes.shape
    figure.add_caption(caption, f"{height} rows of {width} pictures")
    return figure


def _checked_rows(given: Rows | Row) -> Rows:
    """What `picture_grid` was given, as rows."""
    # a generator can be read only once
    everything = list(given)
    single = [one for one in everything if one is None or isinstance(one, Image.Image)]
    rows = [list(row) for row in everything if not (row is None or isinstance(row, Image.Image))]
    if bool(single) == any(len(row) > 0 for row in rows):
        raise ValueError(
            "picture_grid takes a list of pictures, or a list of rows that are lists of pictures; "
            "it must not be empty."
        )
    return [single] if single else rows


def _check_count(name: str, texts: Sequence[Any], count: int, of_what: str) -> None:
    """Raise a ValueError unless there is a text for each row, column or picture, or none at all."""
    if texts and len(texts) != count:
        raise ValueError(
            f'{name} has {len(texts)} texts for {count} {of_what}. Give one for each; "" leaves '
            "a place empty."
        )


def show_pictures(rows: Rows, side: float, gap: float) -> tuple[NotebookFigure, np.ndarray]:
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
                show_picture(ax, picture)
    return figure, axes


def show_picture(ax: Axes, picture: Image.Image) -> None:
    """Draw a picture of any mode on an axis, on white; a small one keeps its pixels."""
    seen, _ = read_with_remarks(picture)
    smooth = "nearest" if seen.width < 128 else "antialiased"
    ax.imshow(np.asarray(seen), interpolation=smooth)


def alpha_grid(
    pipe: "StableDiffusionXLPipeline",
    prompt: str = "A [c] in [s] style",
    content: HalfSource | None = None,
    style: HalfSource | None = None,
    content_alphas: Sequence[float] = (0, 0.5, 1, 1.5),
    style_alphas: Sequence[float] = (0, 0.5, 1, 1.5),
    seed: int = 0,
    num_inference_steps: int | None = None,
    progress: bool = True,
) -> NotebookFigure:
    """A figure of pictures of one seed: content alpha downwards, style alpha to the right.

    One alpha for one half, as in `content_alphas=[1]`, gives a sweep over the other's.
    The arguments are those of `generation.generate`. Afterwards the halves are on the pipeline,
    with the last alphas.

    Raises:
        ValueError: there are alphas for a half that is None, no alphas, or several seeds.
    """
    from tqdm.auto import tqdm

    seeds = seed_list(seed)
    if len(seeds) != 1:
        raise ValueError(f"A grid of alphas is drawn with one seed, not with {seed!r}.")
    content_alphas = checked_alphas("content_alphas", content_alphas)
    style_alphas = checked_alphas("style_alphas", style_alphas)
    halves = (("content", content, content_alphas), ("style", style, style_alphas))
    for half, blora, tried in halves:
        if blora is None and tried != [1]:
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
            pictures += sample(pipe, prompt, seeds, num_inference_steps, progress=False)
    caption = [f'"{prompt}"', f"seed {seeds[0]}"]
    for half, blora, tried in halves:
        if blora is not None:
            last = f" to {max(tried):g}" if len(tried) > 1 else ""
            caption.append(f"{half} alpha {min(tried):g}{last}")
    if num_inference_steps:
        caption.append(f"{num_inference_steps} steps")
    row_labels, column_labels = (
        None if blora is None else [f"{half} {alpha:g}" for alpha in tried]
        for half, blora, tried in halves
    )
    rows = _in_rows(pictures, len(style_alphas))
    return picture_grid(rows, row_labels, column_labels, ", ".join(caption))


def checked_alphas(name: str, given: Any) -> list[float]:
    """The alphas that an argument lists, as Python's numbers, each once.

    Raises:
        ValueError: it is no list of ordinary numbers, or an empty one.
    """
    try:
        alphas = [float(alpha) for alpha in given]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a list of numbers such as (0.5, 1), not {given!r}.") from None
    if not alphas:
        raise ValueError(f"{name} is empty: name at least one, such as (0.5, 0.75, 1, 1.25).")
    for alpha in alphas:
        check_strength(f"Each of {name}", alpha)
    return list(dict.fromkeys(alphas))


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

    Raises:
        ValueError: there are no pictures or no scores, or not as many of one as of another.
    """
    counts = {"seeds": len(seeds), "images": len(images)}
    counts |= {name: len(values) for name, values in scores.items()}
    if not scores or 0 in counts.values() or len(set(counts.values())) > 1:
        given = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            "seed_ranking takes a seed for each picture, and one or more lists of scores with a "
            f"number for each. Given are {given}."
        )
    order = ranked(*scores.values())
    labels = []
    for place, index in enumerate(order, 1):
        lines = [f"{name} {values[index]:.2f}" for name, values in scores.items()]
        labels.append("\n".join([f"{place}. seed {seeds[index]}", *lines]))
    in_words = ", ".join(str(seeds[index]) for index in order)
    caption = caption or f"seeds {in_words}, best first"
    rows = _in_rows([images[index] for index in order], 4)
    figure, axes = show_pictures(rows, side=1.5, gap=0.14 * (1 + len(scores)) + 0.2)
    for ax, label in zip(axes.flat, labels):
        ax.text(0.5, -0.03, label, transform=ax.transAxes, ha="center", va="top", fontsize=8)
    figure.add_caption(caption, "")
    return figure
