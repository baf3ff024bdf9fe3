"""Prompt + halves + alphas + seeds → pictures."""

import torch

from . import adapters
from .models import defaults_for


@torch.no_grad()
def generate(pipe, prompt, content=None, style=None, content_alpha=1.0, style_alpha=1.0, seeds=(0,), num_inference_steps=None, guidance_scale=None, negative_prompt=None, height=None, width=None, progress=True):  # fmt: skip
    """One picture for each seed, with the content half of one B-LoRA and the style half of another.

    Both halves: style transfer. Only `content` and a prompt with a style: text stylization. Only `style` and a prompt
    with an object: consistent style. Neither: the plain model. Whatever was applied to the pipeline before is replaced.

    Args:
        content, style: `BLoRA`s or paths, of which the named half is used, or None.
        content_alpha, style_alpha: linear, signed strengths.
        seeds: a whole number or several; a picture depends on its own seed only.
        num_inference_steps, guidance_scale, height, width: by default what suits the pipeline.
        progress: True for a progress bar over all steps, or a function called with (steps done, steps in all).

    Returns:
        A list of PIL images, in the order of the seeds.
    """
    adapters.apply(pipe, content, style, content_alpha, style_alpha)
    return sample(pipe, prompt, seeds, num_inference_steps, guidance_scale, negative_prompt, height, width, progress)


@torch.no_grad()
def sample(pipe, prompt, seeds=(0,), num_inference_steps=None, guidance_scale=None, negative_prompt=None, height=None, width=None, progress=True):  # fmt: skip
    """Like `generate`, with whatever is on the pipeline at the moment (see `adapters.apply` and `adapters.set_alphas`)."""
    from tqdm.auto import tqdm

    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    suited = defaults_for(pipe)
    steps = num_inference_steps or suited.num_inference_steps
    guidance = suited.guidance_scale if guidance_scale is None else guidance_scale
    images, done, total = [], 0, steps * len(seeds)
    with tqdm(total=total, desc="generating", disable=progress is not True) as bar:

        def count(pipe_, step, timestep, tensors):
            nonlocal done
            done += 1
            bar.update()
            if callable(progress):
                progress(done, total)
            return {}

        for seed in seeds:
            images += pipe(
                prompt, negative_prompt=negative_prompt, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width,
                generator=torch.Generator().manual_seed(seed), callback_on_step_end=count,
            ).images  # fmt: skip
    return images
