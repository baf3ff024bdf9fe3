"""The weights of a B-LoRA out of an opened file in any known format, scales multiplied in."""

import math
from collections import Counter, defaultdict

import torch
from safetensors import safe_open
from torch import Tensor

from blora_nb.blocks import BLOCK_OF_HALF
from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.lora_settings import PEFT_CONFIG, LoRASettings, read_lora_settings
from blora_nb.files.lycoris import as_lora
from blora_nb.files.names import (
    PARTS,
    are_pefts,
    hint_of_other_model,
    namings_of,
    read_name,
    refused_first,
    split_name,
)
from blora_nb.files.other_methods import method_of, model_of_names
from blora_nb.files.safe_files import LARGEST
from blora_nb.files.scales import scales

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
INTEGERS = {"I64", "I32", "I16", "I8", "U8"}  # which some programs use for an alpha

Part = tuple[str, str]  # (layer, "lora_A", "lora_B", "alpha" or one of LyCORIS's `PARTS`)


def read_weights(opened: safe_open, beside: dict) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of the two halves in an opened file of any known format.

    Args:
        beside: PEFT's `adapter_config.json`, or empty.

    Returns:
        ({our name: float32 tensor}, notes on what was left out or assumed).

    Raises:
        BLoRAError: it is no B-LoRA; what is wrong is named.
    """
    keys = list(opened.keys())
    settings = read_lora_settings(opened.metadata() or {}, beside)
    names, notes = _names_of_the_halves(keys)
    matrices, more = _read_layers(opened, names, settings, _note_of_missed_alphas(keys, beside))
    _trim(matrices)
    state_dict = {f"unet.{layer}.{part}.weight": t for (layer, part), t in matrices.items()}
    return state_dict, notes + more


def _note_of_missed_alphas(keys: list[str], beside: dict) -> str:
    """A note for a file without any alpha, by its names; empty where that means scale 1.

    diffusers writes no alpha where it is the rank, and files with ComfyUI's names have none.
    """
    if beside:
        return f"{PEFT_CONFIG} gives no lora_alpha; the alpha is taken to be the rank"
    if are_pefts(keys):
        return f"there is no {PEFT_CONFIG} beside it; the alpha is taken to be the rank"
    if any(naming.writes_alphas for naming in namings_of(keys)):
        return (
            "no layer has an alpha, which programs that write such names always give; the alpha is "
            "taken to be the rank, and if another was trained with, it acts too strongly or weakly"
        )
    return ""


def _read_layers(
    opened: safe_open, names: dict[Part, str], settings: LoRASettings, missed: str
) -> tuple[dict[Part, Tensor], list[str]]:
    """({(layer, "lora_A" or "lora_B"): float32 tensor with the scale multiplied in}, notes).

    Args:
        names: {(layer, part): name in the file}.
        settings, missed: as in `scales.scales`.
    """
    # before anything is read
    shapes = [check_number_format(opened, key, part) for (_, part), key in names.items()]
    total = 4 * sum(map(math.prod, shapes))
    if total > LARGEST:
        raise BLoRAError(
            f"The weights of the two blocks would take {total / 2**30:,.0f} GiB of memory; no "
            f"B-LoRA is larger than {LARGEST / 2**30:.0f} GiB."
        )
    matrices, alphas = {}, {}
    for (layer, part), key in names.items():
        tensor = opened.get_tensor(key).to(torch.float32, copy=True)
        if part == "alpha":
            alphas[layer] = tensor.item()
        elif tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            matrices[layer, part] = tensor[:, :, 0, 0]
        else:
            matrices[layer, part] = tensor
    ranks, notes = _replace_lycoris(matrices)
    ranks |= {
        layer: tensor.shape[0]
        for (layer, part), tensor in matrices.items()
        if part == "lora_A" and tensor.ndim and layer not in ranks
    }
    lonely = sorted(alphas.keys() - ranks.keys())
    if lonely:
        raise BLoRAError(f"{several(lonely)}: an alpha without matrices; the file is incomplete.")
    names_in_file = {
        layer: split_name(key)[0].removeprefix("base_model.model.")
        for (layer, _), key in names.items()
    }
    found, more = scales(ranks, alphas, settings, names_in_file, missed)
    for layer, scale in found.items():
        if scale != 1 and (layer, "lora_B") in matrices:
            matrices[layer, "lora_B"] *= scale
    return matrices, notes + more


def check_number_format(opened: safe_open, key: str, part: str | None) -> list[int]:
    """The shape of a tensor; a BLoRAError if it holds no weights, or an alpha is not one number."""
    weight = opened.get_slice(key)
    shape, dtype = list(weight.get_shape()), str(weight.get_dtype())
    if dtype not in FLOATS and not (part == "alpha" and dtype in INTEGERS):
        raise BLoRAError(
            f"{shown(key)} holds numbers of the format {dtype}; weights are float32, float16, "
            "bfloat16 or float8."
        )
    if part == "alpha" and math.prod(shape) != 1:
        raise BLoRAError(f"{shown(key)} has the shape {shape}; an alpha is one number.")
    return shape


def _replace_lycoris(matrices: dict[Part, Tensor]) -> tuple[dict[str, int | None], list[str]]:
    """Make LyCORIS's matrices plain LoRAs, in place; ({layer: divisor of its alpha}, notes)."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for layer, part in list(matrices):
        if part in PARTS:
            layers[layer][part] = matrices.pop((layer, part))
    divisors, ranks_of_method, left = {}, defaultdict(list), LARGEST
    for layer, parts in layers.items():
        if (layer, "lora_A") in matrices or (layer, "lora_B") in matrices:
            raise BLoRAError(f"{layer}: matrices of a LoRA beside {', '.join(parts)}.")
        try:
            lora = as_lora(parts, left)
        except ValueError as error:
            raise BLoRAError(f"{layer}: {error}") from None
        left -= 4 * (lora.a.numel() + lora.b.numel())
        matrices[layer, "lora_A"], matrices[layer, "lora_B"] = lora.a, lora.b
        ranks_of_method[lora.method].append(lora.a.shape[0])
        divisors[layer] = lora.divisor
    notes = []
    for method, ranks in ranks_of_method.items():
        span = " to ".join(map(str, sorted({min(ranks), max(ranks)})))
        notes.append(f"{method}, read as the LoRA that gives the same change, of rank {span}.")
    return divisors, notes


def _names_of_the_halves(keys: list[str]) -> tuple[dict[Part, str], list[str]]:
    """({(layer, part): name in the file} of the weights of the two halves, a note about others)."""
    if not keys:
        raise BLoRAError("There is no weight in it.")
    if not any(split_name(key)[1] or method_of(key) for key in keys):
        raise BLoRAError(
            f"None of its weights ({len(keys):,}) is that of a LoRA (the first is "
            f"{shown(keys[0])}). It may be a whole model; a B-LoRA is a small file that is used "
            f"beside one.{hint_of_other_model(keys[0])}"
        )
    names: dict[Part, str] = {}
    others: Counter[str] = Counter()
    for key in refused_first(keys):
        half, layer, part = read_name(key)
        if half is None or part is None:
            others[layer] += 1
            continue
        known = names.setdefault((layer, part), key)
        if known != key:
            raise BLoRAError(f"{shown(known)} and {shown(key)} are two names for the same weight.")
    if not names:
        model = model_of_names(keys)
        looks = f"; they are weights of {' and '.join(f'{what}s' for what in others)}"
        if model:
            looks = f" but looks like a LoRA for {model}"
        raise BLoRAError(
            f"None of its weights ({len(keys):,}) belongs to "
            f"{' or '.join(BLOCK_OF_HALF.values())}: this is no B-LoRA{looks}."
        )
    if not others:
        return names, []
    left_out = ", ".join(f"{count:,} of {what}s" for what, count in others.items())
    return names, [
        f"Weights left out: {left_out}; a B-LoRA is only the content and the style block."
    ]


def _trim(matrices: dict[Part, Tensor]) -> None:
    """Take off the zeros with which `writing.named_weights` fills up smaller ranks."""
    for layer in [layer for layer, part in matrices if part == "lora_A"]:
        a, b = matrices[layer, "lora_A"], matrices.get((layer, "lora_B"))
        if b is None or not a.ndim == b.ndim == 2 or a.shape[0] != b.shape[1]:
            continue  # an error that `state_dict_checks` will name
        used = (a.any(1) | b.any(0)).nonzero()
        rank = int(used[-1]) + 1 if len(used) else 1
        matrices[layer, "lora_A"] = a[:rank]
        matrices[layer, "lora_B"] = b[:, :rank].contiguous()
