"""The content–style frontier: which pairs of alphas keep most content at how much style.

A larger content alpha keeps more of the content and leaves the style less room, and the other way
round. A grid of alphas is drawn and every picture scored; what remains are the pairs that no other
pair beats in both scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from blora_nb.evaluation.metrics import (
    DECIMALS,
    KeptAndMoved,
    Scorer,
    most_balanced,
    non_dominated,
    scored,
    scorer_for,
)
from blora_nb.figures.frontier_chart import frontier_figure
from blora_nb.figures.grids import checked_alphas
from blora_nb.figures.notebook_figure import NotebookFigure
from blora_nb.files.images import ImageSource, read_image
from blora_nb.files.metadata import thumbnail
from blora_nb.generation import (
    Seeds,
    check_pipeline,
    draw_each,
    memory_explained,
    read_prompt,
    seed_list,
)
from blora_nb.lora import BLoRA, HalfSource, apply, load_all, set_alphas
from blora_nb.registry import pipeline_lock
from blora_nb.sampling import Sampling

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

ALPHAS = (0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True, eq=False)
class FrontierPoint(KeptAndMoved):
    """What one pair of alphas gave.

    Attributes:
        content_alpha, style_alpha: the pair.
        content_scores, style_scores: content kept and style moved of each picture.
        images: a PIL image for each seed.
    """

    content_alpha: float
    style_alpha: float
    content_scores: tuple[float, ...]
    style_scores: tuple[float, ...]
    images: tuple[Image.Image, ...]

    def __str__(self) -> str:
        kept = _with_error(self.content_kept, self.content_error)
        moved = _with_error(self.style_moved, self.style_error)
        return (
            f"content alpha {self.content_alpha:g}, style alpha {self.style_alpha:g}: "
            f"content kept {kept}, style moved {moved}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Frontier:
    """The scores of a grid of alphas; a notebook shows it as a figure.

    Attributes:
        prompt, seeds: what was drawn at every pair of alphas.
        points: a `FrontierPoint` for each pair, in the order of the content alphas, then of the
            style alphas.
    """

    prompt: str
    seeds: tuple[int, ...]
    points: tuple[FrontierPoint, ...]

    @property
    def frontier(self) -> list[FrontierPoint]:
        """The points that no other one dominates, the one with the most content first.

        A point dominates another that is higher in neither score and lower in at least one. Scores
        count to two decimals.
        """
        kept = [round(point.content_kept, DECIMALS) for point in self.points]
        moved = [round(point.style_moved, DECIMALS) for point in self.points]
        places = sorted(non_dominated(kept, moved), key=lambda place: (-kept[place], moved[place]))
        return [self.points[place] for place in places]

    @property
    def best_point(self) -> FrontierPoint:
        """The recommended one, by the rule of the function `frontier`."""
        kept = [point.content_kept for point in self.points]
        moved = [point.style_moved for point in self.points]
        # rounded: 0.75 and 1.25 are equally near 1 in any case
        from_1 = [
            round(math.hypot(point.content_alpha - 1, point.style_alpha - 1), 9)
            for point in self.points
        ]
        return self.points[most_balanced(kept, moved, from_1)]

    @property
    def best(self) -> tuple[float, float]:
        """The recommended (content_alpha, style_alpha)."""
        return self.best_point.content_alpha, self.best_point.style_alpha

    def figure(self) -> NotebookFigure:
        """Content kept against style moved, and a few pictures along the frontier."""
        return frontier_figure(self)

    def __repr__(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return (
            f"{len(self.frontier)} of {len(self.points)} pairs of alphas are on the frontier "
            f"({seeds}); recommended: {self.best_point}"
        )

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.figure()._repr_png_()


@torch.no_grad()
def frontier(
    pipe: "StableDiffusionXLPipeline",
    content: HalfSource,
    style: HalfSource,
    prompt: str = "A [c] in [s] style",
    content_picture: ImageSource | None = None,
    style_picture: ImageSource | None = None,
    content_alphas: Sequence[float] = ALPHAS,
    style_alphas: Sequence[float] = ALPHAS,
    seeds: Seeds = (0, 1),
    num_inference_steps: int | None = None,
    negative_prompt: str | None = None,
    scorer: Scorer | None = None,
    progress: bool = True,
    **sampling: Any,
) -> Frontier:
    """Draw a grid of alphas, score every picture, and recommend one pair.

    Both scores are scaled from their lowest (0) to their highest (1) in the grid, and recommended
    is the point of the frontier whose smaller one is the highest; ties go to the alphas nearest 1.
    Scores count to two decimals (see `metrics.balance`).

        found = frontier(pipe, cat, neon, content_picture="cat.png", style_picture="neon.png")
        found  # the figure
        generate(pipe, "A [c] in [s] style", cat, neon, *found.best)

    Scores over few seeds are noisy: a standard error stands beside each mean, and points that are
    nearer to each other than that may change places with other seeds. The default makes 32
    pictures. Afterwards the halves are on the pipeline, with the recommended alphas.

    Args:
        content, style: as in `generation.generate`.
        content_picture, style_picture: what the pictures are compared with, paths or PIL images: as
            a rule those that the B-LoRAs were trained on. By default the small copy inside a
            B-LoRA's file, where it has one.
        content_alphas, style_alphas: every content alpha is drawn with every style alpha.
        seeds: the same ones at every pair.
        num_inference_steps: by default what suits the pipeline.
        scorer: by default `metrics.scorer_for(pipe)`: the judge for the teaching model (0 to 1),
            DINO for everything else (cosines), which is loaded anew unless you give the scorer.
        progress: a progress bar over the pictures.
        sampling: the other fields of `sampling.Sampling`.

    Raises:
        ValueError: a half, a picture to compare with, alphas or seeds are missing, or a picture or
            a score became NaN; the message says what to do.
        BLoRAError: a B-LoRA cannot be read, has not the half, or does not fit the base.
    """
    from tqdm.auto import tqdm

    for half, given in (("content", content), ("style", style)):
        if given is None:
            raise ValueError(
                f"The frontier weighs a content half against a style half, and {half} is None. "
                "Give both; for one half alone, `alpha_grid` draws a sweep over its alpha."
            )
    content_list = checked_alphas("content_alphas", content_alphas)
    style_list = checked_alphas("style_alphas", style_alphas)
    numbers = list(dict.fromkeys(seed_list(seeds)))
    if not numbers:
        raise ValueError("seeds is empty: name at least one, better two or more.")
    check_pipeline(pipe)
    content, style = load_all(content), load_all(style)
    compared = {
        "content": _picture("content", content, content_picture),
        "style": _picture("style", style, style_picture),
    }
    pairs = [(c, s) for c in content_list for s in style_list]
    how = Sampling.of(pipe, sampling | {"num_inference_steps": num_inference_steps})
    points = []
    with pipeline_lock(pipe):
        with memory_explained(pipe):
            apply(pipe, content, style)
        embeds, common = read_prompt(pipe, prompt, negative_prompt, how, content, style)
        # before the pictures: it may have to be downloaded
        scorer = scorer or scorer_for(pipe)
        total = len(pairs) * len(numbers)
        with tqdm(total=total, desc="frontier", disable=not progress) as bar:
            for c, s in pairs:
                set_alphas(pipe, c, s)
                made_with = common | {"content_alpha": c, "style_alpha": s}
                drawn = draw_each(pipe, embeds, numbers, how, progress=False, made_with=made_with)
                images = []
                try:
                    for image in drawn:
                        images.append(image)
                        bar.update()
                except ValueError as error:
                    raise ValueError(
                        f"At content alpha {c:g} and style alpha {s:g}: {error}"
                    ) from error
                kept = scored(scorer, "content_kept", images, compared["content"])
                moved = scored(scorer, "style_moved", images, compared["style"])
                points.append(FrontierPoint(c, s, kept, moved, tuple(images)))
        found = Frontier(prompt, tuple(numbers), tuple(points))
        set_alphas(pipe, *found.best)
    return found


def _picture(half: str, blora: Any, given: ImageSource | None) -> Image.Image:
    """What the pictures are compared with: the given picture, or the one in the B-LoRA's file."""
    if given is not None:
        return read_image(given)
    small = thumbnail(blora.metadata) if isinstance(blora, BLoRA) else None
    if small is None:
        raise ValueError(
            f"There is no picture to compare the {half} with: the B-LoRA holds none. Give "
            f"{half}_picture=, a path or a PIL image, as a rule the one it was trained on."
        )
    return small


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"
