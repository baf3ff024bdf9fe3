"""Scores of the pictures at each checkpoint, kept beside them, and the checkpoint to take."""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blora_nb.blocks import HALVES
from blora_nb.errors import BLoRAError
from blora_nb.files.images import ImageSource, pixels_hash, read_image
from blora_nb.files.safe_files import complete_file, read_json
from blora_nb.metrics import KeptAndMoved, Scorer, balance, check_scores
from blora_nb.running.checkpoints import step_of
from blora_nb.validation import pictures_by_half

SCORES = "validation_scores.json"
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
        return step_of(self.checkpoint) or 0


def score_checkpoints(
    folder: str | Path, picture: ImageSource, scorer: Scorer, progress: bool = True
) -> list[CheckpointScores]:
    """Score the pictures at each checkpoint against the picture of the training, the oldest first.

    With pictures of each half alone (`validation_pictures` with `content_prompt` and
    `style_prompt`), content kept is that of the content half, in another style, and style moved
    that of the style half, on another object. With pictures of both halves only, both numbers say
    how far the picture itself is drawn again. Neither number falls when a half has learned too
    much, such as an object that shows in the style half's pictures: so look at them as well.

    Scores are kept in each checkpoint's folder, and computed again only for other pictures or
    another scorer; those of a scorer without an `identity` are computed every time.

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
    identity = _identity(scorer)
    made_with = {"scorer": identity or "", "picture": pixels_hash(compared)}
    scores = []
    found = _pictures_to_score(folder)
    for checkpoint, files in tqdm(found.items(), desc="scoring", disable=not progress):
        kept = _read(checkpoint, files)
        if identity and kept and made_with.items() <= kept.items():
            scores.append(_scores(checkpoint, files, kept))
            continue
        images = {half: [read_image(file) for file in files[half]] for half in files}
        content = scorer.content_kept(images["content"], compared)
        style = scorer.style_moved(images["style"], compared)
        new = made_with | {
            "content_scores": check_scores("content_kept", content, len(images["content"])),
            "style_scores": check_scores("style_moved", style, len(images["style"])),
        }
        _write(checkpoint, files, new)
        scores.append(_scores(checkpoint, files, new))
    return scores


def kept_scores(folder: str | Path) -> list[CheckpointScores]:
    """The scores that `score_checkpoints` has kept for the pictures that are there now.

    None at all unless every checkpoint has some, of one scorer and one picture.
    """
    found = _pictures_to_score(folder)
    kept = {checkpoint: _read(checkpoint, files) for checkpoint, files in found.items()}
    if len({(one["scorer"], one["picture"]) if one else None for one in kept.values()}) != 1:
        return []
    return [_scores(checkpoint, found[checkpoint], one) for checkpoint, one in kept.items() if one]


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


Files = dict[str, list[Path]]


def _pictures_to_score(folder: str | Path) -> dict[Path, Files]:
    """Checkpoint to the pictures that content and style are scored on.

    Each half's own where every checkpoint has them, else those of both halves.
    """
    return {
        checkpoint: {half: files.get(half, files["both"]) for half in HALVES}
        for checkpoint, files in pictures_by_half(folder).items()
    }


def _scores(checkpoint: Path, files: Files, kept: dict[str, Any]) -> CheckpointScores:
    return CheckpointScores(
        checkpoint,
        tuple(kept["content_scores"]),
        tuple(kept["style_scores"]),
        files["content"] != files["style"],
    )


def _identity(scorer: Scorer) -> str | None:
    """A text that is the same only for the same scorer; None for one that does not name itself."""
    identity = getattr(scorer, "identity", None)
    return f"{type(scorer).__module__}.{type(scorer).__qualname__} {identity}" if identity else None


def _drawn(files: Files) -> dict[str, dict[str, str]]:
    """The sha256 of each scored picture's file, by half and name."""
    return {
        half: {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files[half]}
        for half in sorted(files)
    }


def _read(checkpoint: Path, files: Files) -> dict[str, Any] | None:
    """The scores kept at a checkpoint, if they are whole and belong to these pictures."""
    try:
        kept = read_json(checkpoint / SCORES)
    except (OSError, BLoRAError):
        return None
    if kept.get("drawn") != _drawn(files):
        return None
    for half in ("content", "style"):
        numbers = kept.get(f"{half}_scores")
        if not isinstance(numbers, list) or len(numbers) != len(files[half]):
            return None
        if not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
            return None
    if not all(isinstance(kept.get(name), str) for name in ("scorer", "picture")):
        return None
    return kept


def _write(checkpoint: Path, files: Files, scores: dict[str, Any]) -> None:
    """Keep the scores beside the pictures, in the place of older ones."""
    path = checkpoint / SCORES
    try:
        with complete_file(path, replace=True) as part:
            text = json.dumps(scores | {"drawn": _drawn(files)}, indent=1)
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        warnings.warn(
            f"The scores cannot be kept at {path} ({error}); they are computed again next time.",
            stacklevel=3,
        )
