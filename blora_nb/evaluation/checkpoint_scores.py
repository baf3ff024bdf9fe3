"""Scores of the pictures at each checkpoint, and the checkpoint to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blora_nb.blocks import HALVES
from blora_nb.evaluation.metrics import KeptAndMoved, Scorer, balance, scored
from blora_nb.evaluation.validation import pictures_by_half
from blora_nb.files.images import ImageSource, read_image
from blora_nb.running.checkpoints import step_of

NEARLY = 0.1  # of the way from the lowest score to the highest


@dataclass(frozen=True)
class CheckpointScores(KeptAndMoved):
    """What the pictures at one checkpoint scored.

    Attributes:
        checkpoint: its folder.
        content_scores, style_scores: content kept and style moved, a number for each picture.
        halves_apart: whether the pictures were made with each half alone, not with both.
    """

    checkpoint: Path
    content_scores: tuple[float, ...]
    style_scores: tuple[float, ...]
    halves_apart: bool

    @property
    def step(self) -> int:
        return step_of(self.checkpoint)


def score_checkpoints(
    folder: str | Path, picture: ImageSource, scorer: Scorer, progress: bool = True
) -> list[CheckpointScores]:
    """Score the pictures at each checkpoint against the picture of the training, the oldest first.

    With pictures of each half alone (`validation_pictures` with `content_prompt` and
    `style_prompt`), content kept is that of the content half, in another style, and style moved
    that of the style half, on another object. With pictures of both halves only, both numbers say
    how far the picture itself is drawn again. Neither number falls when a half has learned too
    much, such as an object that shows in the style half's pictures: so look at them as well.

    Args:
        folder: the `output_dir` of a training.
        picture: that the B-LoRA was trained on.
        scorer: such as `metrics.scorer_for(pipe)`.
        progress: a progress bar over the checkpoints.

    Raises:
        FileNotFoundError: no checkpoint with pictures.
        ImageError: the picture cannot be read.
        ValueError: the scorer gave no numbers that can be compared.
    """
    from tqdm.auto import tqdm

    compared = read_image(picture)
    scores = []
    found = pictures_by_half(folder)
    for checkpoint, drawn in tqdm(found.items(), desc="scoring", disable=not progress):
        # each half's own pictures where every checkpoint has them, else those of both halves
        files = [drawn.get(half, drawn["both"]) for half in HALVES]
        of_content, of_style = ([read_image(file) for file in its_own] for its_own in files)
        content = scored(scorer, "content_kept", of_content, compared)
        style = scored(scorer, "style_moved", of_style, compared)
        scores.append(CheckpointScores(checkpoint, content, style, "content" in drawn))
    return scores


def recommended(scores: Sequence[CheckpointScores]) -> CheckpointScores:
    """The earliest checkpoint that is nearly as good as the best.

    Content kept and style moved are scaled from their lowest (0) to their highest (1) of the
    training, and of each checkpoint the smaller counts; nearly as good is 0.1 less at most.
    Earlier checkpoints follow other words of a prompt more freely.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("There are no scores: call score_checkpoints(folder, picture, scorer).")
    balances = balance([one.content_kept for one in scores], [one.style_moved for one in scores])
    enough = max(balances) - NEARLY
    return next(one for one, value in zip(scores, balances) if value >= enough)
