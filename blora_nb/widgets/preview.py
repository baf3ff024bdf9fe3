"""A look at a picture while it is being made, without the VAE: each latent pixel becomes a colour by one small matrix."""

import numpy as np
import torch
from PIL import Image

from blora_nb.defaults import native_resolution


class LatentPreview:
    """A linear decoder [channels + 1, 3], fitted by least squares to what this pipeline's own VAE does with patches of colour.

    look = LatentPreview(pipe)
    generate(pipe, prompt, preview=lambda index, step, latents: show(look(latents)[0]))
    """

    @torch.no_grad()
    def __init__(self, pipe, side=None):
        from blora_nb.training import encode_image

        self.scale = pipe.vae_scale_factor
        side = side or min(256, native_resolution(pipe))
        random = np.random.default_rng(0)
        latents, colours = [], []
        for size in (2, 3, 4, 6):  # patches of colour, from coarse to fine
            patches = Image.fromarray(
                random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            ).resize((side, side), Image.Resampling.BICUBIC)
            mean, _ = encode_image(pipe, patches, side)
            latents.append(
                mean[0].flatten(1).T.cpu() * pipe.vae.config.scaling_factor
            )  # [pixels, channels]
            small = patches.resize((side // self.scale, side // self.scale), Image.Resampling.BOX)
            colours.append(
                torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).flatten(0, 1)
            )  # [pixels, 3]
        self.matrix = torch.linalg.lstsq(_with_one(torch.cat(latents)), torch.cat(colours)).solution

    def __call__(self, latents):
        """PIL images, an eighth of the size, of latents [batch, channels, h, w]."""
        pixels = _with_one(latents.detach().float().cpu().permute(0, 2, 3, 1)) @ self.matrix
        return [Image.fromarray((p.clamp(0, 1) * 255).round().byte().numpy()) for p in pixels]


def predicted_latents(scheduler, before, after, step):
    """What the latents will be without noise, as the model believes after `step`, told from those before it and after it; `after` itself where the sampler does not let it be told.

    Euler's method moves from x along (x - x0) / sigma, so that the two ends of a step lie on a line with x0 (Karras et al., arXiv 2206.00364).
    """
    if before is None or type(scheduler).__name__ != "EulerDiscreteScheduler":
        return after
    sigma, following = (float(s) for s in scheduler.sigmas[step : step + 2])
    return before + (after - before) * (sigma / (sigma - following))


def _with_one(values):
    """The values with a last column of ones, for the constant part."""
    return torch.cat([values, torch.ones(*values.shape[:-1], 1)], dim=-1)
