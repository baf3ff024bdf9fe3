"""JSON objects in texts that come out of files."""

import json
from typing import Any

from blora_nb.errors import BLoRAError, shown


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object in a text out of a file; None if there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_json(text: str | bytes, where: object) -> dict[str, Any]:
    """The JSON object in a text out of `where`; a BLoRAError if there is none."""
    value = json_object(text)
    if value is None:
        raise BLoRAError(
            f"{shown(where, 300)} does not hold the settings it should (a JSON object); "
            "remove or repair it."
        )
    return value
