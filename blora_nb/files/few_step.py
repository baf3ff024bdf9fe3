"""Few-step LoRAs (LCM, Lightning, Hyper), merged into the base model's own weights.

The change of every layer of the U-Net and the text encoders is exactly as the file says. diffusers
reads such files too, but guesses one scale where alphas or ranks differ by layer.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from torch import Tensor

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.lora_settings import read_lora_settings
from blora_nb.files.names import (
    EMBEDDING,
    TEXT_ENCODER,
    WHOLE_WEIGHT,
    WRAPPER,
    flat_layer,
    split_name,
)
from blora_nb.files.other_methods import method_of, refuse_method, refused_first
from blora_nb.files.reading import note_of_missed_alphas, read_layers
from blora_nb.files.sgm_names import sgm_name

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

ADAPTER = "few_steps"  # its name on the pipeline until it is merged
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
COMPONENTS = ("unet", *TEXT_ENCODERS)
# what stands before a layer's name in the second text encoder, and in either
SECOND = re.compile(r"(?:base_model\.model\.)*(?:lora_te2_|text_encoder_2[._]|te2[._]|clip_g[._])")
EITHER = re.compile(
    r"(?:base_model\.model\.)*(?:(?:lora_te[12]?|text_encoder(?:_2)?|te[12]|clip_[lg])[._])+"
)
PROJECTION = re.compile(r"(?<=self_attn_)to_(q|k|v|out)$")  # diffusers' old names for CLIP's layers

Part = tuple[str, str]  # (layer, "lora_A", "lora_B", …)
Changes = dict[str, dict[str, tuple[Tensor, Tensor]]]  # {component: {layer: (lora_A, lora_B)}}


def read_few_step(
    opened: safe_open, beside: dict, pipe: "StableDiffusionXLPipeline"
) -> tuple[Changes, list[str]]:
    """The LoRAs of all layers in an opened file, with their scales multiplied in.

    Args:
        opened: from `safe_files.open_weights`.
        beside: PEFT's `adapter_config.json`, or empty.

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
    settings = {part: read_lora_settings(metadata, beside, part) for part in COMPONENTS}
    names, left_out = _names_by_component(keys, pipe)
    if not names:
        raise BLoRAError(f"There is no LoRA of the base model in it, only {_counted(left_out)}.")
    missed = note_of_missed_alphas(keys, beside)
    changes: Changes = {}
    notes = []
    for component, of_component in names.items():
        matrices, more = read_layers(opened, of_component, settings[component], missed)
        notes += [f"{component}: {note}" for note in more]
        layers = sorted({layer for layer, _ in matrices})
        model = getattr(pipe, component)
        changes[component] = {layer: _fitted(matrices, layer, model) for layer in layers}
    if left_out:
        notes.append(f"Weights left out: {_counted(left_out)}.")
    return changes, notes


def merge(pipe: "StableDiffusionXLPipeline", changes: Changes) -> str:
    """Add the changes of `read_few_step` to the weights of a pipeline; returns their sha256."""
    digest = hashlib.sha256()
    for component, layers in sorted(changes.items()):
        state_dict = {}
        for layer, pair in layers.items():
            for part, matrix in zip("AB", _balanced(*pair)):
                name = f"{component}.{layer}.lora_{part}.weight"
                state_dict[name] = matrix.contiguous()
                digest.update(name.encode() + state_dict[name].numpy().tobytes())
        model = getattr(pipe, component)
        options = {"adapter_name": ADAPTER, "_pipeline": pipe}
        if component == "unet":
            pipe.load_lora_into_unet(state_dict, None, model, **options)
        else:
            options["prefix"] = component
            pipe.load_lora_into_text_encoder(state_dict, None, model, **options)
        for module in model.modules():
            if ADAPTER in getattr(module, "scaling", {}):
                module.scaling[ADAPTER] = 1.0  # multiplied in already, whatever was guessed
    pipe.fuse_lora(components=sorted(changes), adapter_names=[ADAPTER])
    pipe.unload_lora_weights()
    return digest.hexdigest()


def _names_by_component(
    keys: list[str], pipe: "StableDiffusionXLPipeline"
) -> tuple[dict[str, dict[Part, str]], Counter[str]]:
    """({component: {(layer, part): name in the file}}, how many names of which other kind)."""
    known = {"unet": _layers_by_name(pipe.unet, lambda layer: sgm_name(layer, pipe.unet))}
    for component in TEXT_ENCODERS:
        model = getattr(pipe, component)
        known[component] = _layers_by_name(model, lambda layer: f"text_model.{layer}")
    found: dict[str, dict[Part, str]] = defaultdict(dict)
    left_out: Counter[str] = Counter()
    for key in refused_first(keys):
        stem, part = split_name(key)
        if part is None:
            refuse_method(key)
        if EMBEDDING.match(key):
            left_out["embeddings"] += 1
            continue
        if part is None and WHOLE_WEIGHT.search(key):
            left_out["whole weights"] += 1
            continue
        component, flat = _component_and_layer(stem)
        layer = known[component].get(flat) or known[component].get(f"{flat}_0")
        if layer is None or part is None:
            raise BLoRAError(f"{shown(key)} is not the name of a LoRA weight of the base model.")
        twin = found[component].setdefault((layer, part), key)
        if twin != key:
            raise BLoRAError(f"{shown(twin)} and {shown(key)} are two names for the same weight.")
    return found, left_out


def _layers_by_name(model: torch.nn.Module, other_spelling: Callable[[str], str]) -> dict[str, str]:
    """{a layer's name with underscores, in either spelling: its name in the model}."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d) or hasattr(module, "out_features")
    ]
    found = {layer.replace(".", "_"): layer for layer in layers}
    return found | {other_spelling(layer).replace(".", "_"): layer for layer in layers}


def _component_and_layer(stem: str) -> tuple[str, str]:
    """(component, layer with underscores) that the beginning of a name means."""
    plain = WRAPPER.sub("", stem)
    if not TEXT_ENCODER.match(plain):
        return "unet", flat_layer(stem)
    component = TEXT_ENCODERS[1] if SECOND.match(plain) else TEXT_ENCODERS[0]
    match = EITHER.match(plain)
    flat = plain[match.end() :] if match else plain
    flat = flat.replace(".processor.", ".").replace(".", "_")
    return component, PROJECTION.sub(r"\1_proj", flat)


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in left_out.items())


def _fitted(
    matrices: dict[Part, Tensor], layer: str, model: torch.nn.Module
) -> tuple[Tensor, Tensor]:
    """A layer's two matrices in the shapes that its kind of layer needs.

    Raises:
        BLoRAError: one is missing, or they do not fit each other or the layer.
    """
    a, b = matrices.get((layer, "lora_A")), matrices.get((layer, "lora_B"))
    if a is None or b is None:
        raise BLoRAError(f"{layer}: a matrix without its partner; the file is incomplete.")
    module = model.get_submodule(layer)
    wanted = _weight_shape(module)
    if len(wanted) == 4:
        a = a[:, :, None, None] if a.ndim == 2 else a
        b = b[:, :, None, None] if b.ndim == 2 else b
    fits = a.ndim == b.ndim == len(wanted) and a.shape[0] == b.shape[1] > 0
    if not fits or (b.shape[0], *a.shape[1:]) != wanted or set(b.shape[2:]) - {1}:
        raise BLoRAError(
            f"{layer} has the size {list(wanted)} in the base model, which {list(b.shape)} and "
            f"{list(a.shape)} in the file do not fit: it is for another base model."
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise BLoRAError(f"{layer}: NaN or infinite values; the file is damaged.")
    return a, b


def _weight_shape(module: torch.nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, also where it is quantized and stored in another shape."""
    if isinstance(module, torch.nn.Conv2d):
        return module.out_channels, module.in_channels, *module.kernel_size
    linear = cast(torch.nn.Linear, module)
    return linear.out_features, linear.in_features


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of the same product and of numbers about as large as each other.

    A small scale multiplied into one of them could be too small for float16. Powers of two are
    exact.
    """
    largest_a, largest_b = a.abs().max().item(), b.abs().max().item()
    if not largest_a or not largest_b:
        return a, b
    factor = 2.0 ** round(math.log2(largest_b / largest_a) / 2)
    return a * factor, b / factor
