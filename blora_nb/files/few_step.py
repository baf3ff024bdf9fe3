"""Few-step LoRAs (LCM, Lightning, Hyper): the change of every layer of the U-Net and the text
encoders, exactly as the file says, put into the base model's own weights.

diffusers reads such files too, but guesses one scale where alphas or ranks differ by layer.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict

import torch

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.formats import (
    EMBEDDING,
    TEXT_ENCODER,
    WHOLE_WEIGHT,
    WRAPPER,
    alpha_expected,
    flat_layer,
    method_of,
    of_other_methods_first,
    read_layers,
    refuse_method,
    split_name,
)
from blora_nb.files.scales import read_settings

ADAPTER = "few_steps"  # the name it has on the pipeline until it is merged
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# what stands before a layer's name in the second text encoder, and in either
SECOND = re.compile(r"(?:base_model\.model\.)*(?:lora_te2_|text_encoder_2[._]|te2[._]|clip_g[._])")
EITHER = re.compile(
    r"(?:base_model\.model\.)*(?:(?:lora_te[12]?|text_encoder(?:_2)?|te[12]|clip_[lg])[._])+"
)
PROJECTION = re.compile(r"(?<=self_attn_)to_(q|k|v|out)$")  # diffusers' old names for CLIP's layers
# the pieces of diffusers' names of a U-Net outside its transformers, and those of SDXL's own code
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)"
    r"\.(\d+)\.?(.*)"
)


def sgm_name(layer: str, unet) -> str:
    """The name that a layer of an SDXL-shaped U-Net has in SDXL's own code.

    Args:
        layer: in diffusers' spelling, for instance `down_blocks.1.attentions.0.proj_in`.

    Source: Stability AI's generative-models, `sgm/modules/diffusionmodules/openaimodel.py`.
    """
    if layer in ENDS:
        return ENDS[layer]
    match = BLOCK.fullmatch(layer)
    if not match:
        return layer
    level, index, kind, number, rest = match.groups()
    each = unet.config.layers_per_block + 1
    index, number = int(index or 0), int(number)
    if kind == "resnets":
        rest = RESNET.get(rest, rest)
    if level == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{each * (index + 1)}.0.op"
    if kind == "upsamplers":
        inner = 2 if getattr(unet.up_blocks[index], "attentions", None) else 1
        return f"output_blocks.{each * index + each - 1}.{inner}.{rest}"
    start = "input_blocks" if level == "down_blocks" else "output_blocks"
    block = each * index + number + (1 if level == "down_blocks" else 0)
    return f"{start}.{block}.{1 if kind == 'attentions' else 0}.{rest}"


def _layers_by_name(model, spellings) -> dict[str, str]:
    """{a layer's name with underscores, in each spelling: its name in the model}."""
    return {
        spell(name).replace(".", "_"): name
        for spell in spellings
        for name, module in model.named_modules()
        if hasattr(module, "weight") and module.weight is not None and module.weight.ndim > 1
    }


def _names(keys: list[str], pipe) -> tuple[dict, Counter]:
    """({component: {(layer, part): name in the file}}, how many names of which other kind)."""
    known = {"unet": _layers_by_name(pipe.unet, (str, lambda name: sgm_name(name, pipe.unet)))}
    for component in TEXT_ENCODERS:
        known[component] = _layers_by_name(
            getattr(pipe, component), (str, lambda name: f"text_model.{name}")
        )
    found, left_out = defaultdict(dict), Counter()
    for key in of_other_methods_first(keys):
        stem, part = split_name(key)
        if part is None:
            refuse_method(key)
        if EMBEDDING.match(key):
            left_out["embeddings"] += 1
            continue
        if part is None and WHOLE_WEIGHT.search(key):
            left_out["whole weights"] += 1
            continue
        component, flat = _place(stem)
        layer = known[component].get(flat) or known[component].get(f"{flat}_0")
        if layer is None or part is None:
            raise BLoRAError(f"{shown(key)} is not the name of a LoRA weight of the base model.")
        if found[component].setdefault((layer, part), key) != key:
            twice = found[component][layer, part]
            raise BLoRAError(f"{shown(twice)} and {shown(key)} are two names for the same weight.")
    return found, left_out


def _place(stem: str) -> tuple[str, str]:
    """(component, layer with underscores) that a name's beginning means."""
    plain = WRAPPER.sub("", stem)
    if not TEXT_ENCODER.match(plain):
        return "unet", flat_layer(stem)
    component = TEXT_ENCODERS[1] if SECOND.match(plain) else TEXT_ENCODERS[0]
    flat = plain[match.end() :] if (match := EITHER.match(plain)) else plain
    flat = flat.replace(".processor.", ".").replace(".", "_")
    return component, PROJECTION.sub(lambda m: f"{m[1]}_proj", flat)


def read_few_step(opened, beside: dict, pipe) -> tuple[dict, list[str]]:
    """The LoRAs of all layers in an opened file, with their scales multiplied in.

    Args:
        opened: from `files.open_weights`. beside: PEFT's `adapter_config.json`, or empty.

    Returns:
        ({"unet" or a text encoder: {layer: (lora_A, lora_B)}}, notes). The matrices of a
        convolution are [rank, in, height, width] and [out, rank, 1, 1].

    Raises:
        BLoRAError: it is no LoRA, or none for this base model; what is wrong is named.
    """
    keys = list(opened.keys())
    if not any(split_name(key)[1] or method_of(key) for key in keys):
        raise BLoRAError(f"None of its weights ({len(keys):,}) is that of a LoRA.")
    metadata = opened.metadata() or {}
    settings = {part: read_settings(metadata, beside, part) for part in ("unet", *TEXT_ENCODERS)}
    names, left_out = _names(keys, pipe)
    if not names:
        raise BLoRAError(f"There is no LoRA of the base model in it, only {_counted(left_out)}.")
    changes, notes = {}, []
    for component, of_component in names.items():
        matrices, more = read_layers(
            opened, of_component, settings[component], alpha_expected(keys, beside)
        )
        notes += [f"{component}: {note}" for note in more]
        layers = sorted({layer for layer, _ in matrices})
        model = getattr(pipe, component)
        changes[component] = {layer: _fitting(matrices, layer, model) for layer in layers}
    if left_out:
        notes.append(f"Weights left out: {_counted(left_out)}.")
    return changes, notes


def _counted(left_out: Counter) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in left_out.items())


def _fitting(matrices: dict, layer: str, model) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's two matrices in the shapes that its kind of layer needs.

    Raises:
        BLoRAError: one is missing, or they do not fit each other or the layer.
    """
    a, b = matrices.get((layer, "lora_A")), matrices.get((layer, "lora_B"))
    if a is None or b is None:
        raise BLoRAError(f"{layer}: a matrix without its partner; the file is incomplete.")
    module = model.get_submodule(layer)
    if isinstance(module, torch.nn.Conv2d):
        wanted = (module.out_channels, module.in_channels, *module.kernel_size)
        a = a[:, :, None, None] if a.ndim == 2 else a
        b = b[:, :, None, None] if b.ndim == 2 else b
    else:
        wanted = (module.out_features, module.in_features)
    fits = a.ndim == b.ndim == len(wanted) and a.shape[0] == b.shape[1] and a.shape[0]
    if not fits or (b.shape[0], *a.shape[1:]) != wanted or set(b.shape[2:]) - {1}:
        raise BLoRAError(
            f"{layer} has the size {list(wanted)} in the base model, which {list(b.shape)} and "
            f"{list(a.shape)} in the file do not fit: it is for another base model."
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise BLoRAError(f"{layer}: NaN or infinite values; the file is damaged.")
    return a, b


def _balanced(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of the same product and of numbers about as large as each other.

    A small scale multiplied into one of them could be too small for float16. Powers of two are
    exact.
    """
    largest = a.abs().max().item(), b.abs().max().item()
    if not all(largest):
        return a, b
    factor = 2.0 ** round(math.log2(largest[1] / largest[0]) / 2)
    return a * factor, b / factor


def merge(pipe, changes: dict) -> str:
    """Add the changes of `read_few_step` to the weights of a pipeline; returns their sha256."""
    digest = hashlib.sha256()
    load = dict.fromkeys(TEXT_ENCODERS, pipe.load_lora_into_text_encoder)
    load["unet"] = pipe.load_lora_into_unet
    for component, layers in sorted(changes.items()):
        model, state_dict = getattr(pipe, component), {}
        for layer, pair in layers.items():
            for part, matrix in zip("AB", _balanced(*pair)):
                name = f"{component}.{layer}.lora_{part}.weight"
                state_dict[name] = matrix.contiguous()
                digest.update(name.encode() + state_dict[name].numpy().tobytes())
        extra = {} if component == "unet" else {"prefix": component}
        load[component](state_dict, None, model, adapter_name=ADAPTER, _pipeline=pipe, **extra)
        for module in model.modules():
            if ADAPTER in getattr(module, "scaling", {}):
                module.scaling[ADAPTER] = 1.0  # multiplied in already, whatever was guessed
    pipe.fuse_lora(components=sorted(changes), adapter_names=[ADAPTER])
    pipe.unload_lora_weights()
    return digest.hexdigest()
