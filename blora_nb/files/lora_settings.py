"""What is said about all layers of a LoRA: alpha and rank, from a header or PEFT's config.

Each of lora_alpha, use_rslora and the patterns is taken from the first place of `SOURCES` that
gives it. Where two places contradict each other, a note says which was used.

Source: PEFT's LoraConfig, diffusers' `lora_adapter_metadata`, kohya's sd-scripts (`ss_network_…`)
and LyCORIS (`rs_lora`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.json_objects import json_object, parse_json
from blora_nb.files.other_methods import refuse_method_of_settings
from blora_nb.files.setting_values import (
    Patterns,
    alpha_patterns,
    as_number,
    first_match,
    is_nothing,
    is_true,
    plain_text,
    rank_patterns,
    usable_alpha,
)

PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_ENTRY = "lora_adapter_metadata"
OWN_ALPHA = "the layer's own .alpha"

# by precedence; docs/formats.md has this table
SOURCES = (
    (OWN_ALPHA, "kohya, LyCORIS, OneTrainer, ComfyUI"),
    (PEFT_CONFIG, "PEFT, beside the file"),
    (DIFFUSERS_ENTRY, "diffusers, in the header; with `unet.` before each name or without"),
    ("another JSON entry of the header", "with `lora_alpha`, for instance `lora_config`"),
    ("ss_network_alpha", "kohya and LyCORIS, in the header; `rs_lora` of `ss_network_args` too"),
    ("lora_alpha", "plain in the header; also `network_alpha`, `alpha`, `use_rslora`"),
)

# what an entry is about, and its names in files; of two names for the same, the first counts
NAMES = {
    "alpha": ("lora_alpha", "network_alpha", "alpha"),
    "rank": ("r", "lora_rank", "network_dim", "network_rank", "lora_dim", "rank", "dim"),
    "rslora": ("use_rslora", "use_rs_lora", "rslora", "rs_lora"),
    "alpha_pattern": ("alpha_pattern",),
    "rank_pattern": ("rank_pattern",),
    "dora": ("use_dora", "dora_wd"),
    "init": ("init_lora_weights",),
    "kasa": ("kasa_config",),
    "method": ("peft_type",),
}
MEANING = {name: meaning for meaning, names in NAMES.items() for name in names}

# entries that no other settings have: JSON with one of them is about a LoRA, whatever it is called
TELLING = {
    "lora_alpha",
    "network_alpha",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "lora_rank",
}
# JSON that is about a LoRA where it has any of the entries
JSON_ENTRIES = {
    "adapter_config",
    "adapter_config.json",
    "peft_config",
    "lora_config",
    "adapter_metadata",
    "lora_metadata",
    "network_config",
    "config",
    "lora",
    "peft",
    "adapter",
}
UNUSED = {"lora_scale", "scale", "scaling", "multiplier"}  # how it is to be used, not what it is
OWN_JSON = {"training", "versions", "pictures"}  # what this package writes
KOHYA = {"ss_network_alpha": "alpha", "ss_network_dim": "rank"}
KOHYA_ARGUMENTS = {"rslora", "dora", "init"}
TEXT_ENCODER_GROUP = re.compile(r"text_encoder|text_model|te\d?$|clip")


@dataclass
class LoRASettings:
    """What is said about all layers, from every place but the layers themselves.

    Attributes:
        alpha, rank: None where no place gives them.
        rslora: the scale is alpha / √rank.
        alpha_patterns, rank_patterns: for single layers; the first that matches counts.
        places: {attribute: the place it is from, in words}.
        notes: what was contradictory or could not be used.
    """

    alpha: float | None = None
    rank: float | None = None
    rslora: bool = False
    alpha_patterns: Patterns = field(default_factory=list)
    rank_patterns: Patterns = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def alpha_place(self) -> str | None:
        """The place that the alpha is from, in words."""
        return self.places.get("alpha") or self.places.get("alpha_patterns")

    def divisor(self, rank: int) -> float:
        """What an alpha is divided by to get the scale."""
        return math.sqrt(rank) if self.rslora else rank

    def scale(self, names: list[str], rank: int) -> float | None:
        """The scale of a layer with one of these names; None where nothing is said about it."""
        alpha = first_match(self.alpha_patterns, names, self.alpha)
        if alpha is None:
            return math.sqrt(rank) if self.rslora else None
        return alpha / self.divisor(rank)

    def rank_of(self, names: list[str]) -> float | None:
        """The rank that is said of a layer with one of these names, or None."""
        return first_match(self.rank_patterns, names, self.rank)


def read_lora_settings(metadata: dict, beside: dict) -> LoRASettings:
    """All that a header, and PEFT's config beside the file (or {}), say about a U-Net's LoRA.

    Raises:
        BLoRAError: it is a method that cannot be read; an alpha is no number; the entries speak of
            several models and none is the U-Net.
    """
    found, settings = [], LoRASettings()
    for place, entries, strict in _places(metadata, beside):
        values = _of_the_unet(entries, place)
        refuse_method_of_settings(values, place)
        found.append((place, _parsed(values, place, strict, settings.notes)))
    for attribute in ("alpha", "rank", "rslora", "alpha_patterns", "rank_patterns"):
        given = [(place, values[attribute]) for place, values in found if attribute in values]
        if not given:
            continue
        place, value = given[0]
        setattr(settings, attribute, value)
        settings.places[attribute] = place
        for other, different in given[1:]:
            if different != value and attribute in ("alpha", "rslora"):
                settings.notes.append(
                    f"{other} says {_in_words(attribute, different)}, {place} says "
                    f"{_in_words(attribute, value)}; the latter is used."
                )
    settings.notes += _unread(metadata)
    return settings


def is_setting(key: str, text: str) -> bool:
    """Whether a header's entry is about scales: wrong in a new file with these multiplied in."""
    return key == DIFFUSERS_ENTRY or any(True for _ in _places({key: str(text)}, {}))


def _last(name: str) -> str:
    """The last piece of a dotted name, by which `MEANING` knows it."""
    return name.rpartition(".")[2].lower()


def _places(metadata: dict, beside: dict) -> Iterator[tuple[str, dict, bool]]:
    """(place in words, entries, whether an odd alpha there is an error), by precedence."""
    if beside:
        yield PEFT_CONFIG, beside, True
    if DIFFUSERS_ENTRY in metadata:
        place = f"{DIFFUSERS_ENTRY} in the header"
        yield place, parse_json(metadata[DIFFUSERS_ENTRY], place), True
    foreign = {
        key: text
        for key, text in metadata.items()
        if key != DIFFUSERS_ENTRY and not key.startswith(("ss_", "modelspec."))
    }
    for key, text in foreign.items():
        if key in OWN_JSON or not text.lstrip().startswith("{"):
            continue
        entries = json_object(text) or {}
        names = {_last(name) for name, _ in _flat(entries)}
        if names & TELLING or (key.lower() in JSON_ENTRIES and names & MEANING.keys()):
            yield f"{shown(key, 60)} in the header", entries, False
    kohya = {KOHYA[key]: metadata[key] for key in KOHYA if key in metadata}
    arguments = json_object(metadata.get("ss_network_args", "")) or {}
    kohya |= {key: value for key, value in arguments.items() if MEANING.get(key) in KOHYA_ARGUMENTS}
    if kohya:
        yield "ss_network_alpha in the header", kohya, False
    plain = {key: text for key, text in foreign.items() if _last(key) in MEANING}
    if plain:
        alphas = [key for key in plain if MEANING[_last(key)] == "alpha"]
        named = alphas[0] if alphas else next(iter(plain))
        yield f"{shown(named, 60)} in the header", plain, False


def _unread(metadata: dict) -> Iterator[str]:
    """Notes about entries of a header that seem to be about the scale and cannot be used."""
    for key, text in metadata.items():
        name = _last(key)
        if name in UNUSED:
            yield f"{shown(key, 60)} {shown(text, 40)} in the header was not used."
        elif name in JSON_ENTRIES and re.search("alpha|rslora", text) and json_object(text) is None:
            yield f"{shown(key, 60)} in the header is no JSON object and was not used."


def _flat(entries: dict, start: str = "", depth: int = 3) -> Iterator[tuple[str, object]]:
    """Entries, each with the names of the settings it is nested in before its own."""
    for key, value in entries.items():
        name = f"{start}{key}"
        last = _last(name)
        nested = isinstance(value, dict) and last not in MEANING
        of_a_variant = last.endswith("_config") and last not in JSON_ENTRIES
        if nested and depth and not of_a_variant:
            yield from _flat(value, f"{name}.", depth - 1)
        else:
            yield name, value


def _of_the_unet(entries: dict, place: str) -> dict:
    """{entry: value} of the U-Net: those named after it, else those without any name."""
    groups: dict[str, dict] = defaultdict(dict)
    for name, value in _flat(entries):
        model, _, last = name.rpartition(".")
        if last.lower() in MEANING:
            groups[model.removeprefix("base_model.model").strip(".")][last.lower()] = value
    own, others = [], []
    for model, values in groups.items():
        pieces = model.lower().split(".")
        if "unet" in pieces:
            own.append(values)
        elif model and not any(map(TEXT_ENCODER_GROUP.match, pieces)):
            others.append(values)
    if not own and "" not in groups:
        own = others
    if any(values != own[0] for values in own[1:]):
        raise BLoRAError(
            f"{place} has settings for {several(sorted(groups))}, which differ, and does not say "
            "which are the U-Net's. Keep only those of this LoRA."
        )
    return groups.get("", {}) | (own[0] if own else {})


def _parsed(values: dict, place: str, strict: bool, notes: list[str]) -> dict:
    """{attribute of `LoRASettings`: value} of one place's entries; what cannot be used is noted."""
    found: dict[str, object] = {}
    given = {
        meaning: [name for name in names if name in values] for meaning, names in NAMES.items()
    }
    for name in given["alpha"]:
        value = usable_alpha(values[name], name, place, strict, notes)
        if value is not None and found.setdefault("alpha", value) != value:
            notes.append(f"{place} also gives {name} {value:g}, which was not used.")
    for name in given["rank"]:
        rank = as_number(values[name])
        if rank is not None and rank >= 1 and rank.is_integer():
            found["rank"] = rank
            break
        if not is_nothing(values[name]) and plain_text(values[name]).lower() != "dynamic":
            notes.append(
                f"{place} gives {shown(values[name], 40)} as the rank, which no LoRA "
                "has; that of the matrices was used."
            )
    for name in given["rslora"][:1]:
        found["rslora"] = is_true(values[name], name, place)
    patterns = {
        "alpha_patterns": alpha_patterns(values.get("alpha_pattern"), place),
        "rank_patterns": rank_patterns(values.get("rank_pattern")),
    }
    return found | {name: value for name, value in patterns.items() if value}


def _in_words(attribute: str, value: object) -> str:
    return f"lora_alpha {value:g}" if attribute == "alpha" else f"use_rslora {value}"
