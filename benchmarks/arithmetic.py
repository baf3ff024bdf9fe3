"""What a training step of the full SDXL costs, counted: operations and memory, without weights and without a GPU.

    python benchmarks/arithmetic.py    # a minute; writes arithmetic.md and .json

U-Net and VAE are built at full size on PyTorch's "meta" device, where tensors have shapes and no numbers; PyTorch's own counter
adds up the operations (a multiplication and an addition are two), and the bytes kept for the backward pass are added up as they
are kept.
"""

import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from blora_nb.running.activations import count_activations, meta_unet, trainable_parameters
from blora_nb.running.gradient_checkpointing import gradient_checkpointing
from blora_nb.running.memory import GIB, WORKING
from blora_nb.running.text_cache import cached_text, text_projections
from blora_nb.settings import TrainingSettings
from random_sdxl import unet_config, vae_config

HERE = Path(__file__).resolve().parent
SDXL = unet_config("full")
SPEED, PICTURE_STEPS = 10, 30  # TFLOP/s assumed
MODES = ("none", "partial", "full")
BYTES = {
    "float16": 2,
    "int8": 1,
    "nf4": 0.5 + 4 / 64,
}  # a weight of a linear layer; nf4 keeps a float32 scale for each 64


def counted(work):
    """What `work()` computes, in TFLOP, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops() / 1e12, result


def step_parts(settings):
    """TFLOP of the parts of one step: VAE encoding, forward, forward with the prompt's keys and values known, backward in each mode."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config("full"))
    unet, forward = meta_unet(SDXL, torch.float16, settings)
    parts = {
        "VAE encoding": counted(
            lambda: vae.encode(
                torch.empty(1, 3, settings.resolution, settings.resolution, device="meta")
            )
        )[0],
        "forward": counted(forward)[0],
    }
    with cached_text(
        unet, torch.empty(1, 77, SDXL["cross_attention_dim"], device="meta", dtype=torch.float16)
    ):
        parts["forward, prompt known"], _ = counted(forward)
        for mode in MODES:
            with gradient_checkpointing(unet, mode):
                prediction = forward()
                parts[f"backward, checkpointing {mode}"], _ = counted(
                    lambda: prediction.float().mean().backward()
                )
    return parts


def memory(settings):
    """Bytes, one training on one device: {(dtype, mode): {part: bytes}}."""
    unet, _ = meta_unet(SDXL, torch.float16, settings)
    base = [p for p in unet.parameters() if not p.requires_grad]
    text = sum(layer.weight.numel() for *_, layer in text_projections(unet))
    linear = sum(
        m.weight.numel()
        for name, m in unet.named_modules()
        if isinstance(m, torch.nn.Linear) and "lora_" not in name
    )
    lora, rows = sum(p.numel() for p in trainable_parameters(unet)), {}
    activations = {
        (kind, mode): count_activations(SDXL, torch.float16, settings, mode, quantization=kind)[0]
        for kind in BYTES
        for mode in MODES
    }
    for kind, size in BYTES.items():
        weights = (
            sum(p.numel() for p in base) * 2
            + linear * (size - 2)
            - (text * 2 if kind == "float16" else 0)
        )  # quantized layers stay where they are
        rows |= {
            (kind, mode): {
                "U-Net": weights,
                "LoRA and optimizer": lora * 16,
                "activations": activations[kind, mode],
                "working memory, about": WORKING,
            }
            for mode in MODES
        }
    return rows


def growth():
    """TFLOP of a step, activations in GiB and the file's size in MB, for resolutions and ranks."""
    rows = []
    for resolution, rank in ((512, 64), (768, 64), (1024, 64), (1024, 16), (1024, 4), (1024, 128)):
        settings = TrainingSettings(resolution=resolution, rank=rank)
        parts, (kept, lora) = (
            step_parts(settings),
            count_activations(SDXL, torch.float16, settings, "none"),
        )
        rows.append(
            (
                resolution,
                rank,
                parts["forward, prompt known"] + parts["backward, checkpointing none"],
                kept / GIB,
                lora * 4 / 1e6,
            )
        )
    return rows


def main():
    settings = TrainingSettings()
    parts = step_parts(settings)
    ours = {
        mode: parts["forward, prompt known"] + parts[f"backward, checkpointing {mode}"]
        for mode in MODES
    }
    known, original = (
        parts["forward"] - parts["forward, prompt known"],
        parts["VAE encoding"] + parts["forward"] + parts["backward, checkpointing full"],
    )
    text = f"# What a step of the full SDXL costs, counted\n\nMade by `python benchmarks/arithmetic.py`: {settings.resolution} px, batch 1, rank {settings.rank}, prompt of 77 tokens. Counted on the real architecture without weights; not run on a GPU.\n"
    text += "\n| part of a step | TFLOP |\n|---|---|\n" + "".join(
        f"| {name} | {number:.2f} |\n" for name, number in parts.items()
    )
    text += f"\nThe prompt's keys and values, computed once, save {known:.2f} TFLOP a step. The original's step (the picture encoded each time, and gradient checkpointing as in its README) is\n"
    text += (
        f"{original:.2f} TFLOP; here a step is:\n\n| gradient checkpointing | TFLOP a step | the original's step costs |\n|---|---|---|\n"
        + "".join(
            f"| {mode} | {number:.2f} | {original / number:.2f} times as much |\n"
            for mode, number in ours.items()
        )
    )
    text += f"\nAt {SPEED} TFLOP/s, assumed for a T4 (its data sheet promises 65 at best): {settings.max_train_steps} steps take {settings.max_train_steps * ours['none'] / SPEED / 60:.0f} minutes, a picture of {PICTURE_STEPS} steps with guidance {2 * PICTURE_STEPS * parts['forward'] / SPEED:.0f} s.\n"
    text += "\n## Memory on the device, GiB\n\nThe text encoders and the VAE are offloaded to the CPU while a B-LoRA is trained; in float16 the text's key and value layers do too.\n\n| U-Net in | gradient checkpointing | U-Net | LoRA and AdamW | activations | working memory, about | sum |\n|---|---|---|---|---|---|---|\n"
    for (kind, mode), row in memory(settings).items():
        text += (
            f"| {kind} | {mode} | "
            + " | ".join(f"{size / GIB:.2f}" for size in row.values())
            + f" | **{sum(row.values()) / GIB:.1f}** |\n"
        )
    text += "\nbitsandbytes' 8-bit layers keep what goes into them, also where activations are recomputed; its 4-bit layers do not.\n"
    text += "\n8-bit Adam takes 0.16 GiB less.\n\n## How it grows\n\n| resolution | rank | TFLOP a step | activations, GiB | file, MB (float32) |\n|---|---|---|---|---|\n"
    grown = growth()
    text += "".join(
        f"| {resolution} | {rank} | {flop:.2f} | {kept:.2f} | {size:.0f} |\n"
        for resolution, rank, flop, kept, size in grown
    )
    (HERE / "arithmetic.md").write_text(text)
    (HERE / "arithmetic.json").write_text(
        json.dumps(
            {
                "tflop": parts,
                "memory": {" ".join(key): row for key, row in memory(settings).items()},
                "growth": grown,
            },
            indent=1,
        )
        + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
