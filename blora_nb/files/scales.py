"""How strongly a LoRA acts: the factor of lora_B @ lora_A in each layer, from all that a file says.

The places that can say it are those of `SOURCES`, in their order. What a layer says of itself
counts first. The other places are put together entry by entry: each of lora_alpha, use_rslora and
the patterns is taken from the first place that gives it. Where two places contradict each other,
or where nothing is said, a note says what was used.

Source: PEFT's LoraConfig (scale lora_alpha / r, with use_rslora lora_alpha / √r), diffusers'
`lora_adapter_metadata`, kohya's sd-scripts (`.alpha`, `ss_network_…`) and LyCORIS (`rs_lora`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from blora_nb.errors import BLoRAError, json_object, parse_json, several, shown

PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_ENTRY = "lora_adapter_metadata"
OWN_ALPHA = "the layer's own .alpha"

# docs/formats.md has this table
SOURCES = (
    (OWN_ALPHA, "kohya, LyCORIS, OneTrainer, ComfyUI"),
    (PEFT_CONFIG, "PEFT, beside the file"),
    (DIFFUSERS_ENTRY, "diffusers, in the header; with `unet.` before each name or without"),
    ("another JSON entry of the header", "with `lora_alpha`, for instance `lora_config`"),
    ("ss_network_alpha", "kohya and LyCORIS, in the header; `rs_lora` of `ss_network_args` too"),
    ("lora_alpha", "plain in the header; also `network_alpha`, `alpha`, `use_rslora`"),
)

# names of an entry in files, and what it is here; of two names for the same, the first counts
FIELDS = {
    "lora_alpha": "alpha",
    "network_alpha": "alpha",
    "alpha": "alpha",
    "r": "rank",
    "lora_rank": "rank",
    "network_dim": "rank",
    "network_rank": "rank",
    "lora_dim": "rank",
    "rank": "rank",
    "dim": "rank",
    "use_rslora": "rslora",
    "use_rs_lora": "rslora",
    "rslora": "rslora",
    "rs_lora": "rslora",
    "alpha_pattern": "alpha_pattern",
    "rank_pattern": "rank_pattern",
    "use_dora": "dora",
    "dora_wd": "dora",
    "init_lora_weights": "init",
    "kasa_config": "kasa",
    "peft_type": "method",
}
# entries that no other settings have: JSON with one of them is about a LoRA, whatever it is called
TELLING = {
    "lora_alpha",
    "network_alpha",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "lora_rank",
}
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
OTHER_JSON = {"training", "versions", "pictures"}  # what this package writes
KOHYA_ARGUMENTS = {"rslora", "dora", "init"}
KOHYA = {"ss_network_alpha": "alpha", "ss_network_dim": "rank"}
NOTHING = {"", "none", "null"}
TRUE, FALSE = {"true", "yes", "1", "1.0"}, {"false", "no", "0", "0.0"} | NOTHING
TEXT_ENCODER = re.compile(r"text_encoder|text_model|te\d?$|clip")

# methods that PEFT starts by taking their first matrices off the base model's own weights
CHANGE_THE_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
CONVERTIBLE = {"PiSSA", "OLoRA", "CorDA", "LoRA-GA"}

# patterns for layer names that are matched: names, "." for any character, ".*", names to choose
# from in brackets; no others, which can take for ever
PATTERN = re.compile(r"\^?(?:\w|\\\.|\.\*?|\((?:\w|\\\.)+(?:\|(?:\w|\\\.)+)*\)){1,300}\$?")
MOST_PATTERNS = 2000  # a LoRA of all of SDXL's linear layers has 722
WRAPPER_IN_PATTERN = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|(?<![\w.])module)\\?\.")


@dataclass
class Settings:
    """What is said about all layers, from every place but the layers themselves.

    Attributes:
        alpha, rank: None where no place gives them.
        rslora: the scale is alpha / √rank.
        alpha_patterns, rank_patterns: [(compiled pattern, number), …]; the first that fits counts.
        places: {attribute: the place it is from, in words}.
        quiet: whether the alpha is from a place where one expects it, so that no note is needed.
        notes: what was contradictory or could not be used.
    """

    alpha: float | None = None
    rank: float | None = None
    rslora: bool = False
    alpha_patterns: list = field(default_factory=list)
    rank_patterns: list = field(default_factory=list)
    places: dict = field(default_factory=dict)
    quiet: bool = True
    notes: list = field(default_factory=list)

    def scale(self, names: list[str], rank: int) -> float | None:
        """The scale of a layer with one of these names; None where nothing is said about it."""
        alpha = _first_fit(self.alpha_patterns, names)
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            return math.sqrt(rank) if self.rslora else None
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, names: list[str]) -> float | None:
        """The rank that is said of a layer, or None."""
        rank = _first_fit(self.rank_patterns, names)
        return self.rank if rank is None else rank


def read_settings(metadata: dict, beside: dict, part: str = "unet") -> Settings:
    """All that the header and a file beside say about the LoRA of one model.

    Args:
        metadata: of the header, text to text. beside: PEFT's `adapter_config.json`, or empty.
        part: the model it is asked for, by diffusers' name: entries named after another are not
            about it.

    Raises:
        BLoRAError: it is a method that cannot be read; an alpha is no number; the entries speak of
            several models and none is this one.
    """
    found, settings = [], Settings()
    for place, entries, strict in _places(metadata, beside):
        values = _of_the_part(entries, part, place)
        _refuse_other_methods(values, place)
        found.append((place, _parsed(values, place, strict, settings.notes)))
    for attribute in ("alpha", "rank", "rslora", "alpha_patterns", "rank_patterns"):
        given = [(place, values[attribute]) for place, values in found if attribute in values]
        if not given:
            continue
        place, value = given[0]
        setattr(settings, attribute, value)
        settings.places[attribute] = place
        if attribute in ("alpha", "rslora"):
            settings.notes += [
                f"{other} says {_words(attribute, different)}, {place} says "
                f"{_words(attribute, value)}; the latter is used."
                for other, different in given[1:]
                if different != value
            ]
    settings.notes += _unread(metadata)
    place = settings.places.get("alpha") or settings.places.get("alpha_patterns")
    settings.quiet = place is None or place.startswith((PEFT_CONFIG, DIFFUSERS_ENTRY))
    return settings


def scales(
    ranks: dict[str, int | None],
    alphas: dict[str, float],
    settings: Settings,
    written: dict[str, str] | None = None,
    expected: str = "",
) -> tuple[dict[str, float], list[str]]:
    """The scale of each layer, and notes about what was contradictory or not said.

    Args:
        ranks: {layer: what divides its alpha}; None for a LoKr whose factors are both whole.
        alphas: {layer: its own `.alpha`}.
        written: {layer: its name in the file}, which patterns may mean.
        expected: a sentence for files of programs that always say the alpha, where this one does
            not; empty where none is missed.

    Raises:
        BLoRAError: a scale is NaN or infinite.
    """
    written, found, about = written or {}, {}, defaultdict(list)
    for layer, rank in ranks.items():
        names = [layer, f"unet.{layer}", written.get(layer, layer)]
        if rank is None:
            found[layer] = _whole_lokr(layer, alphas.get(layer), settings, about)
            continue
        said = settings.scale(names, rank) if rank else None
        if layer in alphas:
            found[layer] = alphas[layer] / rank if rank else 1.0
            if said is not None and not math.isclose(found[layer], said, rel_tol=2e-3):
                other = settings.places.get("alpha", settings.places.get("rslora", "the header"))
                about[f"{OWN_ALPHA} was used; {other} says something else"].append(layer)
        elif said is not None:
            found[layer] = said
            _about_settings(layer, said, rank, settings, names, about, bool(alphas))
        else:
            found[layer] = 1.0
            if alphas:
                about["no alpha, taken to be the rank"].append(layer)
            elif expected or settings.places:
                about[expected or _no_alpha(settings)].append(layer)
        if not math.isfinite(found[layer]):
            raise BLoRAError(f"{shown(layer)}: the alpha is NaN or infinite.")
        if found[layer] < 0:
            about["a negative alpha, which reverses its effect"].append(layer)
    used = {
        f"{several(layers)}: {note}." if len(layers) < len(ranks) else f"{note}."
        for note, layers in about.items()
    }
    return found, settings.notes + sorted(used)


def is_setting(key: str, text: str) -> bool:
    """Whether an entry of a header would be read as one about scales.

    Such an entry is wrong in a file that is written anew with the scales multiplied in.
    """
    return key == DIFFUSERS_ENTRY or any(True for _ in _places({key: str(text)}, {}))


def _no_alpha(settings: Settings) -> str:
    place = next(iter(settings.places.values()))
    return f"{place} gives no lora_alpha; the alpha is taken to be the rank"


def _about_settings(layer, said, rank, settings, names, about, others_have_alphas):
    """Note what deserves it about a layer whose scale comes from the settings."""
    place = settings.places.get("alpha", settings.places.get("alpha_patterns", ""))
    if not place:
        place = settings.places["rslora"]
        about[f"{place} gives use_rslora but no lora_alpha, taken to be the rank"].append(layer)
    elif not settings.quiet or others_have_alphas:
        alpha = said * (math.sqrt(rank) if settings.rslora else rank)
        how = " with use_rslora" if settings.rslora else ""
        about[f"no alpha of its own; {place} says {alpha:g}, which was used{how}"].append(layer)
    expected = settings.rank_of(names)
    if expected is not None and expected != rank:
        where = settings.places.get("rank", settings.places.get("rank_patterns"))
        about[
            f"{where} says another rank than the matrices have; the alpha was divided by that of "
            "the matrices"
        ].append(layer)


def _whole_lokr(layer, alpha, settings, about) -> float:
    """The scale of a LoKr with two whole factors.

    LyCORIS writes the alpha it trained with but not the rank it divided by; only the header may
    have that. Other readers, LyCORIS's own among them, take 1.
    """
    if alpha is not None and math.isfinite(alpha) and settings.rank:
        return alpha / settings.rank
    about[
        "a LoKr of whole factors, where the file does not say its alpha and ss_network_dim, by "
        "which to divide it; scale 1 was used"
    ].append(layer)
    return 1.0


def _places(metadata: dict, beside: dict) -> Iterator[tuple[str, dict, bool]]:
    """(place in words, entries, whether an odd alpha there is an error), by precedence."""
    if beside:
        yield PEFT_CONFIG, beside, True
    if DIFFUSERS_ENTRY in metadata:
        place = f"{DIFFUSERS_ENTRY} in the header"
        yield place, parse_json(metadata[DIFFUSERS_ENTRY], place), True
    for key, text in metadata.items():
        if key in OTHER_JSON or key == DIFFUSERS_ENTRY or key.startswith(("ss_", "modelspec.")):
            continue
        entries = json_object(text) if text.lstrip().startswith("{") else None
        names = {name.rpartition(".")[2].lower() for name, _ in _flat(entries or {})}
        if names & TELLING or (key.lower() in JSON_ENTRIES and names & FIELDS.keys()):
            yield f"{shown(key, 60)} in the header", entries, False
    kohya = {KOHYA[key]: metadata[key] for key in KOHYA if key in metadata}
    arguments = json_object(metadata.get("ss_network_args", "")) or {}
    kohya |= {key: value for key, value in arguments.items() if FIELDS.get(key) in KOHYA_ARGUMENTS}
    if kohya:
        yield "ss_network_alpha in the header", kohya, False
    plain = {
        key: text
        for key, text in metadata.items()
        if key.rpartition(".")[2].lower() in FIELDS and not key.startswith(("ss_", "modelspec."))
    }
    if plain:
        named = next(
            (key for key in plain if FIELDS[key.rpartition(".")[2].lower()] == "alpha"), None
        )
        yield f"{shown(named or next(iter(plain)), 60)} in the header", plain, False


def _unread(metadata: dict) -> Iterator[str]:
    """Notes about entries of a header that seem to be about the scale and cannot be used."""
    for key, text in metadata.items():
        name = key.rpartition(".")[2].lower()
        if name in UNUSED:
            yield f"{shown(key, 60)} {shown(text, 40)} in the header was not used."
        elif (
            name in JSON_ENTRIES and re.search(r"alpha|rslora", text) and json_object(text) is None
        ):
            yield f"{shown(key, 60)} in the header is no JSON object and was not used."


def _flat(entries: dict, start: str = "", depth: int = 3) -> Iterator[tuple[str, object]]:
    """Entries with the names of the settings they are nested in before their own."""
    for key, value in entries.items():
        name = f"{start}{key}"
        field_name = name.rpartition(".")[2].lower()
        nested = isinstance(value, dict) and field_name not in FIELDS
        of_a_variant = field_name.endswith("_config") and field_name not in JSON_ENTRIES
        if nested and depth and not of_a_variant:
            yield from _flat(value, f"{name}.", depth - 1)
        else:
            yield name, value


def _of_the_part(entries: dict, part: str, place: str) -> dict:
    """{entry: value} for one model: those named after it, else those without any name."""
    spaces: dict[str, dict] = defaultdict(dict)
    for name, value in _flat(entries):
        space, _, last = name.rpartition(".")
        if last.lower() in FIELDS:
            spaces[space.removeprefix("base_model.model").strip(".")][last.lower()] = value
    own = [found for space, found in spaces.items() if part in space.lower().split(".")]
    others = [
        found
        for space, found in spaces.items()
        if space and found not in own and not any(map(TEXT_ENCODER.match, space.lower().split(".")))
    ]
    if not own and "" not in spaces and part == "unet":
        own = others
    if any(found != own[0] for found in own[1:]):
        raise BLoRAError(
            f"{place} has settings for {several(sorted(spaces))}, which differ, and does not say "
            "which are the U-Net's. Keep only those of this LoRA."
        )
    return spaces.get("", {}) | (own[0] if own else {})


def _refuse_other_methods(values: dict, place: str):
    """Raise a BLoRAError for settings of what is no plain LoRA on the unchanged base model."""
    method = str(values.get("peft_type") or "LORA").rpartition(".")[2]
    if method.upper() != "LORA":
        raise BLoRAError(
            f"Its settings ({place}) say that it is PEFT's {shown(method, 40)}; of PEFT's methods "
            "only LORA can be read."
        )
    for name in ("use_dora", "dora_wd"):
        if _truth(values.get(name), name, place):
            raise BLoRAError(
                f"It is a DoRA, as {place} says ({name}); only plain LoRA can be read."
            )
    if str(values.get("kasa_config")).strip().lower() not in FALSE:
        raise BLoRAError(_changes_the_base("KaSA", "kasa_config", place))
    init = str(values.get("init_lora_weights")).strip().strip("\"'")
    spelled = re.sub(r"[^a-z]", "", init.lower())
    for start, name in CHANGE_THE_BASE.items():
        if spelled.startswith(start.replace("_", "")):
            raise BLoRAError(_changes_the_base(name, f"init_lora_weights {shown(init, 40)}", place))


def _changes_the_base(name: str, why: str, place: str) -> str:
    remedy = "Train it again with another init_lora_weights, for instance gaussian."
    if name in CONVERTIBLE:
        remedy = (
            "Save it again from PEFT as a plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    return (
        f"It is an adapter made with {name} ({why} in {place}), which changes the base model's own "
        f"weights as well; on the unchanged base model it would act wrongly. {remedy}"
    )


def _parsed(values: dict, place: str, strict: bool, notes: list[str]) -> dict:
    """{attribute of `Settings`: value} of one place's entries; what cannot be used is noted."""
    found = {}
    for name, attribute in FIELDS.items():
        if name not in values or (attribute in found and attribute != "alpha"):
            continue
        if attribute == "alpha":
            alpha = _alpha(values[name], name, place, strict, notes)
            if alpha is not None and found.setdefault("alpha", alpha) != alpha:
                notes.append(f"{place} also gives {name} {alpha:g}, which was not used.")
        elif attribute == "rank":
            rank = _number(values[name])
            if rank is not None and rank >= 1 and rank.is_integer():
                found["rank"] = rank
            elif str(values[name]).strip("\" '").lower() not in NOTHING | {"dynamic"}:
                notes.append(
                    f"{place} gives {shown(values[name], 40)} as the rank, which no LoRA "
                    "has; that of the matrices was used."
                )
        elif attribute == "rslora":
            found["rslora"] = _truth(values[name], name, place)
    for name in ("alpha_pattern", "rank_pattern"):
        if patterns := _patterns(values.get(name), name, place):
            found[f"{name}s"] = patterns
    return found


def _alpha(value, name: str, place: str, strict: bool, notes: list[str]) -> float | None:
    """An entry's alpha; None where it gives none.

    Raises:
        BLoRAError: it is NaN or infinite, or no number where one must stand.
    """
    if str(value).strip("\" '").lower() in NOTHING:
        return None
    alpha = _number(value)
    if alpha is None:
        trouble = f"{place} gives {shown(value, 40)} as {name}; that is no number"
        if strict:
            raise BLoRAError(f"The settings cannot be read: {trouble}.")
        notes.append(f"{trouble} and was not used.")
    elif not math.isfinite(alpha):
        raise BLoRAError(
            f"{place} gives {shown(value, 40)} as {name}: the alpha is NaN or infinite."
        )
    elif alpha == 0 and place.startswith("ss_"):
        notes.append(f"{place} gives 0 as {name}, which kohya takes for the rank; it was not used.")
        return None
    return alpha


def _number(value) -> float | None:
    """A number out of JSON or out of a text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value.strip().strip("\"'") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None


def _truth(value, name: str, place: str) -> bool:
    """Whether an entry, of JSON or a text, says yes.

    Raises:
        BLoRAError: it says neither yes nor no.
    """
    text = str(value).strip().strip("\"'").lower()
    if text not in TRUE | FALSE:
        raise BLoRAError(f"{place} gives {shown(value, 40)} as {name}; it must be true or false.")
    return text in TRUE


def _patterns(given, name: str, place: str) -> list[tuple[re.Pattern, float]]:
    """[(compiled pattern, number), …] of PEFT's config: regular expressions for a layer's name or
    the end of it.

    Raises:
        BLoRAError: patterns for alphas are so many, or so involved, that trying them could take
            for ever. Of ranks, which are only compared, such are left aside.
    """
    given = json_object(given) if isinstance(given, str) else given
    if not isinstance(given, dict):
        return []
    involved = [pattern for pattern in given if _involved(pattern)]
    if name == "rank_pattern":
        usable = len(given) <= MOST_PATTERNS and not involved
        numbers = {pattern: _number(value) for pattern, value in given.items()}
        numbers = numbers if usable and None not in numbers.values() else {}
    else:
        if len(given) > MOST_PATTERNS:
            raise BLoRAError(
                f"The settings give a lora_alpha for {len(given):,} patterns; no LoRA of SDXL "
                f"needs more than {MOST_PATTERNS:,}."
            )
        if involved:
            raise BLoRAError(
                f"The settings give a lora_alpha for {shown(involved[0])}, a pattern too involved "
                "to be tried safely; write it with plain names."
            )
        numbers = {
            pattern: _alpha(value, f"the lora_alpha of {shown(pattern)}", place, True, [])
            for pattern, value in given.items()
        }
    plain = {WRAPPER_IN_PATTERN.sub("", pattern): n for pattern, n in numbers.items()}
    return [(re.compile(rf"(.*\.)?({p})$"), n) for p, n in plain.items() if n is not None]


def _involved(pattern: str) -> bool:
    return not PATTERN.fullmatch(pattern) or pattern.count(".*") > 2 or pattern.count("(") > 4


def _first_fit(patterns: list, names: list[str]) -> float | None:
    """What the first pattern that fits one of the names gives."""
    different = names[:1] if not patterns else list(dict.fromkeys(names))
    for pattern, number in patterns:
        if any(pattern.match(name) for name in different):
            return number
    return None


def _words(attribute: str, value) -> str:
    return f"lora_alpha {value:g}" if attribute == "alpha" else f"use_rslora {value}"
