"""Scores of the pictures at each checkpoint, and the checkpoint to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blora_nb.blocks import HALVES
from blora_nb.evaluation.metrics import KeptAndMoved, Scorer, balance, check_scores
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
    found = _pictures_to_score(folder)
    for checkpoint, files in tqdm(found.items(), desc="scoring", disable=not progress):
        images = {half: [read_image(file) for file in files[half]] for half in files}
        content = scorer.content_kept(images["content"], compared)
        style = scorer.style_moved(images["style"], compared)
        scores.append(
            CheckpointScores(
                checkpoint,
                tuple(check_scores("content_kept", content, len(images["content"]))),
                tuple(check_scores("style_moved", style, len(images["style"]))),
                halves_apart=files["content"] != files["style"],
            )
        )
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


def _pictures_to_score(folder: str | Path) -> dict[Path, dict[str, list[Path]]]:
    """Checkpoint to the pictures that content and style are scored on.

    Each half's own where every checkpoint has them, else those of both halves.
    """
    return {
        checkpoint: {half: files.get(half, files["both"]) for half in HALVES}
        for checkpoint, files in pictures_by_half(folder).items()
    }
