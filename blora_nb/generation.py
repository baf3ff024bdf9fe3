"""Prompt + halves + alphas + seeds → pictures."""

import math
import operator
from contextlib import ExitStack, contextmanager

import torch

from blora_nb import lora as adapters
from blora_nb.guards.bases import check_base
from blora_nb.guards.changed_pipelines import check_unchanged, ready_to_draw, unwrapped
from blora_nb.guards.prompts import tell_of_prompt, without_the_libraries_own
from blora_nb.pipeline import check_prompt
from blora_nb.registry import pipeline_lock
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.memory import pictures_at_once
from blora_nb.running.out_of_memory import (
    explain_out_of_memory_generating,
    is_out_of_memory,
    release_tensors,
)
from blora_nb.running.records import record
from blora_nb.settings import defaults_for
from blora_nb.structure import structure_of


@torch.no_grad()
def generate(
    pipe,
    prompt,
    content=None,
    style=None,
    content_alpha=1.0,
    style_alpha=1.0,
    seeds=(0,),
    num_inference_steps=None,
    guidance_scale=None,
    negative_prompt=None,
    height=None,
    width=None,
    progress=True,
    **options,
):
    """One picture for each seed, with the content half of one B-LoRA and the style half of another.

    Both halves: style transfer. Only `content` and a prompt with a style: text stylization. Only `style` and a prompt
    with an object: consistent style. Neither: the plain model. Whatever was applied to the pipeline before is replaced.

    Args:
        content, style: `BLoRA`s or paths, of which the named half is used; to mix, lists of (B-LoRA, weight); or None.
        content_alpha, style_alpha: linear, signed strengths.
        seeds: a whole number or several; a picture depends on its own seed only.
        num_inference_steps, guidance_scale, height, width: by default what suits the pipeline; height and width in pixels.
        progress: True for a progress bar over all steps, or a function called with (steps done, steps in all).
        options: `image` and `strength`, `controlnet` and `control_image`, `batch_size`, `preview`, `asymmetric_guidance`,
            `content_until`, `style_from`; see `pictures`.

    Returns:
        A list of PIL images, in the order of the seeds. Each knows what it was made with, in `info["blora_nb"]`, and
        `images.save_picture` writes that into its file.

    Raises:
        BLoRAError: a B-LoRA cannot be read or does not fit the base. ValueError: an argument makes no sense, or a picture became NaN.
        MemoryError: not even one picture fits; it says what to change.
    """
    with pipeline_lock(pipe):
        return list(
            generate_each(
                pipe,
                prompt,
                content,
                style,
                content_alpha,
                style_alpha,
                negative_prompt,
                seeds=seeds,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                progress=progress,
                **options,
            )
        )


@torch.no_grad()
def generate_each(
    pipe,
    prompt,
    content=None,
    style=None,
    content_alpha=1.0,
    style_alpha=1.0,
    negative_prompt=None,
    **sampling,
):
    """Like `generate`, one picture after another, each as soon as it is ready.

    Args:
        sampling: see `pictures`.
    """
    check_pipeline(pipe)
    content, style = adapters.loaded(content), adapters.loaded(style)
    # also NumPy's and PyTorch's numbers, which no record could hold
    alphas = {"content_alpha": float(content_alpha), "style_alpha": float(style_alpha)}
    with ready_to_draw(pipe), memory_explained(pipe):
        adapters.apply(pipe, content, style, **alphas)
        embeds = encode(pipe, prompt, negative_prompt)
        common = record(pipe, prompt, negative_prompt, content, style, *alphas.values())
    for image in pictures(pipe, embeds, **sampling, **alphas):
        image.info["blora_nb"] = common | image.info["blora_nb"]
        yield image


@torch.no_grad()
def sample(pipe, prompt, seeds=(0,), num_inference_steps=None, negative_prompt=None, **sampling):
    """Like `generate`, with whatever is on the pipeline at the moment (see `adapters.apply` and `adapters.set_alphas`).

    Args:
        sampling: see `pictures`.
    """
    with pipeline_lock(pipe):
        check_pipeline(pipe)
        with ready_to_draw(pipe), memory_explained(pipe):
            embeds = encode(pipe, prompt, negative_prompt)
        return list(pictures(pipe, embeds, seeds, num_inference_steps, **sampling))


def check_pipeline(pipe):
    """Raise a ValueError where the base is of another kind, or a change spoils pictures."""
    with unwrapped(pipe):
        check_unchanged(pipe)
        check_base(pipe)


@torch.no_grad()
def encode(pipe, prompt, negative_prompt=None):
    """A prompt and its negative as the pipeline's keyword arguments; encoded once, they serve any number of seeds."""
    for text in (prompt, negative_prompt or ""):
        check_prompt(text)
        tell_of_prompt(pipe, text)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    with without_the_libraries_own():
        embeds = pipe.encode_prompt(
            prompt, negative_prompt=negative_prompt, device=pipe._execution_device
        )
    return dict(zip((*names, "negative_pooled_prompt_embeds"), embeds))


@torch.no_grad()
def pictures(
    pipe,
    embeds,
    seeds=(0,),
    num_inference_steps=None,
    guidance_scale=None,
    height=None,
    width=None,
    progress=True,
    batch_size=None,
    preview=None,
    asymmetric_guidance=False,
    content_until=1.0,
    style_from=0.0,
    content_alpha=1.0,
    style_alpha=1.0,
    image=None,
    strength=0.6,
    controlnet=None,
    control_image=None,
    controlnet_conditioning_scale=1.0,
):
    """Yield one PIL image after another, each as soon as it is ready, of a prompt from `encode`.

    Args:
        image, strength: start from this picture (path or PIL image) instead of pure noise and make only this share of the steps
            (img2img): the lower, the more of the picture is kept, its colours too.
        controlnet, control_image, controlnet_conditioning_scale: follow a drawn layout: a ControlNet ("tiny" for the teaching
            model, id, folder, or one from `structure.load_controlnet`), the layout as it wants it (see `structure.outline`), and how closely.
        batch_size: pictures made at once; by default one on a CPU and as many as fit on a GPU, where it is faster. A picture still
            depends on its own seed only, but sums are added up in another order in a batch, which can change a pixel by a step or two.
            Halved where the memory turns out to be too small.
        preview: a function called with (index of the batch's first picture, step, latents [batch, channels, height/8, width/8]) after each step.
        asymmetric_guidance: no LoRA in the unconditional pass, so that guidance pushes towards what the LoRA adds (CRAFT-LoRA, arXiv 2602.18936).
        content_until, style_from: timed halves: the content half only up to this share of the steps, the style half only from
            this one (content first, style late: arXiv 2602.18936). Outside its time a half's alpha is 0, inside it `content_alpha` or `style_alpha`.
    """
    from tqdm.auto import tqdm

    with ExitStack() as stack:
        stack.enter_context(ready_to_draw(pipe, with_hooks=asymmetric_guidance))
        seeds, suited = seed_list(seeds), defaults_for(pipe)
        steps = suited.num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = operator.index(steps)
        guidance = float(suited.guidance_scale if guidance_scale is None else guidance_scale)
        height, width = (None if side is None else operator.index(side) for side in (height, width))
        check_sampling(steps, guidance, content_until, style_from)
        timed = content_until < 1 or style_from > 0
        layout = (controlnet, control_image, controlnet_conditioning_scale)
        structure = structure_of(pipe, image, strength, *layout, height, width)
        made = structure.steps(steps)
        made_with = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "asymmetric_guidance": asymmetric_guidance,
            "content_until": content_until,
            "style_from": style_from,
            **structure.made_with,
        }
        done, total, first, vae_dtype = 0, made * len(seeds), 0, pipe.vae.dtype
        size = batch_size or pictures_at_once(pipe, height, width)

        def set_time(step):
            now = step < content_until * made, step >= style_from * made
            adapters.set_alphas(pipe, content_alpha * now[0], style_alpha * now[1])

        # for `inspection`, which asks this pipeline also where one made of its parts draws
        pipe._guidance_scale = guidance
        stack.callback(
            torch.nn.Module.to, pipe.vae, vae_dtype
        )  # diffusers leaves it in float32 where a float16 VAE that overflows is stopped at its work
        stack.enter_context(lean_attention(pipe.unet))
        bar = stack.enter_context(
            tqdm(total=total, desc="generating", disable=progress is not True)
        )
        if asymmetric_guidance and guidance > 1:
            stack.enter_context(lora_in_the_conditional_pass_only(pipe.unet))
        if timed:
            stack.callback(adapters.set_alphas, pipe, content_alpha, style_alpha)
        while first < len(seeds):
            batch = seeds[first : first + size]

            def after_step(pipe_, step, timestep, tensors):
                nonlocal done
                done = made * first + (step + 1) * len(batch)
                bar.update(done - bar.n)
                if timed:
                    set_time(step + 1)
                if step + 1 == made:
                    check_latents(tensors["latents"], batch)
                if preview:
                    preview(first, step, tensors["latents"])
                if callable(progress):
                    progress(done, total)
                return {}

            if timed:
                set_time(0)
            generators = [torch.Generator().manual_seed(seed) for seed in batch]
            try:
                images = structure.pipe(
                    **embeds,
                    **structure.arguments,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    num_images_per_prompt=len(batch),
                    generator=generators,
                    callback_on_step_end=after_step,
                ).images
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                release_tensors(error)
                if len(batch) == 1:
                    raise MemoryError(explain_out_of_memory_generating(pipe, error)) from None
                size = len(batch) // 2
                torch.nn.Module.to(pipe.vae, vae_dtype)
                continue
            first += len(batch)
            for seed, picture in zip(batch, images):
                picture.info["blora_nb"] = (
                    made_with | {"seed": seed} | ({"batch_seeds": batch} if len(batch) > 1 else {})
                )
                yield picture


@contextmanager
def memory_explained(pipe):
    """Inside, running out of memory becomes a MemoryError that says what to change, and keeps none of the memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_tensors(error)
        raise MemoryError(explain_out_of_memory_generating(pipe, error)) from None


def check_latents(latents, seeds):
    """Raise a ValueError that names the seeds whose latents [batch, channels, h, w] are no numbers any more."""
    whole = torch.isfinite(latents).flatten(1).all(1).tolist()
    if broken := [str(seed) for seed, fine in zip(seeds, whole) if not fine]:
        raise ValueError(
            f"NaN instead of a picture for the seed {' and '.join(broken)}. Try smaller alphas, a smaller guidance scale, or load a base in float16 with dtype bfloat16 or float32."
        )


def seed_list(seeds):
    """One seed, or any collection of them, as a list of Python's whole numbers."""
    try:
        return [operator.index(seeds)]
    except TypeError:
        pass
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError:
        raise ValueError(f"Seeds are whole numbers, which {seeds!r} is not.") from None


def check_sampling(num_inference_steps, guidance_scale, content_until, style_from):
    """Raise a ValueError for what no picture can be made with."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be an ordinary number, not {guidance_scale}.")
    for name, share in (("content_until", content_until), ("style_from", style_from)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share of the steps, from 0 to 1, not {share}.")


@contextmanager
def lora_in_the_conditional_pass_only(unet):
    """Inside, what LoRA adds is 0 in the first half of each batch, where classifier-free guidance puts the unconditional pass."""

    def silence(module, args, output):
        return torch.cat([torch.zeros_like(output[: len(output) // 2]), output[len(output) // 2 :]])

    layers = [
        part
        for module in unet.modules()
        if hasattr(module, "lora_B")
        for part in module.lora_B.values()
    ]
    handles = [layer.register_forward_hook(silence) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
