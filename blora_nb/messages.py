"""The error for files that cannot be used, and words out of such files made fit to be printed."""

import json


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
