"""A look at a picture while it is being drawn, without the VAE: a small matrix makes colours."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blora_nb.defaults import native_resolution
from blora_nb.training import encode_image

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionXLPipeline

PATCHES = (2, 3, 4, 6)  # colours along a side, from coarse to fine


class LatentPreview:
    """A linear decoder of latents, [channels + 1, 3]: each latent pixel becomes a colour.

    It is fitted by least squares to what this pipeline's own VAE does with patches of colour.

        look = LatentPreview(pipe)
        generate(pipe, prompt, preview=lambda index, step, latents: show(look(latents)[0]))
    """

    @torch.no_grad()
    def __init__(self, pipe: "StableDiffusionXLPipeline") -> None:
        side = min(256, native_resolution(pipe))
        small = side // pipe.vae_scale_factor
        random = np.random.default_rng(0)
        latents, colours = [], []
        for size in PATCHES:
            patches = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            picture = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
            mean, _ = encode_image(pipe, picture, side)
            pixels = mean[0].flatten(1).T.cpu()  # [pixels, channels]
            latents.append(pixels * pipe.vae.config.scaling_factor)
            reduced = picture.resize((small, small), Image.Resampling.BOX)
            colour = torch.from_numpy(np.asarray(reduced, dtype=np.float32) / 255)
            colours.append(colour.flatten(0, 1))  # [pixels, 3]
        inputs = with_constant(torch.cat(latents))
        self.matrix = torch.linalg.lstsq(inputs, torch.cat(colours)).solution

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """PIL images, a pixel for each position, of latents [batch, channels, rows, columns]."""
        pixels = with_constant(latents.detach().float().cpu().permute(0, 2, 3, 1)) @ self.matrix
        return [Image.fromarray(p.numpy()) for p in (pixels.clamp(0, 1) * 255).round().byte()]


def predicted_latents(
    scheduler: "SchedulerMixin", before: Tensor | None, after: Tensor, step: int
) -> Tensor:
    """The latents without noise that the model predicts at a step; `after` where that is unknown.

    Euler's method moves from x along (x - x0) / sigma, so the two ends of a step lie on a line with
    x0 (Karras et al., arXiv 2206.00364). For other samplers it is unknown.

    Args:
        before, after: the latents before and after the step.
    """
    if before is None or type(scheduler).__name__ != "EulerDiscreteScheduler":
        return after
    sigma, following = (float(s) for s in scheduler.sigmas[step : step + 2])
    return before + (after - before) * (sigma / (sigma - following))


def with_constant(values: Tensor) -> Tensor:
    """The values with a last column of ones, for the constant part."""
    return torch.cat([values, torch.ones(*values.shape[:-1], 1)], dim=-1)
