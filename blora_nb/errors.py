"""The error for files that cannot be used, and words out of such files made fit to be printed."""

import json
from contextlib import contextmanager


class BLoRAError(ValueError):
    """A file or state dict that is no usable B-LoRA; the message says why."""


def shown(text, longest: int = 120) -> str:
    """A name out of a file as it may be printed: no control characters, not endless."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: longest + 1])
    return plain if len(plain) <= longest else plain[:longest] + "…"


def several(names, most: int = 4) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def json_object(text: str) -> dict | None:
    """The JSON object that a text out of a file holds; None where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_json(text: str, where) -> dict:
    """A JSON object from text out of a file.

    Raises:
        BLoRAError: there is none in it.
    """
    value = json_object(text)
    if value is None:
        raise BLoRAError(
            f"{shown(where, 300)} does not hold the settings it should (a JSON object); "
            "remove or repair it."
        )
    return value


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to change.

    Attributes:
        blora: the last good weights as a `BLoRA`, or None.
        step: after which step they were so.
    """

    blora = None
    step = None


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; the message says which one, why, and what is still there."""


class ImageError(ValueError):
    """A picture that cannot be used; the message says which one, why, and what to do."""


class ImageWarning(UserWarning):
    """What a person should know about a picture: what was left out, assumed or is not there."""


class BLoRAWarning(UserWarning):
    """Something in a file that was left out or assumed."""


@contextmanager
def named_in_errors(file):
    """Inside, errors begin with the file they are about."""
    try:
        yield
    except BLoRAError as error:
        raise (
            error if str(error).startswith(str(file)) else BLoRAError(f"{file}: {error}")
        ) from None


class PromptWarning(UserWarning):
    """Words of a prompt that do not do what they say."""


class PipelineError(ValueError):
    """A pipeline changed in a way that spoils what is asked; the message says how to undo it."""


class PipelineWarning(UserWarning):
    """A change of somebody else's that was taken off the pipeline."""


class BaseError(ValueError):
    """A base model that B-LoRA is not for; the message says why and what to do."""
