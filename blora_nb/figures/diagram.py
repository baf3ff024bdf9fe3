"""The U-Net as a drawing: its levels, its residual blocks, and the eleven blocks that listen."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from blora_nb.blocks import BLOCK_OF_HALF, COLOUR_OF_HALF, TRANSFORMER_BLOCKS, paper_name
from blora_nb.figures.notebook_figure import NotebookFigure

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

LISTENS, COMPUTES = "#dfe9df", "0.9"
LINE = "0.55"
WIDTH, STEP = 0.82, 1.0  # of a box, and from one box to the next
LEVEL = 1.55  # from one level to the next


@dataclass(frozen=True)
class Box:
    """A part of the U-Net.

    Attributes:
        name: of the module; a transformer block's is one of `TRANSFORMER_BLOCKS`.
        level: 0 at the top, where the latents come in; each level has half the side.
        kind: "res" for a residual block, "attn" for a transformer block, "conv" for the others.
    """

    name: str
    level: int
    kind: str


def parts_of(unet: "UNet2DConditionModel") -> list[Box]:
    """The parts of a U-Net of SDXL's kind, in the order in which the latents pass them."""
    levels = len(unet.down_blocks)
    boxes = [Box("conv_in", 0, "conv")]
    for level, block in enumerate(unet.down_blocks):
        boxes += _layers(block, f"down_blocks.{level}", level)
        boxes += [Box("smaller", level, "conv")] if block.downsamplers else []
    boxes.append(Box("mid_block.resnets.0", levels - 1, "res"))
    boxes.append(Box("mid_block.attentions.0", levels - 1, "attn"))
    boxes.append(Box("mid_block.resnets.1", levels - 1, "res"))
    for number, block in enumerate(unet.up_blocks):
        level = levels - 1 - number
        boxes += _layers(block, f"up_blocks.{number}", level)
        boxes += [Box("larger", level, "conv")] if block.upsamplers else []
    boxes.append(Box("conv_out", 0, "conv"))
    return boxes


def _layers(block: "UNet2DConditionModel", name: str, level: int) -> Iterator[Box]:
    """The residual blocks of a down or up block, each followed by its transformer block."""
    attentions = len(getattr(block, "attentions", ()))
    for number in range(len(block.resnets)):
        yield Box(f"{name}.resnets.{number}", level, "res")
        if number < attentions:
            yield Box(f"{name}.attentions.{number}", level, "attn")


def unet_diagram(pipe: "StableDiffusionXLPipeline", caption: str = "") -> NotebookFigure:
    """A figure of a pipeline's U-Net: the latents pass it from left to right.

    Lower is a smaller grid with more channels. The eleven transformer blocks hear the prompt; the
    two of B-LoRA are in colour. Dashed lines carry what was there before the grid shrank.

    Args:
        caption: a sentence under the figure.
    """
    boxes = parts_of(pipe.unet)
    depth = len(pipe.unet.down_blocks)
    figure = NotebookFigure(figsize=(0.31 * len(boxes), 0.95 * depth + 0.9), dpi=110)
    ax = figure.subplots()
    ax.set_axis_off()
    places = {box: (STEP * i, -LEVEL * box.level) for i, box in enumerate(boxes)}
    for before, after in pairwise(places.values()):
        ax.plot(*zip(before, after), color=LINE, linewidth=1, zorder=0)
    for box in boxes:
        _draw(ax, box, *places[box])
    for level in range(depth):
        _label_level(ax, pipe, level, [places[box] for box in boxes if box.level == level])
    ends = {"latents": (-0.8, "right"), "prediction": (STEP * len(boxes) - 0.2, "left")}
    for text, (x, side) in ends.items():
        ax.text(x, 0, text, ha=side, va="center", fontsize=8, color="0.3")
    ax.set_xlim(-0.8, STEP * len(boxes))
    ax.set_ylim(-LEVEL * (depth - 1) - 1.1, 1.5)
    _legend(ax, STEP * len(boxes) / 2)
    figure.add_caption(caption, _in_words(pipe))
    return figure


def _draw(ax: Axes, box: Box, x: float, y: float) -> None:
    """One box, with its short name if it is a transformer block."""
    halves = [half for half, block in BLOCK_OF_HALF.items() if block == box.name]
    colour = COLOUR_OF_HALF[halves[0]] if halves else LISTENS
    height = 0.9 if box.kind == "attn" else 0.5
    patch = FancyBboxPatch(
        (x - WIDTH / 2, y - height / 2),
        WIDTH,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=colour if box.kind == "attn" else COMPUTES,
        edgecolor=LINE if box.kind == "attn" else "0.8",
        linewidth=0.8,
    )
    ax.add_patch(patch)
    if box.kind != "attn":
        return
    first, *rest = paper_name(box.name).split()
    inside, beneath = (first, rest) if first.startswith("W") else (rest[0], [first])
    ax.text(x, y, inside, ha="center", va="center", fontsize=8, color="w" if halves else "0.2")
    for text in beneath:
        colour_of_text = colour if halves else "0.45"
        ax.text(x, y - 0.6, text, ha="center", va="top", fontsize=8, color=colour_of_text)


def _label_level(
    ax: Axes, pipe: "StableDiffusionXLPipeline", level: int, places: list[tuple[float, float]]
) -> None:
    """The size of a level's grid, and a dashed line across the gap that lower levels leave."""
    config = pipe.unet.config
    side = config.sample_size // 2**level
    text = f"{side} × {side} positions, {config.block_out_channels[level]} channels"
    xs = sorted(x for x, _ in places)
    y = places[0][1]
    gaps = [(a, b) for a, b in pairwise(xs) if b - a > 1.5 * STEP]
    for left, right in gaps:
        ends = [left + WIDTH / 2 + 0.1, right - WIDTH / 2 - 0.1]
        ax.plot(ends, [y, y], color=LINE, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    middle = sum(gaps[0]) / 2 if gaps else sum(xs) / len(xs)
    above = y + (0.12 if gaps else 0.62)
    ax.text(middle, above, text, ha="center", va="bottom", fontsize=8, color="0.3")


def _legend(ax: Axes, middle: float) -> None:
    entries = [
        (LISTENS, "transformer block: hears the prompt"),
        (COMPUTES, "residual block or convolution: does not"),
    ]
    for (colour, text), x in zip(entries, (middle - 9.5, middle + 0.8)):
        ax.add_patch(
            FancyBboxPatch(
                (x, 0.98),
                0.5,
                0.34,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour,
                edgecolor=LINE,
                linewidth=0.6,
            )
        )
        ax.text(x + 0.75, 1.15, text, ha="left", va="center", fontsize=8, color="0.3")


def _in_words(pipe: "StableDiffusionXLPipeline") -> str:
    """The same for those who cannot see it."""
    levels = len(pipe.unet.down_blocks)
    return (
        f"The U-Net: {levels} levels, {len(TRANSFORMER_BLOCKS)} transformer blocks, of which "
        f"B-LoRA trains {' and '.join(BLOCK_OF_HALF.values())}."
    )
