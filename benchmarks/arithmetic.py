"""What a training step of the full SDXL costs, counted: operations and memory.

    python benchmarks/arithmetic.py    # a minute; writes arithmetic.md and .json

Without weights and without a GPU: U-Net and VAE are built at full size on PyTorch's "meta" device,
where tensors have shapes and no numbers; PyTorch's own counter adds up the operations (a
multiplication and an addition are two), and the bytes kept for the backward pass are added up as
they are kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from activations import count_activations, meta_unet, trainable_parameters
from blora_nb.running.memory import GIB, WORKING
from blora_nb.running.optimized_unet import gradient_checkpointing
from blora_nb.running.text_cache import cached_text, text_projections
from blora_nb.settings import TrainingSettings
from random_sdxl import unet_config, vae_config
from report import table, write

SDXL = unet_config("full")
SPEED, PICTURE_STEPS = 10, 30  # TFLOP/s assumed
MODES = ("none", "partial", "full")
# of a weight of a linear layer; nf4 keeps a float32 scale for each 64
BYTES = {"float16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}


def tflop(work: Callable[[], Any]) -> float:
    """What `work()` computes."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def step_parts(settings: TrainingSettings) -> dict[str, float]:
    """TFLOP of the parts of one step.

    They are: VAE encoding, forward, forward with the prompt's keys and values known, and backward
    in each mode of gradient checkpointing.
    """
    from diffusers import AutoencoderKL

    side, width = settings.resolution, SDXL["cross_attention_dim"]
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config("full"))
        picture = torch.empty(1, 3, side, side)
        prompt = torch.empty(1, 77, width, dtype=torch.float16)
    unet, forward = meta_unet(SDXL, torch.float16, settings)
    parts = {"VAE encoding": tflop(lambda: vae.encode(picture)), "forward": tflop(forward)}
    with cached_text(unet, prompt):
        parts["forward, prompt known"] = tflop(forward)
        for mode in MODES:
            with gradient_checkpointing(unet, mode):
                loss = forward().float().mean()
                parts[f"backward, checkpointing {mode}"] = tflop(loss.backward)
    return parts


def memory(settings: TrainingSettings) -> dict[tuple[str, str], dict[str, float]]:
    """Bytes, one training on one device: (dtype, mode) → part → bytes."""
    unet, _ = meta_unet(SDXL, torch.float16, settings)
    base = sum(p.numel() for p in unet.parameters() if not p.requires_grad)
    text = sum(p.layer.get_parameter("weight").numel() for p in text_projections(unet))
    lora = sum(p.numel() for p in trainable_parameters(unet))
    linear = 0
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            linear += module.weight.numel()
    rows = {}
    for kind, size in BYTES.items():
        weights = 2 * base + linear * (size - 2)
        if kind == "float16":  # quantized layers stay where they are
            weights -= 2 * text
        for mode in MODES:
            kept, _ = count_activations(SDXL, torch.float16, settings, mode, quantization=kind)
            rows[kind, mode] = {
                "U-Net": weights,
                "LoRA and optimizer": lora * 16,
                "activations": kept,
                "working memory, about": WORKING,
            }
    return rows


def growth() -> list[tuple[int, int, float, float, float]]:
    """Resolution, rank, TFLOP of a step, activations in GiB and the file's size in MB."""
    rows = []
    for resolution, rank in ((512, 64), (768, 64), (1024, 64), (1024, 16), (1024, 4), (1024, 128)):
        settings = TrainingSettings(resolution=resolution, rank=rank)
        parts = step_parts(settings)
        kept, lora = count_activations(SDXL, torch.float16, settings, "none")
        step = parts["forward, prompt known"] + parts["backward, checkpointing none"]
        rows.append((resolution, rank, step, kept / GIB, lora * 4 / 1e6))
    return rows


def main() -> None:
    settings = TrainingSettings()
    parts, needs, grown = step_parts(settings), memory(settings), growth()
    forward, known = parts["forward"], parts["forward, prompt known"]
    ours = {mode: known + parts[f"backward, checkpointing {mode}"] for mode in MODES}
    original = parts["VAE encoding"] + forward + parts["backward, checkpointing full"]
    part_rows = [[name, f"{number:.2f}"] for name, number in parts.items()]
    step_rows = []
    for mode, number in ours.items():
        step_rows.append([mode, f"{number:.2f}", f"{original / number:.2f} times as much"])
    memory_rows = []
    for key, row in needs.items():
        sizes = [f"{size / GIB:.2f}" for size in row.values()]
        memory_rows.append([*key, *sizes, f"**{sum(row.values()) / GIB:.1f}**"])
    growth_rows = []
    for resolution, rank, flop, kept, size in grown:
        growth_rows.append([resolution, rank, f"{flop:.2f}", f"{kept:.2f}", f"{size:.0f}"])
    step_columns = ["TFLOP a step", "the original's step costs"]
    memory_columns = ["gradient checkpointing", "U-Net", "LoRA and AdamW", "activations"]
    memory_columns += ["working memory, about", "sum"]
    growth_columns = ["rank", "TFLOP a step", "activations, GiB", "file, MB (float32)"]
    minutes = settings.max_train_steps * ours["none"] / SPEED / 60
    seconds = 2 * PICTURE_STEPS * forward / SPEED
    text = f"""# What a step of the full SDXL costs, counted

Made by `python benchmarks/arithmetic.py`: {settings.resolution} px, batch 1, rank \
{settings.rank}, prompt of 77 tokens. Counted on the real architecture without weights; not run on \
a GPU.

{table(["TFLOP"], part_rows, "part of a step")}
The prompt's keys and values, computed once, save {forward - known:.2f} TFLOP a step. The \
original's step (the picture encoded each time, and gradient checkpointing as in its README) is
{original:.2f} TFLOP; here a step is:

{table(step_columns, step_rows, "gradient checkpointing")}
At {SPEED} TFLOP/s, assumed for a T4 (its data sheet promises 65 at best): \
{settings.max_train_steps} steps take {minutes:.0f} minutes, a picture of {PICTURE_STEPS} steps \
with guidance {seconds:.0f} s.

## Memory on the device, GiB

The text encoders and the VAE are offloaded to the CPU while a B-LoRA is trained; in float16 the \
text's key and value layers are too.

{table(memory_columns, memory_rows, "U-Net in")}
bitsandbytes' 8-bit layers keep what goes into them, also where activations are recomputed; its \
4-bit layers do not.

8-bit Adam takes 0.16 GiB less.

## How it grows

{table(growth_columns, growth_rows, "resolution")}"""
    results = {
        "tflop": parts,
        "memory": {" ".join(key): row for key, row in needs.items()},
        "growth": grown,
    }
    write("arithmetic", text, results)


if __name__ == "__main__":
    main()
