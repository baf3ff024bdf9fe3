"""Prompt + halves + alphas + seeds → pictures."""

import operator
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from blora_nb.errors import PromptWarning
from blora_nb.guards.bases import check_base
from blora_nb.guards.changed_pipelines import check_unchanged, unwrapped
from blora_nb.guards.prompts import quiet_libraries
from blora_nb.lora import HalfSource, apply, load_all
from blora_nb.pipeline import checked_and_encoded
from blora_nb.registry import pipeline_lock
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.memory import pictures_at_once
from blora_nb.running.out_of_memory import MemoryReleased, explain_out_of_memory_generating
from blora_nb.running.records import record
from blora_nb.sampling import Sampling
from blora_nb.settings import is_seed
from blora_nb.structure import structure_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

Seeds = int | Collection[int]
DrawingProgress = bool | Callable[[int, int], object]
Preview = Callable[[int, int, Tensor], object]


@torch.no_grad()
def generate(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    content: HalfSource | None = None,
    style: HalfSource | None = None,
    content_alpha: float = 1.0,
    style_alpha: float = 1.0,
    seeds: Seeds = (0,),
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    progress: DrawingProgress = True,
    **options: Any,
) -> list[Image.Image]:
    """One picture for each seed, with the content half of one B-LoRA and the style half of another.

    Both halves: style transfer. Only `content` and a prompt with a style: text stylization. Only
    `style` and a prompt with an object: consistent style. Neither: the plain model. Whatever was
    applied to the pipeline before is replaced.

    Args:
        content, style: `BLoRA`s or paths, of which the named half is used; to mix, lists of
            (B-LoRA, weight); or None.
        content_alpha, style_alpha: linear, signed strengths.
        seeds: a whole number or several; a picture depends on its own seed only.
        num_inference_steps, guidance_scale: by default what suits the pipeline.
        height, width: in pixels; by default the size that the model was trained on.
        progress: True for a progress bar over all steps, or a function called with (steps done,
            steps in all).
        options: `preview` (see `draw_each`) and the other fields of `Sampling`: `batch_size`,
            `image` and `strength`, `controlnet`, `control_image` and
            `controlnet_conditioning_scale`.

    Returns:
        PIL images in the order of the seeds. Each knows what it was made with, in
        `info["blora_nb"]`, and `save_picture` writes that into its file.

    Raises:
        BLoRAError: a B-LoRA cannot be read or does not fit the base.
        ValueError: an argument makes no sense, or a picture became NaN.
        MemoryError: not even one picture fits; it says what to change.
    """
    options |= {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
    }
    halves = (content, style, content_alpha, style_alpha)
    with pipeline_lock(pipe):
        each = generate_each(
            pipe, prompt, *halves, negative_prompt, seeds=seeds, progress=progress, **options
        )
        return list(each)


@torch.no_grad()
def generate_each(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    content: HalfSource | None = None,
    style: HalfSource | None = None,
    content_alpha: float = 1.0,
    style_alpha: float = 1.0,
    negative_prompt: str | None = None,
    seeds: Seeds = (0,),
    progress: DrawingProgress = True,
    preview: Preview | None = None,
    **sampling: Any,
) -> Generator[Image.Image, None, None]:
    """Like `generate`, one picture after another, each as soon as it is ready.

    Args:
        preview: see `draw_each`.
        sampling: the fields of `Sampling`.
    """
    check_pipeline(pipe)
    how = Sampling.of(pipe, sampling)
    content, style = load_all(content), load_all(style)
    with memory_explained(pipe):
        apply(pipe, content, style, content_alpha, style_alpha)
    embeds, made_with = read_prompt(pipe, prompt, negative_prompt, how, content, style)
    yield from draw_each(pipe, embeds, seeds, how, progress, preview, made_with)


@torch.no_grad()
def sample(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    seeds: Seeds = (0,),
    num_inference_steps: int | None = None,
    negative_prompt: str | None = None,
    progress: DrawingProgress = True,
    preview: Preview | None = None,
    **sampling: Any,
) -> list[Image.Image]:
    """Like `generate`, with whatever is on the pipeline at the moment.

    See `lora.apply` and `lora.set_alphas`. What a picture knows of its halves are alphas and
    fingerprints, not the files that they came from.

    Args:
        preview: see `draw_each`.
        sampling: the other fields of `Sampling`.
    """
    sampling["num_inference_steps"] = num_inference_steps
    with pipeline_lock(pipe):
        check_pipeline(pipe)
        how = Sampling.of(pipe, sampling)
        embeds, made_with = read_prompt(pipe, prompt, negative_prompt, how)
        return list(draw_each(pipe, embeds, seeds, how, progress, preview, made_with))


def read_prompt(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    negative_prompt: str | None,
    how: Sampling,
    content: HalfSource | None = None,
    style: HalfSource | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The prompt as `encode` gives it, and the `record` of its pictures."""
    guidance = how.guidance_scale or 0.0
    if negative_prompt and guidance <= 1:
        warnings.warn(
            f"The negative prompt does nothing: at a guidance_scale of {guidance:g} a picture is "
            "drawn by the prompt alone. Choose one above 1.",
            PromptWarning,
            stacklevel=3,
        )
    with memory_explained(pipe):
        embeds = encode(pipe, prompt, negative_prompt)
        return embeds, record(pipe, prompt, negative_prompt, content, style)


def check_pipeline(pipe: "StableDiffusionXLPipeline") -> None:
    """Raise a ValueError where the base is of another kind, or a change spoils pictures."""
    with unwrapped(pipe):
        check_unchanged(pipe)
        check_base(pipe)


@torch.no_grad()
def encode(
    pipe: "StableDiffusionXLPipeline", prompt: str, negative_prompt: str | None = None
) -> dict[str, Tensor]:
    """A prompt and its negative as the pipeline's keyword arguments.

    Encoded once, they serve any number of seeds.
    """
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    return dict(zip(names, checked_and_encoded(pipe, prompt, negative_prompt), strict=True))


@torch.no_grad()
def draw_each(
    pipe: "StableDiffusionXLPipeline",
    embeds: dict[str, Tensor],
    seeds: Seeds = (0,),
    how: Sampling | None = None,
    progress: DrawingProgress = True,
    preview: Preview | None = None,
    made_with: dict[str, Any] | None = None,
) -> Generator[Image.Image, None, None]:
    """Yield one picture after another, each as soon as it is ready, of a prompt from `encode`.

    Args:
        how: by default what suits the pipeline.
        preview: a function called after each step with (index of the batch's first picture, step,
            latents [batch, channels, height/8, width/8]; the teaching model has quarters).
        made_with: entries for the record of the pictures, beside those that are known here.
    """
    seeds = seed_list(seeds)
    with ExitStack() as stack:
        how = (how or Sampling()).suited_to(pipe)
        structure = structure_of(pipe, how)
        made_with = (made_with or {}) | how.record() | structure.made_with
        # `inspection` reads it here, also when a pipeline made of the parts of this one draws
        pipe._guidance_scale = how.guidance_scale
        # a float16 VAE is decoded in float32; interrupted there, diffusers leaves it so
        vae_dtype = pipe.vae.dtype
        stack.callback(nn.Module.to, pipe.vae, vae_dtype)
        stack.enter_context(lean_attention(pipe.unet))
        steps = StepReports(how.num_inference_steps or 0, len(seeds), progress, preview)
        stack.callback(steps.bar.close)
        size = how.batch_size or pictures_at_once(pipe, how.height, how.width)
        first = 0
        while first < len(seeds):
            batch = seeds[first : first + size]
            try:
                # whenever a VAE changes its dtype, diffusers warns of an empty list of modules
                with quiet_libraries(), MemoryReleased():
                    images = structure.pipe(
                        **embeds,
                        **structure.arguments,
                        num_inference_steps=how.num_inference_steps,
                        guidance_scale=how.guidance_scale,
                        num_images_per_prompt=len(batch),
                        generator=[torch.Generator().manual_seed(seed) for seed in batch],
                        callback_on_step_end=steps.of_batch(first, batch),
                    ).images
            except MemoryError as error:
                if len(batch) == 1:
                    raise MemoryError(explain_out_of_memory_generating(pipe, error)) from None
                size = len(batch) // 2
                nn.Module.to(pipe.vae, vae_dtype)
                continue
            first += len(batch)
            together = {"batch_seeds": batch} if len(batch) > 1 else {}
            for seed, picture in zip(batch, images, strict=True):
                picture.info["blora_nb"] = made_with | {"seed": seed} | together
                yield picture


class StepReports:
    """What happens after each step: progress and preview."""

    def __init__(
        self, steps: int, pictures: int, progress: DrawingProgress, preview: Preview | None
    ) -> None:
        from tqdm.auto import tqdm

        self.pictures, self.progress, self.preview = pictures, progress, preview
        self.bar = tqdm(total=steps * pictures, desc="generating", disable=progress is not True)

    def of_batch(self, first: int, seeds: list[int]) -> Callable[..., dict]:
        """The callback for diffusers, of the batch that begins with picture `first`."""

        def after_step(
            pipe: "DiffusionPipeline", step: int, timestep: int, tensors: dict[str, Tensor]
        ) -> dict:
            latents = tensors["latents"]
            # img2img makes fewer steps than were asked for, a sampler of second order more
            each = pipe.num_timesteps
            done, total = each * first + (step + 1) * len(seeds), each * self.pictures
            if self.bar.total != total:
                self.bar.reset(total)
            self.bar.update(done - self.bar.n)
            if step + 1 == each:
                check_latents(latents, seeds)
            if self.preview:
                self.preview(first, step, latents)
            if callable(self.progress):
                self.progress(done, total)
            return {}

        return after_step


@contextmanager
def memory_explained(pipe: "StableDiffusionXLPipeline") -> Iterator[None]:
    """Inside, running out of memory is a MemoryError that says what to change, and keeps none."""
    try:
        with MemoryReleased():
            yield
    except MemoryError as error:
        raise MemoryError(explain_out_of_memory_generating(pipe, error)) from None


def check_latents(latents: Tensor, seeds: Sequence[int]) -> None:
    """Raise a ValueError that names the seeds whose latents [batch, channels, h, w] are NaN."""
    finite = torch.isfinite(latents).flatten(1).all(1).tolist()
    broken = [str(seed) for seed, fine in zip(seeds, finite, strict=False) if not fine]
    if broken:
        raise ValueError(
            f"NaN instead of a picture for the seed {' and '.join(broken)}. Try smaller alphas or "
            "a smaller guidance scale; if the base is in float16, load it in bfloat16 or float32."
        )


def seed_list(seeds: Seeds) -> list[int]:
    """One seed, or any collection of them, as a list of Python's whole numbers."""
    try:
        numbers = [operator.index(seeds)]  # type: ignore[arg-type]
    except TypeError:
        try:
            numbers = [operator.index(seed) for seed in seeds]  # type: ignore[union-attr]
        except TypeError:
            raise ValueError(f"Seeds are whole numbers, which {seeds!r} is not.") from None
    for number in numbers:
        if not is_seed(number):
            raise ValueError(f"A seed must be between -2^63 and 2^64, which {number} is not.")
    return numbers
