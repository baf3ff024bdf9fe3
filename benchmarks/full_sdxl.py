"""SDXL at full size without numbers, for a simulated GPU: tensors have shape, format and place."""

from typing import TYPE_CHECKING

import torch

from blora_nb.assets import TINY_SDXL
from random_sdxl import SCHEDULER, SIZES, unet_config, vae_config

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# CLIP ViT-L and OpenCLIP bigG
TEXT = (
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
)


def full_sdxl(dtype: torch.dtype, size: str = "full") -> "StableDiffusionXLPipeline":
    """A pipeline on "cuda", frozen; its tokenizers are the teaching model's.

    Args:
        size: another one of `random_sdxl.SIZES`, where it need not be SDXL's own.
    """
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    folders = [TINY_SDXL / name for name in ("tokenizer", "tokenizer_2")]
    tokenizers = [CLIPTokenizer.from_pretrained(folder) for folder in folders]
    encoders = []
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(size))
        vae = AutoencoderKL(**vae_config(size), force_upcast=False)
        for kind, own, width in zip(
            (CLIPTextModel, CLIPTextModelWithProjection), TEXT, SIZES[size]["text"]
        ):
            sizes = {**own, "hidden_size": width, "intermediate_size": 4 * width}
            if size != "full":
                sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4}
            config = CLIPTextConfig(projection_dim=width, **sizes)
            encoders.append(kind(config))
    for model in (unet, vae, *encoders):
        torch.nn.Module.to(model, "cuda", dtype).requires_grad_(False)
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    pipe = StableDiffusionXLPipeline(
        vae, *encoders, *tokenizers, unet, scheduler, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
