"""The names a LoRA's weights have in the files of other tools, and ours for them; reading and naming weights accordingly.

Ours are PEFT's endings on diffusers' layer names: `unet.up_blocks.0.attentions.0.….attn1.to_q.lora_A.weight`. A name is read
in three pieces: a prefix that says which model it belongs to, a layer, and an ending that says which matrix it is.
Dots and underscores in the layer are taken for the same, because kohya's files have only underscores.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import torch

from blora_nb.blocks import BLOCK_OF_HALF, SGM_BLOCK_OF_HALF
from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.lycoris import PARTS, as_lora
from blora_nb.files.scales import PEFT_CONFIG, Settings, read_settings, scales

FORMATS = ("diffusers", "peft", "kohya", "sgm")
NUMBER_FORMATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
WHOLE_NUMBERS = {"I64", "I32", "I16", "I8", "U8"}  # which some programs use for an alpha
LARGEST = 4 * 2**30  # bytes of float32 that the two halves may take; SDXL at rank 64 takes 113 MB

# what torch.compile and distributed training put before the names of the model inside
WRAPPERS = r"_orig_mod[._]|module[._]|_fsdp_wrapped_module[._]"
WRAPPER = re.compile(rf"(?<![^._])(?:{WRAPPERS})")
PREFIX = re.compile(
    rf"(?:base_model\.model\.|unet[._]|model\.diffusion_model\.|diffusion_model\.|lora_unet_|"
    rf"lycoris_unet_|lycoris_|oft_unet_|{WRAPPERS})*"
)
TEXT_ENCODER = re.compile(
    rf"(?:base_model\.model\.|{WRAPPERS})*"
    r"(?:(?:lora|oft)_te[12]?_|lycoris_te|text_encoder|text_model|te[12][._]|clip_[lg]|conditioner)"
)
OTHER_BLOCK = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|time_embed|"
    r"time_embedding|add_embedding|label_emb|class_embedding|encoder_hid_proj|conv_in|conv_out|"
    r"conv_norm_out|out)(?:_|$)"
)
EMBEDDING = re.compile(r"bundle_emb\.")  # textual inversions that some programs put beside a LoRA
ENDINGS = {
    "lora_A": re.compile(
        r"(?:\.lora_A(?:\.[\w-]{1,80})?|[._]lora(?:_layer)?\.down|\.lora_down|\.lora_linear_layer\.down)\.weight$"
    ),
    "lora_B": re.compile(
        r"(?:\.lora_B(?:\.[\w-]{1,80})?|[._]lora(?:_layer)?\.up|\.lora_up|\.lora_linear_layer\.up)\.weight$"
    ),
    "alpha": re.compile(r"\.alpha$"),
    **{part: re.compile(rf"\.{part}(?:\.weight)?$") for part in PARTS},
}
LAYER = re.compile(
    r"(proj_in|proj_out)|transformer_blocks_(0|[1-9][0-9]{0,2})_(?:attn([12])_to_(q|k|v|out)(?:(?<=out)_0)?|ff_net_(0_proj|2))"
)

# methods that are refused by name, and the names their weights have; docs/formats.md has the list
REFUSED = {
    "(IA)^3": r"\.on_input$|ia3_l",
    "BOFT": r"boft_",
    "OFT": r"(?<!ps)oft_",
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "GLoRA": r"\.[ab][12]\.weight$|glora_",
    "LoHa of convolutions": r"hada_t",
    "LoKr of convolutions": r"lokr_t",
    "LoCon with a middle matrix": r"lora_mid",
    "LyCORIS with a scalar": r"\.scalar$",
    "T-LoRA": r"\.[pq]_layer\b|lambda_layer",
    "full weight differences": r"\.diff(_b)?$|\.set_weight$",
    "trained norms": r"[wb]_norm",
    "LoRA with a bias": r"lora_B(?:\.[\w-]{1,80})?\.bias$",
    "KaSA": r"lora_diag",
    "AdaLoRA": r"lora_E\b|ranknum",
    "VeRA": r"(?<![a-z])vera_",
    "PVeRA": r"pvera_",
    "VB-LoRA": r"vblora_",
    "FourierFT": r"fourierft_",
    "HRA": r"(?<![a-z])hra_",
    "HiRA": r"hira_",
    "RandLoRA": r"randlora_",
    "RoAd": r"(?<![a-z])road_",
    "SHiRA": r"shira_",
    "MiSS or Bone": r"(?<![a-z])(?:miss|bone)_",
    "C3A": r"c3a_",
    "DeLoRA": r"delora_",
    "GraLoRA": r"gralora_",
    "WaveFT": r"waveft_",
    "PSOFT": r"psoft_",
    "UniLoRA": r"unilora_",
    "TinyLoRA": r"tinylora_",
    "Lily": r"(?<![a-z])lily_",
    "LayerNorm tuning": r"ln_tuning_",
    "trainable tokens": r"trainable_tokens_",
    "Control-LoRA": r"lora_controlnet",
}
WHOLE_WEIGHT = re.compile(r"\.(?:weight|bias)$")
OTHER_MODELS = {
    "FLUX or Hunyuan": re.compile(r"double_blocks|single_blocks|single_transformer_blocks"),
    "Stable Diffusion 3": re.compile(r"joint_blocks|context_embedder"),
    "Stable Diffusion 1 or 2": re.compile(
        r"up_blocks[._][123][._]attentions|output_blocks[._](?:[6-9]|1[01])[._]1[._]"
    ),
}


class Name(NamedTuple):
    """What a name in a file means: `half` is "content", "style" or None for other parts of the model."""

    half: str | None
    layer: str  # diffusers' name in the U-Net, e.g. up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0
    part: str  # "lora_A", "lora_B", "alpha", or one of LyCORIS's `PARTS`


def format_of(keys):
    """The format of a file, in words, by its names."""
    text = "\n".join(keys)
    if ".processor." in text:
        return "diffusers, old names (attention processors)"
    if "unet.unet." in text:
        return "diffusers with a doubled unet., as the authors' published weights"
    if "lora_unet_" in text or "lycoris_" in text:
        return (
            "kohya with SDXL's own block names"
            if "output_blocks_" in text
            else "kohya with diffusers' block names"
        )
    if "diffusion_model." in text:
        return "ComfyUI"
    return "PEFT" if "base_model.model." in text else "diffusers"


def split_name(key: str) -> tuple[str, str | None]:
    """(the layer with what stands before it, the part) of a name; None for no part of a LoRA."""
    stem, part = key, None
    for candidate, ending in ENDINGS.items():
        if match := ending.search(key):
            stem, part = key[: match.start()], candidate
    return stem, part


def flat_layer(stem: str) -> str:
    """A layer's name in the U-Net with underscores for dots, without all that stands before it."""
    inside = WRAPPER.sub("", stem[PREFIX.match(stem).end() :])
    return inside.replace(".processor.", ".").replace(".", "_")


def read_name(key):
    """The meaning of a weight's name in any of the known formats.

    Raises:
        BLoRAError: it is no LoRA weight of a U-Net or text encoder, or one of a method that is no plain LoRA.
    """
    stem, part = split_name(key)
    known = part or method_of(key) or WHOLE_WEIGHT.search(key)
    if TEXT_ENCODER.match(stem) and known:
        return Name(None, "text encoder", part)
    if EMBEDDING.match(key):
        return Name(None, "embedding", part)
    flat = flat_layer(stem)
    for half in BLOCK_OF_HALF:
        for block in (BLOCK_OF_HALF[half], SGM_BLOCK_OF_HALF[half]):
            start = block.replace(".", "_") + "_"
            if flat.startswith(start):
                return Name(
                    half, f"{BLOCK_OF_HALF[half]}.{_layer(flat[len(start) :], key, part)}", part
                )
    if OTHER_BLOCK.match(flat) and known:
        return Name(None, "other block", part)
    raise BLoRAError(
        f"{shown(key)} is not the name of a LoRA weight of SDXL in any known format.{_guess(key)}"
    )


def _layer(flat, key, part):
    """diffusers' dotted name of a linear layer inside a transformer block, from the one with underscores."""
    if part is None:
        refuse_method(key)
        raise BLoRAError(
            f"{shown(key)} is a whole weight or bias of a layer (such as PEFT's modules_to_save), "
            "which cannot be read beside a LoRA in the two blocks, and without it the LoRA acts "
            "otherwise."
        )
    match = LAYER.fullmatch(flat)
    if not match:
        raise BLoRAError(f"{shown(key)} names a layer that SDXL's transformer blocks do not have.")
    outer, index, attention, projection, feed_forward = match.groups()
    if outer:
        return outer
    if attention:
        return f"transformer_blocks.{index}.attn{attention}.to_{projection}" + (
            ".0" if projection == "out" else ""
        )
    return f"transformer_blocks.{index}.ff.net.{feed_forward.replace('_', '.')}"


def method_of(key: str) -> str | None:
    """The refused method that a name is of, or None."""
    return next((method for method, mark in REFUSED.items() if re.search(mark, key)), None)


def refuse_method(key: str):
    """Raise a BLoRAError if a name is of a method that is no plain LoRA."""
    if method := method_of(key):
        raise BLoRAError(
            f"{shown(key)} belongs to {method}; only plain LoRA (with lora_A and lora_B, or down "
            "and up), LoHa and LoKr can be read."
        )


def of_other_methods_first(keys) -> list[str]:
    """Names in the order in which they are looked at, so that an error names the method."""
    return sorted(keys, key=lambda key: method_of(key) is None)


def peft_names(keys) -> bool:
    """Whether the names of a file are those that PEFT writes."""
    return any(key.startswith("base_model.") for key in keys)


def _guess(key):
    """A sentence about the model a foreign name seems to belong to."""
    model = next((model for model, pattern in OTHER_MODELS.items() if pattern.search(key)), None)
    return f" It looks like one for {model}; B-LoRA needs SDXL." if model else ""


def model_of(keys):
    """The other model that a file without any B-LoRA block seems made for, or None."""
    return next(
        (
            model
            for model, pattern in OTHER_MODELS.items()
            if any(pattern.search(key) for key in keys)
        ),
        None,
    )


def expected_shape(layer, width, context):
    """[out, in] of a layer's weight in a transformer block of `width` channels that attends to `context` text channels."""
    name = layer.rsplit("transformer_blocks.", 1)[-1]
    if name.endswith(("attn2.to_k", "attn2.to_v")):
        return width, context
    if name.endswith("ff.net.0.proj"):
        return 8 * width, width  # gated: twice the four-fold width
    if name.endswith("ff.net.2"):
        return width, 4 * width
    return width, width


def written_name(layer, part, format):
    """The name a layer's matrix ("lora_A", "lora_B") or "alpha" gets in a file of one of the `FORMATS`."""
    if format == "peft":
        return f"base_model.model.{layer}.{part}.weight"
    if format == "diffusers":
        return f"unet.{layer}.lora.{'down' if part == 'lora_A' else 'up'}.weight"
    if format == "sgm":
        for half, block in BLOCK_OF_HALF.items():
            layer = layer.replace(block, SGM_BLOCK_OF_HALF[half])
    ending = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "alpha": "alpha"}[part]
    return f"lora_unet_{layer.replace('.', '_')}.{ending}"


def read_weights(opened, beside: dict) -> tuple[dict, list[str]]:
    """The weights of the two halves in an opened file of any known format.

    Args:
        opened: from `files.open_weights`. beside: PEFT's `adapter_config.json`, or empty.

    Returns:
        (state_dict, notes): our names to float32 tensors with the scales multiplied in; what was
        left out or assumed.

    Raises:
        BLoRAError: it is no B-LoRA; what is wrong is named.
    """
    keys = list(opened.keys())
    settings = read_settings(opened.metadata() or {}, beside)
    names, notes = _names(keys)
    matrices, more = read_layers(opened, names, settings, alpha_expected(keys, beside))
    _trim(matrices)
    return {f"unet.{layer}.{part}.weight": t for (layer, part), t in matrices.items()}, notes + more


def alpha_expected(keys, beside: dict) -> str:
    """A note for a file without any alpha, by its names; empty where that means scale 1.

    Diffusers writes none where it is the rank, and ComfyUI's names have none either.
    """
    if beside:
        return f"{PEFT_CONFIG} gives no lora_alpha; the alpha is taken to be the rank"
    if peft_names(keys):
        return f"there is no {PEFT_CONFIG} beside it; the alpha is taken to be the rank"
    if any("lora_unet_" in key or "lycoris_" in key for key in keys):
        return (
            "no layer has an alpha, which programs that write such names always give; the alpha is "
            "taken to be the rank, and if another was trained with, it acts too strongly or weakly"
        )
    return ""


def read_layers(opened, names: dict, settings: Settings, expected: str) -> tuple[dict, list[str]]:
    """The matrices of plain LoRAs with their scales multiplied in.

    Args:
        names: {(layer, part): name in the file}. settings, expected: as in `scales.scales`.

    Returns:
        ({(layer, "lora_A" or "lora_B"): float32 tensor}, notes).

    Raises:
        BLoRAError: the file is incomplete or contradictory.
    """
    _check_header(opened, names)
    tensors = {
        name: opened.get_tensor(key).to(torch.float32, copy=True) for name, key in names.items()
    }
    alphas = {layer: t.item() for (layer, part), t in tensors.items() if part == "alpha"}
    matrices = {
        name: t[:, :, 0, 0] if t.ndim == 4 and t.shape[2:] == (1, 1) else t
        for name, t in tensors.items()
        if name[1] != "alpha"
    }
    ranks = {
        layer: t.shape[0] for (layer, part), t in matrices.items() if part == "lora_A" and t.ndim
    }
    notes = []
    ranks |= _multiply_out(matrices, notes)
    if lonely := sorted(set(alphas) - set(ranks)):
        raise BLoRAError(f"{several(lonely)}: an alpha without matrices; the file is incomplete.")
    written = {
        layer: split_name(key)[0].removeprefix("base_model.model.")
        for (layer, _), key in names.items()
    }
    found, more = scales(ranks, alphas, settings, written, expected)
    for layer, scale in found.items():
        if scale != 1 and (layer, "lora_B") in matrices:
            matrices[layer, "lora_B"] *= scale
    return matrices, notes + more


def _multiply_out(matrices, notes):
    """Put plain LoRAs in the place of LyCORIS's matrices.

    Returns:
        {layer: what divides its alpha}, as `scales.scales` wants it.
    """
    layers, ranks, methods, left = {}, {}, {}, LARGEST
    for layer, part in list(matrices):
        if part in PARTS:
            layers.setdefault(layer, {})[part] = matrices.pop((layer, part))
    for layer, parts in layers.items():
        try:
            if (layer, "lora_A") in matrices or (layer, "lora_B") in matrices:
                raise ValueError(f"matrices of a LoRA beside {', '.join(parts)}.")
            method, a, b, rank = as_lora(parts, left)
        except ValueError as error:
            raise BLoRAError(f"{layer}: {error}") from None
        left -= 4 * (a.numel() + b.numel())
        matrices[layer, "lora_A"], matrices[layer, "lora_B"] = a, b
        methods.setdefault(method, set()).add(a.shape[0])
        ranks[layer] = rank
    notes += [
        f"{method}, read as the LoRA that gives the same change, of rank {' to '.join(map(str, sorted({min(found), max(found)})))}."
        for method, found in methods.items()
    ]
    return ranks


def _names(keys):
    """{(layer, part): key in the file} for the weights of the two halves, and a note about the others."""
    if not keys:
        raise BLoRAError("There is no weight in it.")
    if not any(split_name(key)[1] or method_of(key) for key in keys):
        raise BLoRAError(
            f"None of its weights ({len(keys):,}) is that of a LoRA (the first is {shown(keys[0])}). It may be a whole model; a B-LoRA is a small file that is used beside one.{_guess(keys[0])}"
        )
    names, others = {}, Counter()
    for key in of_other_methods_first(keys):
        name = read_name(key)
        if name.half is None:
            others[name.layer] += 1
        elif (known := names.setdefault((name.layer, name.part), key)) != key:
            raise BLoRAError(f"{shown(known)} and {shown(key)} are two names for the same weight.")
    if not names:
        model = model_of(keys)
        looks = (
            f" but looks like a LoRA for {model}"
            if model
            else f"; they are weights of {' and '.join(f'{what}s' for what in others)}"
        )
        raise BLoRAError(
            f"None of its weights ({len(keys):,}) belongs to {' or '.join(BLOCK_OF_HALF.values())}: this is no B-LoRA{looks}."
        )
    left_out = ", ".join(f"{count:,} of {what}s" for what, count in others.items())
    return names, [
        f"Weights left out: {left_out}; a B-LoRA is only the content and the style block."
    ] if others else []


def _check_header(opened, names):
    """Raise a BLoRAError, before anything is read, where the header speaks of too much or of no weights."""
    total = 0
    for (_, part), key in names.items():
        weight = opened.get_slice(key)
        shape, dtype = weight.get_shape(), str(weight.get_dtype())
        if dtype not in (NUMBER_FORMATS | WHOLE_NUMBERS if part == "alpha" else NUMBER_FORMATS):
            raise BLoRAError(
                f"{shown(key)} holds numbers of the format {dtype}; weights are float32, float16, bfloat16 or float8."
            )
        if part == "alpha" and math.prod(shape) != 1:
            raise BLoRAError(f"{shown(key)} has the shape {list(shape)}; an alpha is one number.")
        total += 4 * math.prod(shape)
    if total > LARGEST:
        raise BLoRAError(
            f"The weights of the two blocks would take {total / 2**30:,.0f} GiB of memory; no B-LoRA is larger than {LARGEST / 2**30:.0f} GiB."
        )


def _trim(matrices):
    """Take off the zeros with which `named_weights` fills up smaller ranks."""
    for layer, part in list(matrices):
        a, b = matrices[layer, part], matrices.get((layer, "lora_B"))
        if (
            part == "lora_A"
            and b is not None
            and a.ndim == b.ndim == 2
            and a.shape[0] == b.shape[1]
        ):
            used = (a.any(1) | b.any(0)).nonzero()
            rank = int(used[-1]) + 1 if len(used) else 1
            matrices[layer, "lora_A"], matrices[layer, "lora_B"] = (
                a[:rank],
                b[:, :rank].contiguous(),
            )


def named_weights(layers, format):
    """The state dict of a file in one of the `FORMATS`, from {layer: (lora_A, lora_B)}.

    All layers get one rank, because diffusers, old and new, scales files with several wrongly: smaller matrices are filled
    up with zeros, which adds nothing. PEFT has the ranks in its config.
    """
    rank = 0 if format == "peft" else max(a.shape[0] for a, _ in layers.values())
    tensors = {}
    for layer, (a, b) in layers.items():
        fill = max(rank - a.shape[0], 0)
        tensors[written_name(layer, "lora_A", format)] = torch.nn.functional.pad(
            a, (0, 0, 0, fill)
        ).contiguous()
        tensors[written_name(layer, "lora_B", format)] = torch.nn.functional.pad(
            b, (0, fill)
        ).contiguous()
        if format in ("kohya", "sgm"):
            tensors[written_name(layer, "alpha", format)] = torch.tensor(float(rank))
    return tensors


def converted(tensors, dtype):
    """The tensors of a file in another dtype.

    Raises:
        BLoRAError: a number is too large for it, or all of a matrix too small.
    """
    found = {name: t.to(dtype) for name, t in tensors.items()}
    if broken := [name for name, t in found.items() if not torch.isfinite(t).all()]:
        raise BLoRAError(
            f"{several(broken)}: numbers too large for {str(dtype).removeprefix('torch.')}. Write it as bfloat16 or float32."
        )
    if any(t.any() for t in tensors.values()) and not all(
        t.any() for name, t in found.items() if tensors[name].any()
    ):
        raise BLoRAError(
            f"Numbers too small for {str(dtype).removeprefix('torch.')}: matrices would become zero. Write it as bfloat16 or float32."
        )
    return found


def peft_config(layers):
    """What PEFT wants in `adapter_config.json`, for {layer: (lora_A, lora_B)}."""
    ranks = {layer: a.shape[0] for layer, (a, _) in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {"^" + layer: rank for layer, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    }
