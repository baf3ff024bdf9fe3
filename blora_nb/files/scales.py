"""How strongly a LoRA acts: the factor of lora_B @ lora_A in each layer, from all that a file says.

What a layer says of itself counts first, then what `lora_settings` finds.

Source: PEFT's LoraConfig (scale lora_alpha / r, with use_rslora lora_alpha / √r) and kohya's
sd-scripts (`.alpha`).
"""

import math
from collections import defaultdict

from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.lora_settings import DIFFUSERS_ENTRY, OWN_ALPHA, PEFT_CONFIG, LoRASettings

USUAL_PLACES = (PEFT_CONFIG, DIFFUSERS_ENTRY)  # an alpha from here needs no note


def scales(
    ranks: dict[str, int | None],
    alphas: dict[str, float],
    settings: LoRASettings,
    names_in_file: dict[str, str],
    missed: str = "",
) -> tuple[dict[str, float], list[str]]:
    """The scale of each layer, and notes about what was contradictory or not said.

    Args:
        ranks: {layer: what divides its alpha}; None for a LoKr whose factors are both whole.
        alphas: {layer: its own `.alpha`}.
        names_in_file: {layer: its name in the file}, which patterns may mean.
        missed: a note for files without any alpha, of programs that always write one; else empty.

    Raises:
        BLoRAError: a scale is NaN or infinite.
    """
    unsaid = missed
    if alphas:
        unsaid = "no alpha, taken to be the rank"
    elif settings.places and not missed:
        place = next(iter(settings.places.values()))
        unsaid = f"{place} gives no lora_alpha; the alpha is taken to be the rank"
    found: dict[str, float] = {}
    about: dict[str, list[str]] = defaultdict(list)
    for layer, rank in ranks.items():
        names = list(dict.fromkeys([layer, f"unet.{layer}", names_in_file.get(layer, layer)]))
        said = settings.scale(names, rank) if rank else None
        if rank is None:
            scale, notes = _scale_of_whole_lokr(alphas.get(layer), settings)
        elif layer in alphas:
            scale = alphas[layer] / rank if rank else 1.0
            notes = _about_own_alpha(scale, said, settings)
        elif said is not None:
            scale = said
            notes = _about_settings(scale, rank, names, settings, others_have_own=bool(alphas))
        else:
            scale = 1.0
            notes = [unsaid] if unsaid else []
        if not math.isfinite(scale):
            raise BLoRAError(f"{shown(layer)}: the alpha is NaN or infinite.")
        if scale < 0:
            notes.append("a negative alpha, which reverses its effect")
        found[layer] = scale
        for note in notes:
            about[note].append(layer)
    used = {
        f"{several(layers)}: {note}." if len(layers) < len(ranks) else f"{note}."
        for note, layers in about.items()
    }
    return found, settings.notes + sorted(used)


def _scale_of_whole_lokr(alpha: float | None, settings: LoRASettings) -> tuple[float, list[str]]:
    """The scale of a LoKr with two whole factors, and notes.

    Only the header may have the rank by which LyCORIS divided its alpha; other readers take 1.
    """
    if alpha is not None and math.isfinite(alpha) and settings.rank:
        return alpha / settings.rank, []
    note = (
        "a LoKr of whole factors, where the file does not say its alpha and ss_network_dim, by "
        "which to divide it; scale 1 was used"
    )
    return 1.0, [note]


def _about_own_alpha(scale: float, said: float | None, settings: LoRASettings) -> list[str]:
    """Notes about a layer whose scale comes from its own alpha, where the settings say `said`."""
    if said is None or math.isclose(scale, said, rel_tol=2e-3):
        return []
    other = settings.places.get("alpha") or settings.places.get("rslora") or "the header"
    return [f"{OWN_ALPHA} was used; {other} says something else"]


def _about_settings(
    scale: float, rank: int, names: list[str], settings: LoRASettings, others_have_own: bool
) -> list[str]:
    """Notes about a layer whose scale comes from the settings."""
    notes, places, place = [], settings.places, settings.alpha_place
    if not place:
        notes.append(f"{places['rslora']} gives use_rslora but no lora_alpha, taken to be the rank")
    elif others_have_own or not place.startswith(USUAL_PLACES):
        alpha = scale * settings.divisor(rank)
        how = " with use_rslora" if settings.rslora else ""
        notes.append(f"no alpha of its own; {place} says {alpha:g}, which was used{how}")
    if settings.rank_of(names) not in (None, rank):
        place = places.get("rank") or places.get("rank_patterns")
        notes.append(
            f"{place} says another rank than the matrices have; the alpha was divided by that of "
            "the matrices"
        )
    return notes
