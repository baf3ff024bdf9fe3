"""The checkpoints of a training: their pictures, and their scores as a curve."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.colors import to_rgba
from PIL import Image

from blora_nb.blocks import COLOUR_OF_HALF
from blora_nb.evaluation.checkpoint_scores import CheckpointScores, recommended
from blora_nb.evaluation.validation import SHEET, SHOWN_AS, pictures_by_half, seed_of
from blora_nb.figures.charts import BEST, MARKERS, chart
from blora_nb.figures.grids import picture_grid
from blora_nb.figures.notebook_figure import NotebookFigure
from blora_nb.files.images import read_image
from blora_nb.files.paths import free_path
from blora_nb.files.safe_files import complete_file
from blora_nb.files.saved_images import read_settings
from blora_nb.running.checkpoints import step_of

MOST_TICKS = 12


def checkpoint_grid(folder: str | Path) -> NotebookFigure:
    """The pictures made at each checkpoint: a row for each checkpoint, a column for each seed.

    Where each half was drawn alone, too, its pictures follow in the same row.

    Args:
        folder: the `output_dir` of a training.

    Raises:
        FileNotFoundError: there are none.
    """
    found = pictures_by_half(folder)
    seeds = {
        half: sorted({seed_of(file) for files in found.values() for file in files[half]})
        for half in next(iter(found.values()))
    }
    rows = []
    for files in found.values():
        row: list[Image.Image | None] = []
        for half in seeds:
            drawn = {seed_of(file): read_image(file) for file in files[half]}
            row += [drawn.get(seed) for seed in seeds[half]]
        rows.append(row)
    steps = [f"step {step_of(path)}" for path in found]
    last = list(found.values())[-1]
    columns = [f"{SHOWN_AS[half]}\nseed {seed}" for half in seeds for seed in seeds[half]]
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
    figure, ax = chart("training step", "score")
    best = recommended(scores)
    steps = [one.step for one in scores]
    curves = {
        "content kept": [(one.content_kept, one.content_error or 0) for one in scores],
        "style moved": [(one.style_moved, one.style_error or 0) for one in scores],
    }
    colours = COLOUR_OF_HALF.values()
    # dashed, so that both show where they meet
    for (name, values), colour, marker, line in zip(curves.items(), colours, MARKERS, ("-", "--")):
        means, errors = zip(*values)
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
    ax.plot([best.step] * 2, starred, "*", markersize=13, color=BEST, zorder=4, label="recommended")
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
        "which both scores are nearly as good as at any step."
    )


def write_validation_sheet(folder: str | Path) -> Path:
    """Write the `SHEET` of a training into its folder, beside older ones; returns its path."""
    sheet = checkpoint_grid(folder)
    path = free_path(folder, Path(SHEET).stem, ".png")
    with complete_file(path) as part:
        sheet.savefig(part, format="png")
    return path
