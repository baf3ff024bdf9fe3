"""The errors and warnings of the package, and how the content of a file is worded in them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blora_nb.lora import BLoRA

MOST_NAMED = 4  # of many names in a message


class BLoRAError(ValueError):
    """A file or state dict that is no usable B-LoRA; the message says why."""


class BLoRAWarning(UserWarning):
    """Something in a file that was left out or assumed."""


class BaseError(ValueError):
    """A base model that B-LoRA is not for; the message says why and what to do."""


class PipelineError(ValueError):
    """A pipeline changed in a way that spoils what is asked; the message says how to undo it."""


class PipelineWarning(UserWarning):
    """A change made by other code that was taken off the pipeline."""


class ImageError(ValueError):
    """A picture that cannot be used; the message says which one, why, and what to do."""


class ImageWarning(UserWarning):
    """What a person should know about a picture: what was left out, assumed or is not there."""


class PromptWarning(UserWarning):
    """Words of a prompt that do not do what they say."""


class TrainingWarning(UserWarning):
    """Something that a training could not do, or does otherwise than expected; it goes on."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to change.

    Attributes:
        blora: the last good weights, or None.
        step: the step after which they were good.
    """

    blora: "BLoRA | None" = None
    step: int | None = None


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used.

    The message says which one, why, and what is still there.
    """


def shown(text: object, longest: int = 120) -> str:
    """A text out of a file as it may be printed: no control characters, not endless."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: longest + 1])
    return plain if len(plain) <= longest else plain[:longest] + "…"


def not_there(what: str, path: Path) -> str:
    """What to say of a file or folder that is not where a person says it is."""
    return (
        f"There is no {what} {shown(path, 300)}. Check the path (relative paths start at "
        f"{Path.cwd()})."
    )


def check_names(given: Iterable[str], known: Iterable[str], what: str, listed_by: str) -> None:
    """Raise a ValueError at the first given name that is not known; it offers the nearest ones."""
    known = list(known)
    for name in given:
        if name not in known:
            near = " or ".join(get_close_matches(name, known, cutoff=0.5))
            meant = f"Did you mean {near}? " if near else ""
            raise ValueError(f"There is no {what} '{name}'. {meant}{listed_by} lists all of them.")


def several(names: Iterable[object]) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    listed = ", ".join(shown(name) for name in names[:MOST_NAMED])
    left = len(names) - MOST_NAMED
    return f"{listed} and {left:,} more" if left > 0 else listed


@contextmanager
def named_in_errors(file: str | PathLike[str]) -> Iterator[None]:
    """Inside, every `BLoRAError` begins with the file it is about."""
    try:
        yield
    except BLoRAError as error:
        if str(error).startswith(str(file)):
            raise
        raise BLoRAError(f"{file}: {error}") from None
