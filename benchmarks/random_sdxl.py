"""An SDXL of a given width with random weights, saved as a folder.

    python benchmarks/random_sdxl.py FOLDER quarter
    python benchmarks/random_sdxl.py FOLDER full complete

The second has text encoders as deep as SDXL's, and is written in float16. Speed and memory do not
depend on what the weights are. Run by the oldest diffusers that is to read it: newer ones read
older files, not the other way round.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# U-Net widths, heads, transformer layers and groups of a norm; text encoder widths; VAE widths;
# side in pixels
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "widths": (48, 64, 104),
        "heads": (4, 4, 4),
        "layers": (1, 1, 2),
        "groups": 8,
        "text": (64, 64),
        "vae": (16, 24, 48, 64),
        "side": 96,
    },
    "thin": {
        "widths": (16, 32, 32),
        "heads": (1, 1, 1),
        "layers": (1, 2, 10),
        "groups": 8,
        "text": (32, 32),
        "vae": (16, 16, 16, 16),
        "side": 64,
    },
    "quarter": {
        "widths": (80, 160, 320),
        "heads": (1, 2, 5),
        "layers": (1, 2, 10),
        "groups": 16,
        "text": (192, 320),
        "vae": (32, 64, 128, 128),
        "side": 256,
    },
    "full": {
        "widths": (320, 640, 1280),
        "heads": (5, 10, 20),
        "layers": (1, 2, 10),
        "groups": 32,
        "text": (768, 1280),
        "vae": (128, 256, 512, 512),
        "side": 1024,
    },
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def tokenizer(folder: Path) -> tuple["CLIPTokenizer", int]:
    """A tokenizer that knows letters only, and the size of its vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77), len(tokens)


def unet_config(size: str) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel` for one of `SIZES`; of "full" they are SDXL's own."""
    s = SIZES[size]
    pooled, time = s["text"][1], s["text"][1] // 5
    return {
        "sample_size": s["side"] // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": s["widths"],
        "attention_head_dim": s["heads"],
        "layers_per_block": 2,
        "transformer_layers_per_block": s["layers"],
        "norm_num_groups": s["groups"],
        "cross_attention_dim": sum(s["text"]),
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time,
        "projection_class_embeddings_input_dim": pooled + 6 * time,
    }


def vae_config(size: str) -> dict[str, Any]:
    """The arguments of `AutoencoderKL`; of "full" they are SDXL's own."""
    return {
        "block_out_channels": SIZES[size]["vae"],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32 if size == "full" else 8,
        "scaling_factor": 0.13025,
        "sample_size": SIZES[size]["side"],
    }


def build(folder: str | Path, size: str, complete: str = "") -> None:
    """Save a pipeline of one of `SIZES`.

    Args:
        complete: anything, for text encoders as deep as SDXL's, not of 4 layers, and float16.
    """
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    s = SIZES[size]
    torch.manual_seed(0)
    tokens, vocabulary = tokenizer(Path(folder) / "tokenizer")
    encoders = []
    layers = (12, 32) if complete else (4, 4)
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    for kind, width, depth in zip(kinds, s["text"], layers):
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=width // 64 if complete else 4,
            num_hidden_layers=depth,
            projection_dim=s["text"][1],
            vocab_size=vocabulary,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
        encoders.append(kind(config))
    # the same weights whatever the text encoders drew, which differs between versions
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_config(size))
    # in float16 SDXL is used with a VAE that does not overflow
    upcast = {"force_upcast": False} if complete else {}
    vae = AutoencoderKL(**vae_config(size), **upcast)
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    pipe = StableDiffusionXLPipeline(
        vae, *encoders, tokens, tokens, unet, scheduler, add_watermarker=False
    )
    if complete:
        pipe.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    build(*sys.argv[1:])
