"""Is a state dict a whole and healthy B-LoRA, and for which base model? Errors name the weights that are wrong."""

from collections import Counter

import torch

from blora_nb.blocks import BLOCK_OF_HALF, half_of
from blora_nb.errors import BLoRAError, several, shown
from blora_nb.files.formats import expected_shape

# (channels of the transformer blocks, channels of the text): name, transformer layers in each of the two blocks
BASES = {(1280, 2048): ("SDXL", 10), (104, 128): ("the teaching model", 2)}
PROJECTIONS = [
    f"attn{a}.{p}" for a in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")
]  # what the method trains


def check_complete(state_dict):
    """Raise a BLoRAError unless all belongs to the two blocks, each matrix has its partner, and no transformer layer lacks what others have."""
    if not state_dict:
        raise BLoRAError("There is no weight in it.")
    for key in state_dict:
        if half_of(key) is None:
            raise BLoRAError(
                f"{shown(key)} belongs to neither {' nor '.join(BLOCK_OF_HALF.values())}, so this is no B-LoRA."
            )
    for key in state_dict:
        partner = (
            key.replace("lora_A", "lora_B") if "lora_A" in key else key.replace("lora_B", "lora_A")
        )
        if partner not in state_dict or partner == key:
            raise BLoRAError(
                f"{shown(key)} is there without its partner {shown(partner)}; the file is incomplete."
            )
    layers = {key.split(".lora_")[0] for key in state_dict}
    missing = []
    for block in BLOCK_OF_HALF.values():
        start = f"unet.{block}.transformer_blocks."
        found = {
            tuple(layer.removeprefix(start).split(".", 1))
            for layer in layers
            if layer.startswith(start)
        }
        indices = range(max((int(index) for index, _ in found), default=-1) + 1)
        missing += [
            f"{start}{i}.{name}"
            for i in indices
            for name in sorted({name for _, name in found})
            if (str(i), name) not in found
        ]
    if missing:
        raise BLoRAError(
            f"{several(missing)}: missing, while the other transformer layers have them; the file is incomplete."
        )


def check_sizes(state_dict):
    """Raise a BLoRAError unless the matrices of each layer fit each other and the layers fit one model."""
    for key, tensor in state_dict.items():
        if tensor.ndim != 2 or not tensor.numel():
            raise BLoRAError(
                f"{shown(key)} has the shape {tuple(tensor.shape)}; a LoRA matrix is two-dimensional and not empty."
            )
    for key, a in state_dict.items():
        if (
            "lora_A" in key
            and (b := state_dict[key.replace("lora_A", "lora_B")]).shape[1] != a.shape[0]
        ):
            raise BLoRAError(
                f"{shown(key)} has rank {a.shape[0]} and its partner rank {b.shape[1]}; they must be the same."
            )
    width, context = model_size(state_dict)
    for key, tensor in state_dict.items():
        layer, part = key.split(".lora_")
        out_features, in_features = expected_shape(layer, width, context)
        if tensor.shape != (
            (tensor.shape[0], in_features)
            if part.startswith("A")
            else (out_features, tensor.shape[1])
        ):
            wanted = f"[rank, {in_features}]" if part.startswith("A") else f"[{out_features}, rank]"
            raise BLoRAError(
                f"{shown(key)} has the shape {list(tensor.shape)}; going by the other layers it should be {wanted}."
            )


def check_finite(state_dict):
    """Raise a BLoRAError if there is a NaN or infinite value."""
    broken = [key for key, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BLoRAError(
            f"{several(broken)}: NaN or infinite values; the training that made it went wrong."
        )


def model_size(state_dict):
    """(channels of the transformer blocks, channels of the text) that most layers speak for."""
    inner = Counter(
        t.shape[0]
        for key, t in state_dict.items()
        if key.endswith(".lora_B.weight") and "ff.net.0" not in key
    )
    context = Counter(
        t.shape[1]
        for key, t in state_dict.items()
        if key.endswith(("attn2.to_k.lora_A.weight", "attn2.to_v.lora_A.weight"))
    )
    width = (
        inner.most_common(1)[0][0]
        if inner
        else max(t.shape[1] for key, t in state_dict.items() if ".lora_A" in key)
    )
    return width, context.most_common(1)[0][0] if context else None


def base_of(state_dict):
    """The kind of base model the sizes fit: "SDXL", "the teaching model" or another, in words."""
    width, context = model_size(state_dict)
    fitting = [
        name
        for (channels, text), (name, _) in BASES.items()
        if width == channels and context in (text, None)
    ]
    return fitting[0] if fitting else f"a model with {width} channels in its transformer blocks"


def remarks(layers):
    """What is unusual about {layer: (lora_A, lora_B)} but no fault: sentences.

    Raises:
        BLoRAError: it would change nothing.
    """
    if not any(a.any() and b.any() for a, b in layers.values()):
        raise BLoRAError(
            "All its weights or alphas are zero: it would change nothing. Perhaps it was saved before it was trained, or with an alpha of 0."
        )
    found = []
    depth = dict(BASES.values()).get(
        base_of(
            {
                f"unet.{layer}.lora_{p}.weight": t
                for layer, pair in layers.items()
                for p, t in zip("AB", pair)
            }
        )
    )
    for half, block in BLOCK_OF_HALF.items():
        names = [
            layer.removeprefix(block + ".") for layer in layers if layer.startswith(block + ".")
        ]
        inside = {name.split(".", 2)[2] for name in names if name.startswith("transformer_blocks.")}
        count = len(
            {name.split(".")[1] for name in names if name.startswith("transformer_blocks.")}
        )
        if names and not any(
            a.any() and b.any() for layer, (a, b) in layers.items() if layer.startswith(block + ".")
        ):
            found.append(f"The {half} half is zero and changes nothing.")
        if inside and (lacking := [p for p in PROJECTIONS if p not in inside]):
            found.append(f"The {half} half has no {', '.join(lacking)}, which B-LoRA trains too.")
        if depth and count and count != depth:
            found.append(
                f"The {half} half has {count} transformer layers; the base model has {depth}."
            )
    return found


SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
