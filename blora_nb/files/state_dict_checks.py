"""Whether a state dict is a whole and healthy B-LoRA, and for which base model."""

from collections import Counter

import torch
from torch import Tensor

from blora_nb.blocks import BLOCK_OF_HALF, half_of
from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.names import ATTENTION_LAYERS

# (channels of the transformer blocks, channels of the text):
# name, transformer layers in each of the two blocks
BASES = {(1280, 2048): ("SDXL", 10), (144, 192): ("the teaching model", 2)}


def check_complete(state_dict: dict[str, Tensor]) -> None:
    """Raise a BLoRAError unless all belongs to the two blocks and nothing is missing."""
    if not state_dict:
        raise BLoRAError("There is no weight in it.")
    for key in state_dict:
        if half_of(key) is None:
            raise BLoRAError(
                f"{shown(key)} belongs to neither {' nor '.join(BLOCK_OF_HALF.values())}, so this "
                "is no B-LoRA."
            )
        partner = _partner(key)
        if partner == key or partner not in state_dict:
            raise BLoRAError(
                f"{shown(key)} is there without its partner {shown(partner)}; the file is "
                "incomplete."
            )
    layers = {key.split(".lora_")[0] for key in state_dict}
    missing = []
    for block in BLOCK_OF_HALF.values():
        start = f"unet.{block}.transformer_blocks."
        inside = [layer.removeprefix(start) for layer in layers if layer.startswith(start)]
        depth = max((int(layer.split(".")[0]) for layer in inside), default=-1) + 1
        names = sorted({layer.partition(".")[2] for layer in inside})
        expected = [f"{start}{index}.{name}" for index in range(depth) for name in names]
        missing += [layer for layer in expected if layer not in layers]
    if missing:
        raise BLoRAError(
            f"{several(missing)}: missing, while the other transformer layers have them; the file "
            "is incomplete."
        )


def _partner(key: str) -> str:
    """The name of the other matrix of the same layer."""
    if "lora_A" in key:
        return key.replace("lora_A", "lora_B")
    return key.replace("lora_B", "lora_A")


def check_sizes(state_dict: dict[str, Tensor]) -> None:
    """Raise a BLoRAError unless the matrices of each layer fit each other, and one model."""
    for key, tensor in state_dict.items():
        if tensor.ndim != 2 or not tensor.numel():
            raise BLoRAError(
                f"{shown(key)} has the shape {tuple(tensor.shape)}; a LoRA matrix is "
                "two-dimensional and not empty."
            )
    for key, tensor in state_dict.items():
        rank, other = tensor.shape[0], state_dict[_partner(key)].shape[1]
        if "lora_A" in key and rank != other:
            raise BLoRAError(
                f"{shown(key)} has rank {rank} and its partner rank {other}; they must be the same."
            )
    width, context = model_size(state_dict)
    for key, tensor in state_dict.items():
        layer, part = key.split(".lora_")
        out_features, in_features = expected_shape(layer, width, context)
        if part.startswith("A"):
            fits, wanted = tensor.shape[1] == in_features, f"[rank, {in_features}]"
        else:
            fits, wanted = tensor.shape[0] == out_features, f"[{out_features}, rank]"
        if not fits:
            raise BLoRAError(
                f"{shown(key)} has the shape {list(tensor.shape)}; going by the other layers it "
                f"should be {wanted}."
            )


def check_finite(state_dict: dict[str, Tensor]) -> None:
    """Raise a BLoRAError if there is a NaN or infinite value."""
    broken = [key for key, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BLoRAError(
            f"{several(broken)}: NaN or infinite values; the training that made it went wrong."
        )


def expected_shape(layer: str, width: int, context: int | None) -> tuple[int, int | None]:
    """[out, in] of a layer's weight; `width` and `context` as from `model_size`."""
    if layer.endswith(("attn2.to_k", "attn2.to_v")):
        return width, context
    if layer.endswith("ff.net.0.proj"):
        return 8 * width, width  # gated: twice the four-fold width
    if layer.endswith("ff.net.2"):
        return width, 4 * width
    return width, width


def model_size(state_dict: dict[str, Tensor]) -> tuple[int, int | None]:
    """(channels of the transformer blocks, channels of the text or None) that most layers have."""
    widths, contexts = Counter[int](), Counter[int]()
    for key, tensor in state_dict.items():
        if key.endswith(".lora_B.weight") and "ff.net.0" not in key:
            widths[tensor.shape[0]] += 1
        if key.endswith(("attn2.to_k.lora_A.weight", "attn2.to_v.lora_A.weight")):
            contexts[tensor.shape[1]] += 1
    context = contexts.most_common(1)[0][0] if contexts else None
    if widths:
        return widths.most_common(1)[0][0], context
    return max(tensor.shape[1] for key, tensor in state_dict.items() if ".lora_A" in key), context


def base_of(state_dict: dict[str, Tensor]) -> str:
    """The kind of base model the sizes fit: "SDXL", "the teaching model" or another, in words."""
    width, context = model_size(state_dict)
    for (channels, text_channels), (name, _) in BASES.items():
        if width == channels and context in (text_channels, None):
            return name
    return f"a model with {width} channels in its transformer blocks"


def remarks(state_dict: dict[str, Tensor], layers: dict[str, tuple[Tensor, Tensor]]) -> list[str]:
    """What is unusual about a B-LoRA but no fault: sentences. `layers` are `BLoRA.layers`.

    Raises:
        BLoRAError: it would change nothing.
    """
    acting = [layer for layer, (a, b) in layers.items() if a.any() and b.any()]
    if not acting:
        raise BLoRAError(
            "All its weights or alphas are zero: it would change nothing. Perhaps it was saved "
            "before it was trained, or with an alpha of 0."
        )
    base_depth = dict(BASES.values()).get(base_of(state_dict))
    found = []
    for half, block in BLOCK_OF_HALF.items():
        names = [layer for layer in layers if layer.startswith(f"{block}.")]
        if names and not any(name in acting for name in names):
            found.append(f"The {half} half is zero and changes nothing.")
        start = f"{block}.transformer_blocks."
        inside = [name.removeprefix(start).split(".", 1) for name in names if start in name]
        if not inside:
            continue
        trained = {name for _, name in inside}
        lacking = [name for name in ATTENTION_LAYERS if name not in trained]
        if lacking:
            found.append(f"The {half} half has no {', '.join(lacking)}, which B-LoRA trains too.")
        depth = len({index for index, _ in inside})
        if base_depth and depth != base_depth:
            found.append(
                f"The {half} half has {depth} transformer layers; the base model has {base_depth}."
            )
    return found
