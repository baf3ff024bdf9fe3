"""The tensors and the config of a file that is written, in a format of `names.WRITTEN`."""

from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import pad

from blora_nb.errors import BLoRAError, several
from blora_nb.files.names import WRITTEN, written_name

Layers = dict[str, tuple[Tensor, Tensor]]  # {layer: (lora_A [rank, in], lora_B [out, rank])}


def named_weights(layers: Layers, format: str) -> dict[str, Tensor]:
    """The state dict of a file.

    All layers get one rank, because diffusers, old and new, scales files with several wrongly:
    smaller matrices are filled up with zeros, which adds nothing. PEFT has the ranks in its config.
    """
    rank = 0 if format == "peft" else max(a.shape[0] for a, _ in layers.values())
    tensors = {}
    for layer, (a, b) in layers.items():
        fill = max(rank - a.shape[0], 0)
        tensors[written_name(layer, "lora_A", format)] = pad(a, (0, 0, 0, fill)).contiguous()
        tensors[written_name(layer, "lora_B", format)] = pad(b, (0, fill)).contiguous()
        if WRITTEN[format].kohya:
            tensors[written_name(layer, "alpha", format)] = torch.tensor(float(rank))
    return tensors


def converted(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file in another dtype.

    Raises:
        BLoRAError: a number is too large for it, or all of a matrix too small.
    """
    found = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    number_format = str(dtype).removeprefix("torch.")
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BLoRAError(
            f"{several(broken)}: numbers too large for {number_format}. Write it as bfloat16 or "
            "float32."
        )
    if any(tensor.any() and not found[name].any() for name, tensor in tensors.items()):
        raise BLoRAError(
            f"Numbers too small for {number_format}: matrices would become zero. Write it as "
            "bfloat16 or float32."
        )
    return found


def peft_config(layers: Layers) -> dict:
    """What PEFT wants in `adapter_config.json`."""
    ranks = {layer: a.shape[0] for layer, (a, _) in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{layer}": rank for layer, rank in ranks.items() if rank != common}
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
