"""Single values out of PEFT's config or a file's header: numbers, yes and no, patterns for layers.

They are JSON or plain text, and may be anything.
"""

import math
import re

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.json_objects import json_object

NOTHING = {"", "none", "null"}
YES = {"true", "yes", "1", "1.0"}
NO = {"false", "no", "0", "0.0"} | NOTHING

# what is tried of a regular expression: names, "." for any character, ".*", names to choose from
# in brackets; others can take for ever
PATTERN = re.compile(r"\^?(?:\w|\\\.|\.\*?|\((?:\w|\\\.)+(?:\|(?:\w|\\\.)+)*\)){1,300}\$?")
MOST_PATTERNS = 2000  # a LoRA of all of SDXL's linear layers has 722
WRAPPER_IN_PATTERN = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|(?<![\w.])module)\\?\.")

Patterns = list[tuple[re.Pattern, float]]


def plain_text(value: object) -> str:
    """A value as text, without the quotes that some programs write around it."""
    return str(value).strip().strip("\"'").strip()


def is_nothing(value: object) -> bool:
    """Whether a value says that there is none."""
    return plain_text(value).lower() in NOTHING


def as_number(value: object) -> float | None:
    """A number out of JSON or text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(plain_text(value) if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None


def is_true(value: object, name: str, place: str) -> bool:
    """Whether the entry `name` says yes.

    Raises:
        BLoRAError: it says neither yes nor no.
    """
    text = plain_text(value).lower()
    if text not in YES | NO:
        raise BLoRAError(f"{place} gives {shown(value, 40)} as {name}; it must be true or false.")
    return text in YES


def usable_alpha(
    value: object, name: str, place: str, strict: bool, notes: list[str]
) -> float | None:
    """The alpha that the entry `name` gives; None where it gives none that can be used.

    Args:
        strict: whether something else than a number is an error; it is added to `notes` otherwise.

    Raises:
        BLoRAError: it is NaN, infinite, or no number although it must be one.
    """
    if is_nothing(value):
        return None
    found = as_number(value)
    if found is None:
        trouble = f"{place} gives {shown(value, 40)} as {name}; that is no number"
        if strict:
            raise BLoRAError(f"The settings cannot be read: {trouble}.")
        notes.append(f"{trouble} and was not used.")
        return None
    if not math.isfinite(found):
        raise BLoRAError(
            f"{place} gives {shown(value, 40)} as {name}: the alpha is NaN or infinite."
        )
    if found == 0 and place.startswith("ss_"):
        notes.append(f"{place} gives 0 as {name}, which kohya takes for the rank; it was not used.")
        return None
    return found


def alpha_patterns(given: object, place: str) -> Patterns:
    """The alphas of single layers, from PEFT's `alpha_pattern`: names of layers, or their ends.

    Raises:
        BLoRAError: they are so many, or so involved, that trying them could take for ever.
    """
    entries = _entries(given)
    if len(entries) > MOST_PATTERNS:
        raise BLoRAError(
            f"The settings give a lora_alpha for {len(entries):,} patterns; no LoRA of SDXL "
            f"needs more than {MOST_PATTERNS:,}."
        )
    for pattern in entries:
        if _is_involved(pattern):
            raise BLoRAError(
                f"The settings give a lora_alpha for {shown(pattern)}, a pattern too involved "
                "to be tried safely; write it with plain names."
            )
    alphas = {
        pattern: usable_alpha(value, f"the lora_alpha of {shown(pattern)}", place, True, [])
        for pattern, value in entries.items()
    }
    return _compiled({pattern: found for pattern, found in alphas.items() if found is not None})


def rank_patterns(given: object) -> Patterns:
    """The ranks of single layers, from PEFT's `rank_pattern`; like `alpha_patterns`.

    They are only compared with the matrices: what is odd about them is left aside.
    """
    entries = _entries(given)
    if len(entries) > MOST_PATTERNS or any(map(_is_involved, entries)):
        return []
    ranks = {pattern: as_number(value) for pattern, value in entries.items()}
    known = {pattern: rank for pattern, rank in ranks.items() if rank is not None}
    return _compiled(known) if len(known) == len(ranks) else []


def first_match(patterns: Patterns, names: list[str], default: float | None) -> float | None:
    """The number of the first pattern that matches one of the names."""
    for pattern, value in patterns:
        if any(pattern.match(name) for name in names):
            return value
    return default


def _entries(given: object) -> dict:
    entries = json_object(given) if isinstance(given, str) else given
    return entries if isinstance(entries, dict) else {}


def _is_involved(pattern: str) -> bool:
    return not PATTERN.fullmatch(pattern) or pattern.count(".*") > 2 or pattern.count("(") > 4


def _compiled(numbers: dict[str, float]) -> Patterns:
    # two spellings may become one; the later then replaces the value of the earlier
    plain = {WRAPPER_IN_PATTERN.sub("", pattern): value for pattern, value in numbers.items()}
    return [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in plain.items()]
