"""The names a LoRA's weights have in the files of other tools, and ours for them; reading and naming weights accordingly.

Ours are PEFT's endings on diffusers' layer names: `unet.up_blocks.0.attentions.0.….attn1.to_q.lora_A.weight`. A name is read
in three pieces: a prefix that says which model it belongs to, a layer, and an ending that says which matrix it is.
Dots and underscores in the layer are taken for the same, because kohya's files have only underscores.
"""

from collections import Counter
import json
import math
import re
from typing import NamedTuple

import torch

from .blocks import BLOCK_OF_HALF, SGM_BLOCK_OF_HALF
from .lycoris import PARTS, as_lora

FORMATS = ("diffusers", "peft", "kohya", "sgm")
NUMBER_FORMATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
WHOLE_NUMBERS = {"I64", "I32", "I16", "I8", "U8"}  # which some programs use for an alpha
LARGEST = 4 * 2**30  # bytes of float32 that the two halves may take; SDXL at rank 64 takes 113 MB

PREFIX = re.compile(r"(?:base_model\.model\.|unet[._]|model\.diffusion_model\.|diffusion_model\.|lora_unet_|lycoris_unet_|lycoris_)*")
TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:lora_te[12]?_|lycoris_te|text_encoder|text_model|te[12][._]|clip_[lg]|conditioner)")
OTHER_BLOCK = re.compile(r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|time_embed|time_embedding|add_embedding|label_emb|conv_in|conv_out|out)(?:_|$)")
EMBEDDING = re.compile(r"bundle_emb\.")  # textual inversions that some programs put beside a LoRA
ENDINGS = {
    "lora_A": re.compile(r"(?:\.lora_A(?:\.[\w-]{1,80})?|[._]lora(?:_layer)?\.down|\.lora_down|\.lora_linear_layer\.down)\.weight$"),
    "lora_B": re.compile(r"(?:\.lora_B(?:\.[\w-]{1,80})?|[._]lora(?:_layer)?\.up|\.lora_up|\.lora_linear_layer\.up)\.weight$"),
    "alpha": re.compile(r"\.alpha$"),
    **{part: re.compile(rf"\.{part}(?:\.weight)?$") for part in PARTS},
}
LAYER = re.compile(r"(proj_in|proj_out)|transformer_blocks_(0|[1-9][0-9]{0,2})_(?:attn([12])_to_(q|k|v|out)(?:(?<=out)_0)?|ff_net_(0_proj|2))")

# patterns for layer names that are matched: names, "." for any character, ".*", names to choose from in brackets; no others, which can take for ever
PATTERN = re.compile(r"\^?(?:\w|\\\.|\.\*?|\((?:\w|\\\.)+(?:\|(?:\w|\\\.)+)*\)){1,300}\$?")
MOST_PATTERNS = 2000  # a LoRA of all of SDXL's linear layers has 722

OTHER_METHODS = {
    "hada_t": "LoHa of convolutions", "lokr_t": "LoKr of convolutions", "oft_": "OFT", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "LoCon with a middle matrix",
    r"\.diff(_b)?$": "full weight differences", r"\.[ab]1\.weight": "GLoRA", r"lora_B\.bias": "LoRA with a bias", r"\.scalar$": "LyCORIS with a scalar", "w_norm": "trained norms", "b_norm": "trained norms",
}  # fmt: skip
OTHER_MODELS = {
    "FLUX or Hunyuan": re.compile(r"double_blocks|single_blocks|single_transformer_blocks"),
    "Stable Diffusion 3": re.compile(r"joint_blocks|context_embedder"),
    "Stable Diffusion 1 or 2": re.compile(r"up_blocks[._][123][._]attentions|output_blocks[._](?:[6-9]|1[01])[._]1[._]"),
}


class BLoRAError(ValueError):
    """A file or state dict that is no usable B-LoRA; the message says why."""


class Name(NamedTuple):
    """What a name in a file means: `half` is "content", "style" or None for other parts of the model."""

    half: str | None
    layer: str  # diffusers' name in the U-Net, e.g. up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0
    part: str  # "lora_A", "lora_B", "alpha", or one of LyCORIS's `PARTS`


def shown(text, longest=120):
    """A name out of a file as it may be printed: no control characters, not endless."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: longest + 1])
    return plain if len(plain) <= longest else plain[:longest] + "…"


def several(names, most=4):
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(shown(n) for n in names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def format_of(keys):
    """The format of a file, in words, by its names."""
    text = "\n".join(keys)
    if ".processor." in text:
        return "diffusers, old names (attention processors)"
    if "unet.unet." in text:
        return "diffusers with a doubled unet., as the authors' published weights"
    if "lora_unet_" in text or "lycoris_" in text:
        return "kohya with SDXL's own block names" if "output_blocks_" in text else "kohya with diffusers' block names"
    if "diffusion_model." in text:
        return "ComfyUI"
    return "PEFT" if "base_model.model." in text else "diffusers"


def parse_json(text, where):
    """A JSON object from text out of a file."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BLoRAError(f"{shown(where, 300)} does not hold the settings it should (a JSON object); remove or repair it.")
    return value


def read_name(key):
    """The meaning of a weight's name in any of the known formats.

    Raises:
        BLoRAError: it is no LoRA weight of a U-Net or text encoder, or one of a method that is no plain LoRA.
    """
    stem, part = key, None
    for candidate, ending in ENDINGS.items():
        if match := ending.search(key):
            stem, part = key[: match.start()], candidate
    if TEXT_ENCODER.match(stem) and (part or _method(key)):
        return Name(None, "text encoder", part)
    if EMBEDDING.match(key):
        return Name(None, "embedding", part)
    flat = stem[PREFIX.match(stem).end() :].replace(".processor.", ".").replace(".", "_")
    for half in BLOCK_OF_HALF:
        for block in (BLOCK_OF_HALF[half], SGM_BLOCK_OF_HALF[half]):
            start = block.replace(".", "_") + "_"
            if flat.startswith(start):
                return Name(half, f"{BLOCK_OF_HALF[half]}.{_layer(flat[len(start) :], key, part)}", part)
    if OTHER_BLOCK.match(flat) and (part or _method(key)):
        return Name(None, "other block", part)
    raise BLoRAError(f"{shown(key)} is not the name of a LoRA weight of SDXL in any known format.{_guess(key)}")


def _layer(flat, key, part):
    """diffusers' dotted name of a linear layer inside a transformer block, from the one with underscores."""
    if part is None:
        raise BLoRAError(f"{shown(key)} belongs to {_method(key) or 'no method that is known here'}; only plain LoRA (with lora_A and lora_B, or down and up), LoHa and LoKr can be read.")
    match = LAYER.fullmatch(flat)
    if not match:
        raise BLoRAError(f"{shown(key)} names a layer that SDXL's transformer blocks do not have.")
    outer, index, attention, projection, feed_forward = match.groups()
    if outer:
        return outer
    if attention:
        return f"transformer_blocks.{index}.attn{attention}.to_{projection}" + (".0" if projection == "out" else "")
    return f"transformer_blocks.{index}.ff.net.{feed_forward.replace('_', '.')}"


def _method(key):
    return next((method for mark, method in OTHER_METHODS.items() if re.search(mark, key)), None)


def _guess(key):
    """A sentence about the model a foreign name seems to belong to."""
    model = next((model for model, pattern in OTHER_MODELS.items() if pattern.search(key)), None)
    return f" It looks like one for {model}; B-LoRA needs SDXL." if model else ""


def model_of(keys):
    """The other model that a file without any B-LoRA block seems made for, or None."""
    return next((model for model, pattern in OTHER_MODELS.items() if any(pattern.search(key) for key in keys)), None)


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


def read_weights(opened, config):
    """The weights of the two halves in an opened file of any known format.

    Args:
        opened: from `files.open_weights`. config: of PEFT's `adapter_config.json`, or empty.

    Returns:
        (state_dict, notes): our names to float32 tensors with the alphas multiplied in; what was left out or assumed.

    Raises:
        BLoRAError: it is no B-LoRA; what is wrong is named.
    """
    names, notes = _names(list(opened.keys()))
    _check_header(opened, names)
    tensors = {name: opened.get_tensor(key).to(torch.float32, copy=True) for name, key in names.items()}
    alphas = {layer: t.item() for (layer, part), t in tensors.items() if part == "alpha"}
    matrices = {name: t[:, :, 0, 0] if t.ndim == 4 and t.shape[2:] == (1, 1) else t for name, t in tensors.items() if name[1] != "alpha"}
    ranks = {layer: t.shape[0] for (layer, part), t in matrices.items() if part == "lora_A" and t.ndim}
    ranks |= _multiply_out(matrices, alphas, notes)
    if lonely := sorted(set(alphas) - set(ranks)):
        raise BLoRAError(f"{several(lonely)}: an alpha without matrices; the file is incomplete.")
    if alphas and (without := sorted(set(ranks) - set(alphas))):
        notes.append(f"{several(without)}: no alpha, taken to be the rank.")
    if (method := config.get("peft_type", "LORA")) != "LORA":
        raise BLoRAError(f"Its settings say that it is PEFT's {shown(method, 40)}; of PEFT's methods only LORA can be read.")
    config = config or _diffusers_config(opened.metadata() or {})
    patterns = _alpha_patterns(config)
    for layer, rank in ranks.items():
        scale = _alpha(layer, rank, alphas, config, patterns) / rank if rank else 1.0
        if not math.isfinite(scale):
            raise BLoRAError(f"{layer}: the alpha is NaN or infinite.")
        if scale != 1 and (layer, "lora_B") in matrices:
            matrices[layer, "lora_B"] *= scale
    _trim(matrices)
    return {f"unet.{layer}.{part}.weight": t for (layer, part), t in matrices.items()}, notes


def _multiply_out(matrices, alphas, notes):
    """Put plain LoRAs in the place of LyCORIS's matrices; returns {layer: the rank that divides its alpha}."""
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
        if rank is None:
            alphas.pop(layer, None)
        else:
            ranks[layer] = rank
    notes += [f"{method}, read as the LoRA that gives the same change, of rank {' to '.join(map(str, sorted({min(found), max(found)})))}." for method, found in methods.items()]
    return ranks


def _names(keys):
    """{(layer, part): key in the file} for the weights of the two halves, and a note about the others."""
    if not keys:
        raise BLoRAError("There is no weight in it.")
    if not any(ending.search(key) for key in keys for ending in ENDINGS.values()) and not any(map(_method, keys)):
        raise BLoRAError(f"None of its weights ({len(keys):,}) is that of a LoRA (the first is {shown(keys[0])}). It may be a whole model; a B-LoRA is a small file that is used beside one.{_guess(keys[0])}")
    names, others = {}, Counter()
    for key in keys:
        name = read_name(key)
        if name.half is None:
            others[name.layer] += 1
        elif (known := names.setdefault((name.layer, name.part), key)) != key:
            raise BLoRAError(f"{shown(known)} and {shown(key)} are two names for the same weight.")
    if not names:
        model = model_of(keys)
        looks = f" but looks like a LoRA for {model}" if model else f"; they are weights of {' and '.join(f'{what}s' for what in others)}"
        raise BLoRAError(f"None of its weights ({len(keys):,}) belongs to {' or '.join(BLOCK_OF_HALF.values())}: this is no B-LoRA{looks}.")
    left_out = ", ".join(f"{count:,} of {what}s" for what, count in others.items())
    return names, [f"Weights left out: {left_out}; a B-LoRA is only the content and the style block."] if others else []


def _check_header(opened, names):
    """Raise a BLoRAError, before anything is read, where the header speaks of too much or of no weights."""
    total = 0
    for (_, part), key in names.items():
        weight = opened.get_slice(key)
        shape, dtype = weight.get_shape(), str(weight.get_dtype())
        if dtype not in (NUMBER_FORMATS | WHOLE_NUMBERS if part == "alpha" else NUMBER_FORMATS):
            raise BLoRAError(f"{shown(key)} holds numbers of the format {dtype}; weights are float32, float16, bfloat16 or float8.")
        if part == "alpha" and math.prod(shape) != 1:
            raise BLoRAError(f"{shown(key)} has the shape {list(shape)}; an alpha is one number.")
        total += 4 * math.prod(shape)
    if total > LARGEST:
        raise BLoRAError(f"The weights of the two blocks would take {total / 2**30:,.0f} GiB of memory; no B-LoRA is larger than {LARGEST / 2**30:.0f} GiB.")


def _diffusers_config(metadata):
    """The U-Net's part of the PEFT config that diffusers writes into the header."""
    if "lora_adapter_metadata" not in metadata:
        return {}
    entries = parse_json(metadata["lora_adapter_metadata"], "lora_adapter_metadata in the header")
    return {key.removeprefix("unet."): value for key, value in entries.items() if key.startswith("unet.")}


def _alpha_patterns(config):
    """[(compiled pattern, lora_alpha), …] of PEFT's config: regular expressions for a layer's name or the end of it; the first that fits counts.

    Raises:
        BLoRAError: so many, or so involved, that trying them could take for ever.
    """
    patterns = config.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) else {}
    if len(patterns) > MOST_PATTERNS:
        raise BLoRAError(f"The settings give a lora_alpha for {len(patterns):,} patterns; no LoRA of SDXL needs more than {MOST_PATTERNS:,}.")
    for pattern in patterns:
        if not PATTERN.fullmatch(pattern) or pattern.count(".*") > 2 or pattern.count("(") > 4:
            raise BLoRAError(f"The settings give a lora_alpha for {shown(pattern)}, a pattern too involved to be tried safely; write it with plain names.")
    return [(re.compile(rf"(.*\.)?({pattern})$"), number) for pattern, number in patterns.items()]


def _alpha(layer, rank, alphas, config, patterns):
    """The lora_alpha of a layer: from the file (kohya), else from PEFT's config, else the rank, which makes the scale 1."""
    if layer in alphas:
        return alphas[layer]
    if config.get("use_dora"):
        raise BLoRAError("It is a DoRA; only plain LoRA can be read.")
    alpha = next((number for pattern, number in patterns if pattern.match(layer)), config.get("lora_alpha", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise BLoRAError(f"The settings give {shown(alpha, 40)} as the lora_alpha of {layer}; that is no number.")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _trim(matrices):
    """Take off the zeros with which `named_weights` fills up smaller ranks."""
    for layer, part in list(matrices):
        a, b = matrices[layer, part], matrices.get((layer, "lora_B"))
        if part == "lora_A" and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]:
            used = (a.any(1) | b.any(0)).nonzero()
            rank = int(used[-1]) + 1 if len(used) else 1
            matrices[layer, "lora_A"], matrices[layer, "lora_B"] = a[:rank], b[:, :rank].contiguous()


def named_weights(layers, format):
    """The state dict of a file in one of the `FORMATS`, from {layer: (lora_A, lora_B)}.

    All layers get one rank, because diffusers, old and new, scales files with several wrongly: smaller matrices are filled
    up with zeros, which adds nothing. PEFT has the ranks in its config.
    """
    rank = 0 if format == "peft" else max(a.shape[0] for a, _ in layers.values())
    tensors = {}
    for layer, (a, b) in layers.items():
        fill = max(rank - a.shape[0], 0)
        tensors[written_name(layer, "lora_A", format)] = torch.nn.functional.pad(a, (0, 0, 0, fill)).contiguous()
        tensors[written_name(layer, "lora_B", format)] = torch.nn.functional.pad(b, (0, fill)).contiguous()
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
        raise BLoRAError(f"{several(broken)}: numbers too large for {str(dtype).removeprefix('torch.')}. Write it as bfloat16 or float32.")
    if any(t.any() for t in tensors.values()) and not all(t.any() for name, t in found.items() if tensors[name].any()):
        raise BLoRAError(f"Numbers too small for {str(dtype).removeprefix('torch.')}: matrices would become zero. Write it as bfloat16 or float32.")
    return found


def peft_config(layers):
    """What PEFT wants in `adapter_config.json`, for {layer: (lora_A, lora_B)}."""
    ranks = {layer: a.shape[0] for layer, (a, _) in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {"^" + layer: rank for layer, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA", "r": common, "lora_alpha": common, "rank_pattern": pattern, "alpha_pattern": pattern, "target_modules": list(ranks),
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "base_model_name_or_path": None, "task_type": None,
    }  # fmt: skip
