"""SDXL at full size without numbers, for a simulated GPU: every tensor has its shape, format and place."""

import torch

from blora_nb.assets import TINY_SDXL
from random_sdxl import SCHEDULER, unet_config, vae_config

TEXT = (
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
)  # CLIP ViT-L and OpenCLIP bigG


def full_sdxl(dtype):
    """A `StableDiffusionXLPipeline` on "cuda", frozen; its tokenizers are the teaching model's."""
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

    tokenizers = [
        CLIPTokenizer.from_pretrained(TINY_SDXL / name) for name in ("tokenizer", "tokenizer_2")
    ]
    with torch.device("meta"):
        unet, vae = (
            UNet2DConditionModel(**unet_config("full")),
            AutoencoderKL(**vae_config("full"), force_upcast=False),
        )
        encoders = [
            kind(
                CLIPTextConfig(
                    intermediate_size=4 * size["hidden_size"],
                    projection_dim=size["hidden_size"],
                    **size,
                )
            )
            for kind, size in zip((CLIPTextModel, CLIPTextModelWithProjection), TEXT)
        ]
    for model in (unet, vae, *encoders):
        torch.nn.Module.to(model, "cuda", dtype).requires_grad_(False)
    pipe = StableDiffusionXLPipeline(
        vae,
        *encoders,
        *tokenizers,
        unet,
        EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
