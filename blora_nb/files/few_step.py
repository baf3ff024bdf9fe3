"""Files of few-step LoRAs (LCM, Lightning, Hyper): which of them diffusers reads as they are meant.

diffusers 0.42 uses another scale than the file says, with at most a warning, if alphas differ by
layer or stand where it does not look. Such files are refused here.
"""

from collections import Counter

from safetensors import safe_open

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.lora_settings import DIFFUSERS_ENTRY, read_lora_settings
from blora_nb.files.names import HALF_OF_START, flat_layer, refused_first, split_name
from blora_nb.files.other_methods import refuse_method
from blora_nb.files.reading import check_number_format


def check_few_step_lora(opened: safe_open, beside: dict) -> int:
    """How many layers the LoRA in an opened file, with PEFT's config beside it or {}, changes.

    Raises:
        BLoRAError: it is no LoRA, a damaged one, or one that diffusers would read wrongly.
    """
    metadata = opened.metadata() or {}
    settings = read_lora_settings(metadata, beside)
    parts: Counter[str | None] = Counter()
    ranks, alphas = set(), set()
    for key in refused_first(opened.keys()):
        part = split_name(key)[1]
        parts[part] += 1
        if part is None:
            refuse_method(key)
        shape = check_number_format(opened, key, part)
        if part == "lora_A" and len(shape) < 2:
            raise BLoRAError(f"{shown(key)} has the shape {shape}; a LoRA's matrix has two sides.")
        tensor = opened.get_tensor(key).float()
        if not tensor.isfinite().all():
            raise BLoRAError(f"{shown(key)}: NaN or infinite values; the file is damaged.")
        if part == "lora_A":
            ranks.add(tensor.shape[0])
        elif part == "alpha":
            alphas.add(tensor.item())
    layers = parts["lora_A"]
    if not layers:
        raise BLoRAError("None of its weights is that of a plain LoRA.")
    changed = [flat_layer(split_name(key)[0]) for key in opened.keys()]  # noqa: SIM118
    if all(layer.startswith(tuple(HALF_OF_START)) for layer in changed):
        raise BLoRAError(
            "It changes the two blocks of B-LoRA only, so it is a B-LoRA: name it as content or "
            "style instead."
        )
    if parts["lora_B"] != layers:
        raise BLoRAError("A matrix without its partner; the file is incomplete.")
    if alphas:
        as_meant = len(alphas) == 1 and parts["alpha"] == layers
    else:
        # without alphas and a rank for all, every scale is 1
        said_elsewhere = settings.alpha_place or settings.rslora
        as_meant = DIFFUSERS_ENTRY in metadata or (len(ranks) == 1 and not said_elsewhere)
    if not as_meant:
        raise BLoRAError(
            "Its alphas differ by layer, or stand where diffusers does not look for them, so that "
            "diffusers would merge it at another strength than it was made for."
        )
    return layers
