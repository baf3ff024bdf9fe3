"""SDXL at full size without numbers, for a pretended GPU: every tensor has its shape, format and place."""

import torch

from blora_nb.models import TINY_SDXL
from random_sdxl import unet_config

VAE = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4}
TEXT = ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}, {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20})  # CLIP ViT-L and OpenCLIP bigG


def full_sdxl(dtype):
    """A `StableDiffusionXLPipeline` on "cuda", frozen; its tokenizers are the teaching model's."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [CLIPTokenizer.from_pretrained(TINY_SDXL / name) for name in ("tokenizer", "tokenizer_2")]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**unet_config("full")), AutoencoderKL(**VAE, force_upcast=False)
        encoders = [kind(CLIPTextConfig(intermediate_size=4 * size["hidden_size"], projection_dim=size["hidden_size"], **size)) for kind, size in zip((CLIPTextModel, CLIPTextModelWithProjection), TEXT)]
    for model in (unet, vae, *encoders):
        torch.nn.Module.to(model, "cuda", dtype).requires_grad_(False)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
    pipe = StableDiffusionXLPipeline(vae, *encoders, *tokenizers, unet, scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
